"""What a graph is made of, for `vditc inspect` and `vditc verify`. Weights are not read."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vditc.graph_passes.spec import IR_VERSIONS, Spec
from vditc.graph_passes.stage import load
from vditc.graph_passes.target_spec import lowered_for
from vditc.target import Target


def graph_facts(path: Path) -> dict[str, Any]:
    """Opset, inputs, operators, bytes of initialisers by type, how many matrix products have which operands, plugin operators by kind.

    Also sizes of the file and of its external data, how many layers have which scheme, and how many steps its tables have, if any.
    """
    model = load(path)
    graph, stored, products = model.graph, Counter[str](), Counter[str]()
    for value in graph.initializers.values():
        if value.const_value is not None:
            stored[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    for node in graph:
        if node.op_type in ("MatMul", "Gemm"):
            products[" x ".join(_operand(v) for v in node.inputs[:2])] += 1
    about, inputs = json.loads(model.metadata_props.get("vditc", "{}")), {v.name for v in graph.inputs}
    data = sorted({v.const_value.path for v in graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)})
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "data": ", ".join(Path(one).name for one in data),
        "data_bytes": sum(Path(one).stat().st_size for one in data if Path(one).is_file()),
        "made_by": " ".join(filter(None, (model.producer_name, model.producer_version))) or "not known",
        "opset": dict(model.opset_imports),
        "ir_version": model.ir_version,
        "inputs": {str(v.name): f"{v.dtype.name.lower() if v.dtype else '?'}{[str(d) for d in v.shape or ()]}" for v in graph.inputs},
        "outputs": [str(v.name) for v in graph.outputs],
        "nodes": dict(sorted(Counter(n.op_type for n in graph).items())),
        "initializer_bytes": dict(sorted(stored.items())),
        "matrix_products": dict(sorted(products.items())),
        "plugins": dict(sorted(Counter(":".join(filter(None, n.op_identifier())) for n in graph if n.domain).items())),
        "recipe": about.get("recipe"),
        "layers": {scheme: len(layers) for scheme, layers in about.get("layers", {}).items()},
        "steps": len(about["timesteps"]) if "step" in inputs and "timesteps" in about else None,
    }


def check_canonical(path: Path) -> None:
    """DialectError unless the graph is what an export may write."""
    Spec.canonical().verify(load(path), where=str(path))


def check_lowered(path: Path, about: Mapping[str, Any]) -> None:
    """DialectError unless the graph is what `about`, a target in a bundle's manifest, may have.

    What a built-in target's file and quirks say is checked as well; of a user's own file the manifest has the types alone.
    """
    attention = None if (said := about.get("attention")) == about["compute"] else said
    if about.get("built_in") is None:
        opsets = tuple(IR_VERSIONS)
        spec = dataclasses.replace(Spec.lowered(about["compute"]), opsets=opsets, attention=attention)
    else:
        spec = lowered_for(dataclasses.replace(Target.load(about["built_in"]), attention=attention))
    spec.verify(load(path), where=str(path))


def _operand(value: ir.Value | None) -> str:
    """The stored type behind a DequantizeLinear, else the value's own type; "nvfp4" behind its form."""
    producer = value.producer() if value is not None else None
    if producer is not None and "_nvfp4" in (producer.name or ""):
        return "nvfp4"
    if producer is not None and producer.op_type in ("Cast", "Reshape", "Transpose"):
        return _operand(producer.inputs[0])
    if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None:
        codes = producer.inputs[0]
        made_by = codes.producer()
        if codes.dtype is None and made_by is not None:
            return ir.DataType(made_by.attributes.get_int("output_dtype", ir.DataType.INT8)).name.lower()
        return codes.dtype.name.lower() if codes.dtype else "int8"
    return value.dtype.name.lower() if value is not None and value.dtype else "float"
