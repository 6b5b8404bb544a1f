"""Evaluates a part of a graph node by node in ONNX Runtime, so that no more than one node's weights are in memory."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from vditc.errors import VditcError
from vditc.graph_passes.patterns import SMALL
from vditc.graph_passes.tensor_bytes import tensor_bytes

Array = npt.NDArray[Any]
_FED = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16, ir.DataType.BFLOAT16: np.uint16}  # as arrays of these
_Runs = list[Any]  # OrtValues, one for every run, or a single one for what is the same in all of them


def evaluate(
    nodes: Sequence[ir.Node],
    sources: Mapping[ir.Value, Sequence[Array]],
    wanted: Collection[ir.Value],
    take: Callable[[ir.Value, list[Array]], None],
) -> None:
    """Calls `take` with each of the `wanted` values, and what it is in every run, as soon as that is known.

    `nodes` in topological order; `sources`: arrays of the values that they do not compute, one for every run. Everything else that they
    read is a constant. Each node runs by itself, as the operator that it is, in ONNX Runtime on one thread; what is constant is
    computed once and dropped after its last reader. VditcError without ONNX Runtime.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise VditcError(
            found="onnxruntime is not installed",
            wanted="an evaluator for the time path",
            where="pass precompute-time-path",
            fix="pip install vditc[cpu], or keep the time path with --keep-time-path",
        )
    import onnxruntime as ort

    count = len(next(iter(sources.values())))
    known: dict[ir.Value, _Runs] = {v: [ort.OrtValue.ortvalue_from_numpy(a) for a in runs] for v, runs in sources.items()}
    left = Counter(v for node in nodes for v in set(node.inputs) if v is not None)
    for value in (v for v in wanted if v in known):
        take(value, [run.numpy() for run in known[value]])
    for node in nodes:
        read = [v for v in dict.fromkeys(node.inputs) if v is not None]
        known |= {v: [_weight(ort, v)] for v in read if v not in known and _fed(v)}
        session = _session(ort, node, {v: known[v][0].element_type() for v in read if v in known})
        feeds = [v for v in read if v in known]
        runs = count if any(len(known[v]) > 1 for v in feeds) else 1
        made = [v for v in node.outputs if v.name]
        for value in made:
            known[value] = []
        for run in range(runs):
            given = {str(v.name): known[v][run if len(known[v]) > 1 else 0] for v in feeds}
            for value, result in zip(made, session.run_with_ort_values([str(v.name) for v in made], given), strict=True):
                known[value].append(result)
        for value in made:
            if value in wanted:
                take(value, [r.numpy() for r in known[value]] * (count // runs))
            if not left[value]:
                del known[value]
        for value in read:
            left[value] -= 1
            if not left[value]:
                known.pop(value, None)


def _fed(value: ir.Value) -> bool:
    """Whether a constant is large, and of a type that can be an input: as an initialiser it would be in memory five times."""
    tensor = value.const_value
    return tensor is not None and tensor.size > SMALL and tensor.dtype in _FED


def _weight(ort: Any, value: ir.Value) -> Any:
    tensor = value.const_value
    assert tensor is not None
    array = tensor_bytes(tensor).view(_FED[tensor.dtype]).reshape(tensor.shape.numpy())
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(tensor.dtype))


def _session(ort: Any, node: ir.Node, types: Mapping[ir.Value, int]) -> Any:
    """A session for one node; its inputs that are not fed are initialisers of the graph, read now."""
    proto = ir.serde.serialize_node(node)
    constants = []
    for value in dict.fromkeys(node.inputs):
        if value is not None and value not in types:
            tensor = value.const_value
            assert tensor is not None, f"{value.name} is neither fed nor constant"
            dims = tensor.shape.numpy()
            raw = tensor_bytes(tensor).tobytes()
            constants.append(onnx.TensorProto(name=value.name, dims=dims, data_type=int(tensor.dtype), raw_data=raw))
    graph = onnx.GraphProto(
        name="node",
        node=[proto],
        input=[onnx.helper.make_tensor_value_info(str(v.name), kind, None) for v, kind in types.items()],
        output=[onnx.helper.make_empty_tensor_value_info(str(v.name)) for v in node.outputs if v.name],
        initializer=constants,
    )
    opset = node.graph.opset_imports.get("", 21) if node.graph is not None else 21
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1  # the same bytes on every machine
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
