"""Multiply what attention gives with INT4 weights row by row.

    %x = Reshape(Transpose(%heads), ...)                   %x = Reshape(Transpose(%heads), ...)
    %y = MatMul(%x, %w)                            ->      %r = Reshape(%x, [-1, K])
                                                           %p = MatMul(%r, %w)
                                                           %y = Reshape(%p, Concat(Shape<end=-1>(%x), [N]))

with %w of INT4 codes and no quantized activation. In an engine for one clip at a time, TensorRT-RTX 1.7 merges the transpose with the
product otherwise, and then stores the weight as half floats or expands it on every run (2 layers of Wan 2.1 1.3B at 480p81, sm_89).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.core import Pass, Result
from vditc.graph_passes.patterns import producer


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlattenAttentionOutputs(Pass):
    """Two-dimensional products behind attention, for weights that are INT4 alone."""

    name: ClassVar[str] = "flatten-attention-outputs"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered"})

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        graph, modified = model.graph, False
        for node in list(graph):
            if node.op_type != "MatMul" or (weight := producer(node.inputs[1], "DequantizeLinear")) is None:
                continue
            x, codes = node.inputs[0], weight.inputs[0]
            merged = producer(x, "Reshape")
            if codes is None or codes.dtype is not ir.DataType.INT4 or merged is None or producer(merged.inputs[0], "Transpose") is None:
                continue
            assert x is not None and codes.shape is not None
            k, n = codes.shape.numpy()
            name, out = str(node.name), node.outputs[0]

            def constant(suffix: str, *values: int, name: str = name) -> ir.Value:
                made = ir.val(f"{name}.{suffix}", const_value=ir.tensor(np.array(values, np.int64), name=f"{name}.{suffix}"))
                graph.initializers.add(made)
                return made

            rows = _node("Reshape", [x, constant("rows", -1, k)], f"{name}_rows")
            leading = _node("Shape", [x], f"{name}_leading", end=-1)
            shape = _node("Concat", [leading.outputs[0], constant("columns", n)], f"{name}_shape", axis=0)
            node.replace_input_with(0, rows.outputs[0])
            graph.insert_before(node, [rows, leading, shape])
            back = _node("Reshape", [out, shape.outputs[0]], f"{name}_back")
            whole = back.outputs[0]
            whole.type, whole.shape, whole.name = out.type, out.shape, out.name
            out.shape, out.name = None, f"{name}_product"
            out.replace_all_uses_with(whole, replace_graph_outputs=True)
            back.replace_input_with(0, out)
            graph.insert_after(node, back)
            modified = True
        return Result(model, modified)


def _node(kind: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Node:
    node = ir.node(kind, inputs, attributes, name=name)
    node.outputs[0].name = name
    return node
