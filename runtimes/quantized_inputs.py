"""Finds the activations that a lowered graph quantizes, and what is computed before them."""

from __future__ import annotations

import onnx_ir as ir

from vditc.runtimes.fusion import QuantizedInput

_ELEMENTWISE = (
    *("Abs", "Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub", "ReduceMax", "ReduceMean"),
    *("Concat", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
)
# What codes are made of. A norm may be one node or the mean of squares and what is around it.
_SOURCES = {"LayerNormalization": "norm", "RMSNormalization": "norm", "ReduceMean": "norm", "Gelu": "gelu", "Sigmoid": "silu"}


def quantized_inputs(graph: ir.Graph) -> tuple[QuantizedInput, ...]:
    """Every activation that a lowered graph quantizes."""
    return tuple(_input(node) for node in graph if node.op_type == "QuantizeLinear")


def _input(quantize: ir.Node) -> QuantizedInput:
    before, sources, todo = {quantize}, dict[ir.Node, str](), [quantize]
    ends: set[ir.Value] = set()  # what an RMSNorm squares
    while todo:
        reader = todo.pop()
        for value in reader.inputs:
            node = value.producer() if value is not None else None
            if node is None or value in ends or node in before or node.op_type not in (*_ELEMENTWISE, *_SOURCES):
                continue
            if node.op_type == "Max" and reader.op_type == "Mul":  # the scale of another layer's codes, behind its product
                continue
            kind = _SOURCES.get(node.op_type)
            before.add(node)
            if kind is not None:
                sources[node] = kind
            if node.op_type == "ReduceMean":
                square = node.inputs[0].producer() if node.inputs[0] is not None else None
                if square is not None and square.inputs[0] is not None:
                    before.add(square)
                    sources[square] = "norm"
                    ends.add(square.inputs[0])
            elif kind is None:
                todo.append(node)
    behind = min(sources.values(), default="rest", key=("norm", "gelu", "silu").index)
    chain, order = set(sources), list(sources)
    while order:
        for node in {u.node for v in order.pop().outputs for u in v.uses()} & before - chain:
            chain.add(node)
            order.append(node)
    return QuantizedInput(str(quantize.name), behind, tuple(sorted(str(n.name) for n in chain | {quantize})))
