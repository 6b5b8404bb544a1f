"""Graphs of one node of the plugin library, run by its body in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from vditc.plugins.catalogue import attach_functions
from vditc.plugins.plugin_op import PluginOp
from vditc.runtimes.onnxruntime import session_options

Array = npt.NDArray[Any]


def model_of(op: PluginOp, inputs: list[Array]) -> ir.Model:
    """One node; its inputs are those of the graph."""
    values = [
        ir.val(name, dtype=ir.DataType.from_numpy(a.dtype), shape=ir.Shape(a.shape)) for name, a in zip(op.inputs, inputs, strict=True)
    ]
    node = op.node(values, "node")
    for value, dtype in zip(node.outputs, op.types([v.dtype for v in values]), strict=True):
        value.dtype, value.shape = dtype, ir.Shape([None] * inputs[0].ndim)
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": op.opset}, name="g")
    model = ir.Model(graph, ir_version=10)
    attach_functions(model)
    return model


def run_body(op: PluginOp, inputs: list[Array]) -> list[Array]:
    """Outputs of the body, whose shapes are the operator's."""
    proto = ir.to_proto(model_of(op, inputs))
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, dict(zip(op.inputs, inputs, strict=True)))
    assert tuple(a.shape for a in found) == op.shapes([a.shape for a in inputs])
    return [np.asarray(array) for array in found]
