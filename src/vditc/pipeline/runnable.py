"""The same graph in what ONNX Runtime has on a CPU: float32 for bfloat16, whole masks for those that hold for every query."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vditc.errors import VditcError

_WIDE, _SHORT = TensorProto.FLOAT, TensorProto.BFLOAT16
# Operators whose output has the type of the data that they read.
_ONE_TYPE = ("Add", "Attention", "Concat", "MatMul", "Mul", "Reshape", "Softmax", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Slice")


def runnable(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """`model`, or a copy of it with nodes that ONNX Runtime runs on a CPU.

    A value of bfloat16 becomes one of float32 that bfloat16 can hold: an operator on such values computes in float32, and its output is
    rounded to bfloat16 and back. That is how devices compute it, up to the sums within an operator. The operator Attention gets its
    mask for every query; ONNX Runtime wants it so. VditcError, with `where`, for bfloat16 in other operators than those of attention.
    """
    if not any((n.op_type == "Attention" and len(n.input) > 3) or _to(n) == _SHORT for n in model.graph.node):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.value_info[:]
    short: set[str] = set()
    for node in model.graph.node:
        made.graph.node.extend(_nodes(node, short, where))
    if any(node.op_type == "Attention" and len(node.input) > 3 for node in made.graph.node):
        made.graph.initializer.append(numpy_helper.from_array(np.array([1]), "runnable.one"))
    return made


def _nodes(node: NodeProto, short: set[str], where: str) -> list[NodeProto]:
    """What takes the place of `node`; names of bfloat16 values are added to `short`."""
    if _to(node) == _SHORT:
        short.add(node.output[0])
        return _rounded(node.input[0], node.output[0])
    copy = NodeProto()
    copy.CopyFrom(node)
    before = _whole_mask(copy) if node.op_type == "Attention" and len(node.input) > 3 else []
    if node.op_type == "Cast" or not short.intersection(node.input):
        return [*before, copy]
    if node.op_type not in _ONE_TYPE:
        raise VditcError(
            found=f"{node.op_type} of bfloat16, node {node.name}",
            wanted="a graph that ONNX Runtime can run on a CPU: bfloat16 in attention alone",
            where=where,
            fix="lower without --verify",
        )
    short.add(node.output[0])
    copy.output[0] = f"{node.output[0]}.exact"
    return [*before, copy, *_rounded(copy.output[0], node.output[0])]


def _rounded(value: str, name: str) -> list[NodeProto]:
    """`value` rounded to bfloat16, in float32, as `name`."""
    return [
        helper.make_node("Cast", [value], [f"{name}.short"], name=f"{name}/short", to=_SHORT),
        helper.make_node("Cast", [f"{name}.short"], [name], name=f"{name}/wide", to=_WIDE),
    ]


def _whole_mask(attention: NodeProto) -> list[NodeProto]:
    """Nodes that repeat the mask for every query; `attention` reads the result then."""
    name, mask = f"{attention.name}.mask", attention.input[3]
    attention.input[3] = f"{name}.whole"
    return [
        helper.make_node("Shape", [attention.input[0]], [f"{name}.queries"], name=f"{name}/queries", start=2, end=3),
        helper.make_node("Concat", [f"{name}.queries", "runnable.one"], [f"{name}.shape"], name=f"{name}/shape", axis=0),
        helper.make_node("Expand", [mask, f"{name}.shape"], [f"{name}.whole"], name=f"{name}/whole"),
    ]


def _to(node: NodeProto) -> int | None:
    return next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
