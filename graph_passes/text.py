"""A graph as ONNX text, the same for the same graph: for `--print-after`, `--dump` and tests."""

from __future__ import annotations

import onnx
import onnx.printer
import onnx_ir as ir

from vditc.graph_passes.core import Observer, Pass, PassFacts
from vditc.graph_passes.patterns import SMALL


def bare(model: ir.Model) -> onnx.ModelProto:
    """The serialised graph without types of intermediate values and metadata; nothing is loaded from disk."""
    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(model))
    del proto.graph.value_info[:], proto.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
    return proto


def to_text(model: ir.Model) -> str:
    """ONNX text of `bare` without the values of weights."""
    proto = bare(model)
    for tensor in list(proto.graph.initializer):
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size > SMALL or tensor.data_location == onnx.TensorProto.EXTERNAL:
            proto.graph.initializer.remove(tensor)
    text: str = onnx.printer.to_text(proto)
    return text


class PrintGraphs(Observer):
    """Prints the graph after every pass of a name, or after `all`, to stdout."""

    def __init__(self, name: str) -> None:
        self.name = name

    def after(self, done: Pass, facts: PassFacts, model: ir.Model) -> None:
        """Print."""
        if self.name in ("all", done.name):
            print(f"# after {done}\n{to_text(model)}")
