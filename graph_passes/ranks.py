"""How many axes values have, as far as a graph tells without inferring sizes."""

from __future__ import annotations

import onnx_ir as ir

# Operators whose output has the axes of what they read first, and those whose output has the axes of the operand with the most.
_AS_FIRST = (
    *("Abs", "Cast", "Clip", "DequantizeLinear", "Gelu", "Identity", "LayerNormalization", "QuantizeLinear", "Reciprocal", "RMSNormalization"),
    *("Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Tanh"),
)
_BROADCAST = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where")


def ranks(graph: ir.Graph) -> dict[ir.Value, int]:
    """One walk in order; a value whose rank is not known is missing."""
    found = {v: len(v.shape) for v in (*graph.inputs, *graph.initializers.values()) if v.shape is not None}
    found |= {v: len(v.const_value.shape) for v in graph.initializers.values() if v.const_value is not None}
    for node in graph:
        rank = _rank(node, found)
        if rank is not None:
            found |= dict.fromkeys(node.outputs, rank)
    return found


def _rank(node: ir.Node, known: dict[ir.Value, int]) -> int | None:
    read = [None if v is None else known.get(v) for v in node.inputs]
    if node.op_type in _AS_FIRST or (node.op_type.startswith("Reduce") and node.attributes.get_int("keepdims", 1) == 1):
        return read[0]
    if node.op_type in _BROADCAST or (node.op_type == "MatMul" and read[1] is not None and read[1] >= 2):
        present = [r for r in read if r is not None]
        return max(present) if len(present) == len(read) else None
    if node.op_type == "Transpose" and "perm" in node.attributes:
        return len(node.attributes["perm"].as_ints())
    if node.op_type == "Reshape":
        shape = node.inputs[1].const_value if node.inputs[1] is not None else None
        return None if shape is None else int(shape.shape.numpy()[0])
    if node.op_type == "Concat":
        return next((r for r in read if r is not None), None)
    return None
