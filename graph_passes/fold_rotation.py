"""Put the rotation of what attention gives out into the weight of v, where no block of it spans two heads.

    %v = Add(MatMul(%h, %w), %b)                                 %v = Add(MatMul(%h, %w Q), %b Q)      Q: blocks of n p channels
    %x = Reshape(Transpose(MatMul(%softmax, heads of %v)))       %x = Reshape(Transpose(MatMul(%softmax, heads of %v)))
    %r = Reshape(%x, [-1, n, p])                          ->     ... quantize %x
    %r = MatMul(%a, MatMul(%r, %b))   ... quantize Reshape(%r)

Attention is linear in v, head by head, so what mixes channels of one head passes it. Every other rotation is computed when the graph
runs, and is a refusal: behind modulation, which is another at every step and does not commute with it, behind GELU, in the residual
stream; of blocks that span heads, as those of the whole width do; and in front of a v whose codes were rounded without it, since rows of
codes cannot be mixed: to rotate such a v is for its calibration. The weight is stored a second time, in float32.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.absorption import Absorption
from vditc.graph_passes.channel_change import AbsorptionError, Array, array_of, constant, forget, label
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.patterns import consumers, producer, weight_like

_NAME = re.compile(r".+/Reshape_rotation_in(_\d+)?")


@dataclasses.dataclass(frozen=True, eq=False)
class Rotation:
    """x in blocks of n p channels: A^T [n, n] x [n, p] B [p, p], the two matrices as the graph has them."""

    nodes: tuple[ir.Node, ...]  # Reshape, one or two MatMuls, Reshape
    sizes: tuple[int, int]  # n, p
    left: Array | None
    right: Array | None

    @classmethod
    def at(cls, reshape: ir.Node) -> Rotation | None:
        """Behind the Reshape that takes the channels apart."""
        shape, nodes, matrices = constant(reshape.inputs[1]), [reshape], {}
        while matmul := next(iter(consumers(nodes[-1].outputs[0], "MatMul")), None):
            side = int(constant(matmul.inputs[1]) is not None)
            matrices[side] = constant(matmul.inputs[side])
            nodes.append(matmul)
        nodes += consumers(nodes[-1].outputs[0], "Reshape")[:1]
        if shape is None or shape.shape != (3,) or not matrices or nodes[-1].op_type != "Reshape":
            return None
        return cls(tuple(nodes), (int(shape[1]), int(shape[2])), matrices.get(0), matrices.get(1))

    @property
    def block(self) -> int:
        """Channels that are mixed."""
        return self.sizes[0] * self.sizes[1]

    def of(self, array: Array) -> Array:
        """[..., K] -> rotated, float32."""
        parts = array.astype(np.float64).reshape(-1, *self.sizes)
        parts = parts if self.right is None else parts @ self.right
        parts = parts if self.left is None else self.left @ parts
        return np.asarray(parts.reshape(array.shape), np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldRotation(Pass):
    """Makes rotations of whole heads disappear into a v in floating point. Refusal: every rotation that stays, with the reason."""

    name: ClassVar[str] = "fold-rotation"
    needs: ClassVar[frozenset[str]] = frozenset({"canonical", "constants-folded"})

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        found = [r for n in model.graph if _NAME.fullmatch(n.name or "") and (r := Rotation.at(n)) is not None]
        if not found:
            return Result(model, modified=False)
        absorption = Absorption(model)
        refusals: list[Refusal] = []
        for rotation in found:
            try:
                _fold(absorption, rotation)
            except AbsorptionError as reason:
                refusals.append(Refusal(label(rotation.nodes[0]), f"{reason}: the rotation is computed when the graph runs"))
        return Result(model, len(refusals) < len(found), tuple(refusals))


def _fold(absorption: Absorption, rotation: Rotation) -> None:
    first, last = rotation.nodes[0], rotation.nodes[-1]
    x, shape = first.inputs[0], producer(last.inputs[1], "Shape")
    assert x is not None
    readers = {first} if shape is None else {first, shape}
    if others := [label(use.node) for use in x.uses() if use.node not in readers]:
        raise AbsorptionError(f"{x.name} is also read as it is, by {', '.join(others[:3])}")
    matmul, adds = _value(absorption, x, rotation.block)
    weight = _source(matmul.inputs[1])
    if weight is None or weight.producer() is not None or weight.const_value is None:
        raise AbsorptionError(f"the weight of {label(matmul)} was rounded without the rotation")
    old = matmul.inputs[1]
    made = absorption.add(f"{weight.name}.folded", lambda name: ir.tensor(rotation.of(array_of(weight)), name=name))
    matmul.replace_input_with(1, made)
    forget(absorption.graph, old)
    for add, index in adds:
        bias = add.inputs[index]
        array = np.broadcast_to(array_of(_source(bias) or matmul.outputs[0]), (made.const_value.shape.numpy()[-1],))  # type: ignore[union-attr]
        add.replace_input_with(index, absorption.constant(add, index, rotation.of(array)))
        forget(absorption.graph, bias)
    last.outputs[0].replace_all_uses_with(x)
    absorption.graph.remove([*rotation.nodes, *([] if shape is None or len(tuple(shape.outputs[0].uses())) > 1 else [shape])], safe=True)


def _value(absorption: Absorption, x: ir.Value, block: int) -> tuple[ir.Node, list[tuple[ir.Node, int]]]:
    """The MatMul of v behind what attention gave out, and the Adds of constants behind that."""
    heads = _step(x, "Reshape")
    mixed = _step(heads.inputs[0], "Transpose")
    product = _step(mixed.inputs[0], "MatMul")
    width = absorption.shape(product.outputs[0])[-1]
    if width is None or width % block:
        raise AbsorptionError(f"its blocks of {block} channels mix heads of {width}")
    split = _step(_step(product.inputs[1], "Transpose").inputs[0], "Reshape")
    value, adds = split.inputs[0], []
    while (add := producer(value, "Add")) is not None and (index := _bias(add)) is not None:
        _step(value, "Add")
        adds.append((add, index))
        value = add.inputs[1 - index]
    return _step(value, "MatMul"), adds


def _bias(add: ir.Node) -> int | None:
    """Which input of an Add is a constant."""
    return next((i for i, v in enumerate(add.inputs) if weight_like(v)), None)


def _source(value: ir.Value | None) -> ir.Value | None:
    """What a Cast reads."""
    cast = producer(value, "Cast")
    return value if cast is None else cast.inputs[0]


def _step(value: ir.Value | None, kind: str) -> ir.Node:
    """The producer of a value that is read once more, by what is behind it."""
    node = producer(value, kind)
    if node is None or value is None:
        raise AbsorptionError(f"it is not what attention gave out, but {_what(value)}")
    readers = {use.node for use in value.uses() if use.node.op_type != "Shape" and not _NAME.fullmatch(use.node.name or "")}
    if len(readers) > 1 or value.is_graph_output():
        raise AbsorptionError(f"{value.name} has {len(readers)} readers")
    return node


def _what(value: ir.Value | None) -> str:
    assert value is not None
    node = value.producer()
    return f"the graph's input {value.name}" if node is None else f"comes from {node.op_type} {label(node)}"
