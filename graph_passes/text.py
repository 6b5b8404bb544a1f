"""A graph as ONNX text, the same for the same graph: for `--print-after` and for tests."""

from __future__ import annotations

import onnx
import onnx.printer
import onnx_ir as ir

from vditc.graph_passes.patterns import SMALL


def to_text(model: ir.Model) -> str:
    """ONNX text without the values of weights, types of intermediate values, and metadata; nothing is loaded from disk."""
    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(model))
    for tensor in list(proto.graph.initializer):
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size > SMALL or tensor.data_location == onnx.TensorProto.EXTERNAL:
            proto.graph.initializer.remove(tensor)
    del proto.graph.value_info[:], proto.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
    text: str = onnx.printer.to_text(proto)
    return text
