"""Parts of a pipeline -> ONNX: float32 compute in the canonical dialect, all graphs of a part over one file of weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vditc.axis import Axis, Sizes
from vditc.calibration import LayerCalibration
from vditc.errors import InputError
from vditc.export.describe import describe_inputs
from vditc.export.linears import normalise_linears
from vditc.export.parts.part import Part
from vditc.export.parts.trace import trace_part
from vditc.export.qdq import quantize_linears
from vditc.export.simplify import simplify
from vditc.export.stage import IR_VERSION
from vditc.export.weights import attach_weights
from vditc.export.write import external_tensors, write_model
from vditc.float_weight import FloatWeight
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.part_graph import PartGraph, unscaled
from vditc.progress import Progress
from vditc.qweight import RoundedWeight
from vditc.scheme import QuantSpec, Scheme

_STORED = {"w8": QType.INT8, "fp8": QType.FP8_E4M3}
STORED = ("model", *_STORED)  # how matrices may be stored: as in the checkpoint, or in 8 bits with a scale for every output channel


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartFacts:
    """What an export wrote."""

    graphs: Mapping[str, int]  # graph -> nodes
    data_bytes: int
    layers: int  # linear layers stored in 8 bits


def export_part(part: Part, out: Path, progress: Progress, stored: str = "model") -> PartFacts:
    """Write `out`/GRAPH.onnx of every graph of the part, and the weights that they share.

    opset 21, float32 compute, standard operators; weights go from the checkpoint to the data file one at a time, as `stored` says
    (`STORED`). Same input, same bytes. InputError for code that cannot be traced, a checkpoint that does not fit its config, or a weight
    that is not finite.
    """
    if stored not in STORED or (stored != "model" and not part.quantizable):
        wanted = ", ".join(STORED) if part.quantizable else "model: it is convolutions"
        raise InputError(found=f"weights as {stored}", wanted=wanted, where=part.model_class, fix="choose one of these")
    source, models = part.named, dict[str, tuple[PartGraph, ir.Model]]()
    layers: dict[str, LayerCalibration] = {}
    with progress.task(f"trace the {source.part}", len(part.graphs())) as advance:
        for graph in part.graphs():
            model = trace_part(part, graph)
            simplify(model)
            for output, (name, dims) in zip(model.graph.outputs, graph.all_outputs.items(), strict=True):
                output.name, output.shape = name, ir.Shape(dims)  # an output may be another value now
            linears = normalise_linears(model.graph, source)
            layers = _stored(source, linears, stored)
            quantize_linears(model.graph, linears, layers)
            attach_weights(model.graph, source, linears, {})
            model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "vditc", version("vditc")
            model.graph.name = f"{part.model_class}.{graph.name}"
            model.metadata_props.clear()
            model.metadata_props["vditc"] = json.dumps({"part": source.part, "model_class": part.model_class, "weights": stored})
            describe_inputs(model, graph.all_inputs, Sizes(graph_axes(graph, part.axes())))
            models[graph.name] = graph, model
            advance()
    data = _write(models, out, progress)
    return PartFacts(graphs={name: len(model.graph) for name, (_, model) in models.items()}, data_bytes=data, layers=len(layers))


def _write(models: Mapping[str, tuple[PartGraph, ir.Model]], out: Path, progress: Progress) -> int:
    """Each tensor once: what an earlier graph has under the same name is where the later ones look for it."""
    places: dict[str, ir.TensorProtocol] = {}
    total = 0
    for graph, model in models.values():
        for name, value in model.graph.initializers.items():
            if name in places and not name.startswith("const."):
                value.const_value = places[name]
        new = {name for name, value in model.graph.initializers.items() if not isinstance(value.const_value, ir.ExternalTensor)}
        with progress.task(f"write {graph.file}", len(external_tensors(model.graph))) as advance:
            total += write_model(model, out / graph.file, advance)[1]
        places |= {
            n: v.const_value for n, v in model.graph.initializers.items() if n in new and isinstance(v.const_value, ir.ExternalTensor)
        }
    return total


def graph_axes(graph: PartGraph, axes: Mapping[str, Axis]) -> dict[str, Axis]:
    """Every axis that a graph's inputs and outputs name, scaled ones too."""
    dims = [d for spec in graph.all_inputs for d in spec.dims] + [d for dims in graph.all_outputs.values() for d in dims]
    found = {}
    for name in dict.fromkeys(d for d in dims if isinstance(d, str)):
        base, factor, less = unscaled(name)
        axis = axes[base]
        found[name] = dataclasses.replace(
            axis,
            default=axis.default * factor - less,
            low=axis.low * factor - less,
            high=None if axis.high is None else axis.high * factor - less,
            multiple=1 if less else axis.multiple * factor,
            stride=max(1, axis.stride // factor),
        )
    return found


def _stored(source: ModelDir, linears: Mapping[str, Any], stored: str) -> dict[str, LayerCalibration]:
    """Every linear layer rounded to nearest, with a scale for each output channel; none where the checkpoint's type stays."""
    if stored == "model":
        return {}
    spec = QuantSpec(qtype=_STORED[stored], granularity=Granularity.PER_CHANNEL)
    found = {}
    for name, nodes in linears.items():
        if len(nodes) == 1:
            weight = RoundedWeight(FloatWeight(source.weights[f"{name}.weight"], f"{source.transformer}, layer {name}"), spec)
            found[name] = LayerCalibration(role="text_encoder", scheme=Scheme(weight=spec), weight=weight)
    return found
