"""How many axes values have, as far as a graph tells without inferring sizes."""

from __future__ import annotations

import onnx_ir as ir

# Operators whose output has the axes of what they read first, and those whose output has the axes of the operand with the most.
_AS_FIRST = (
    *(
        "Abs",
        "Cast",
        "Clip",
        "Conv",
        "DequantizeLinear",
        "Gelu",
        "Identity",
        "LayerNormalization",
        "QAttention",
        "QLinear",
        "QuantizeLinear",
        "QuantizeToken",
        "Reciprocal",
        "RMSNormalization",
    ),
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
    first = read[0] if read else None
    match node.op_type:
        case kind if kind in _AS_FIRST or (kind.startswith("Reduce") and node.attributes.get_int("keepdims", 1) == 1):
            return first
        case kind if kind in _BROADCAST or (kind == "MatMul" and read[1] is not None and read[1] >= 2):
            return None if None in read else max(r for r in read if r is not None)
        case "Transpose":
            return len(node.attributes["perm"].as_ints()) if "perm" in node.attributes else first
        case "Reshape":
            return _count(node.inputs[1])
        case "Concat":
            return next((r for r in read if r is not None), None)
        case "Shape":
            return 1
    if first is None:
        return None
    if node.op_type == "Gather":
        return None if read[1] is None else first - 1 + read[1]
    axes = _count(node.inputs[1]) if len(node.inputs) > 1 and node.op_type in ("Unsqueeze", "Squeeze", "Expand") else None
    if axes is None:
        return None
    return {"Unsqueeze": first + axes, "Squeeze": first - axes, "Expand": max(first, axes)}[node.op_type]


def _count(value: ir.Value | None) -> int | None:
    """Elements of a list of axes or sizes: a constant, or sizes that are put together."""
    if value is None:
        return None
    if value.const_value is not None:
        return int(value.const_value.size)
    node = value.producer()
    if node is not None and node.op_type == "Shape" and node.attributes.get_int("end", 0) > 0:
        return node.attributes.get_int("end", 0) - node.attributes.get_int("start", 0)
    if node is not None and node.op_type == "Reshape":  # a single size as a list
        return (
            1
            if (shape := node.inputs[1]) is not None and shape.const_value is not None and shape.const_value.numpy().tolist() == [1]
            else None
        )
    if node is None or node.op_type != "Concat":
        return None
    parts = [_count(v) for v in node.inputs]
    return None if None in parts else sum(p for p in parts if p is not None)
