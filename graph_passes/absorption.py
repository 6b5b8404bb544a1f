"""What a factor, a shift or a divisor of a tensor's channels can go into, so that nothing is left to do with the tensor itself.

x' = x * factor + addend is pushed from x towards what computes it, through whatever is linear in it:

    LayerNormalization          into its weight and bias
    (1 + scale) * norm + shift  into the norm's weight and the small vectors that do not span the tokens; into tables gathered by `step`
    MatMul by a weight          into the scales of its output channels (a negative factor turns the signs of their codes)
    softmax(q k^T) v            into v, a shift too, since the weights of a row add up to 1
    Add, Mul                    into constants, small vectors, or further up
    Concat, Slice, Transpose, Reshape, Cast   further up, to the same channels

x / divisor, a number that is known when the graph runs, goes the same way, but into no stored constant: only into vectors and tables.
A plan changes nothing until it is applied. A value on the way must have no other reader, and be no output of the graph.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.channel_change import AbsorptionError, Array, Change, Edit, Plan, array_of, constant, label
from vditc.graph_passes.inferred_shapes import inferred_shapes
from vditc.graph_passes.patterns import producer, weight_like
from vditc.graph_passes.turned_codes import has_least_code, turned_codes
from vditc.scheme import OFFSET
from vditc.transform import UP


class Absorption:
    """Plans for one graph. Shapes are inferred once: what the passes change leaves them."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._names = {*self.graph.initializers, *(str(n.name) for n in self.graph), *(str(o.name) for n in self.graph for o in n.outputs)}
        self.shapes = inferred_shapes(self.graph)

    def shape(self, value: ir.Value | None) -> tuple[int | None, ...]:
        """Sizes, None where they are not fixed."""
        if value is None:
            raise AbsorptionError("an input that is left out")
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        found = self.shapes.get(str(value.name))
        if found is None:
            raise AbsorptionError(f"{value.name} has no known shape")
        return found

    def plan(self, value: ir.Value, change: Change) -> Plan:
        """How `value` becomes what `change` makes of it, for all its readers. AbsorptionError says why it cannot."""
        node = value.producer()
        if node is None:
            raise AbsorptionError(f"it is the graph's input {value.name}")
        if value.is_graph_output():
            raise AbsorptionError(f"{value.name} is an output of the graph")
        if node.op_type == "Split":
            return self._split(node, value.index() or 0, change)
        way = _WAYS.get(node.op_type)
        if way is None:
            raise AbsorptionError(f"behind {node.op_type} {label(node)}, which is not linear in its channels")
        return way(self, node, change)

    def operand(self, node: ir.Node, index: int, change: Change) -> Plan:
        """How an input of `node` takes the change: as a constant, further up, or as a small vector; whatever is computed least often."""
        value = node.inputs[index]
        assert value is not None
        if constant(value) is not None:
            if change.divisor is None:
                # Of what is there when the plan is applied: another part of it may have changed the same table.
                return Plan((Edit(node, index, lambda: self.constant(node, index, change.of(_now(node, index)))),))
            if not change.whole:
                raise AbsorptionError(f"only a part of {value.name} is divided")
            return self.vector(node, index, change)
        repeated = node.op_type in ("Add", "Mul") and self.small(value, node.outputs[0])
        change = dataclasses.replace(change, of_vector=change.of_vector or repeated)
        plans: list[Plan] = []
        reason = ""
        try:
            plans.append(self.only_reader(value, change))
        except AbsorptionError as refused:
            reason = str(refused)
        if change.of_vector and change.whole and (not plans or plans[0].vectors or plans[0].left):
            plans.insert(0, self.vector(node, index, change))
        if not plans:
            raise AbsorptionError(reason)
        return min(plans, key=lambda plan: plan.cost)

    def only_reader(self, value: ir.Value, change: Change) -> Plan:
        """`plan` of a value that has a single use."""
        if (count := len(tuple(value.uses()))) != 1:
            raise AbsorptionError(f"{value.name} has {count} readers")
        return self.plan(value, change)

    def small(self, value: ir.Value, beside: ir.Value) -> bool:
        """Whether `value` is repeated for all tokens of `beside`: along an axis other than the first, the batch, and the last."""
        try:
            own, whole = self.shape(value), self.shape(beside)
        except AbsorptionError:
            return False
        own = (1,) * (len(whole) - len(own)) + own
        tokens = range(1, len(whole) - 1) if len(whole) > 2 else range(len(whole) - 1)
        return any(own[i] == 1 and whole[i] != 1 for i in tokens)

    def vector(self, node: ir.Node, index: int, change: Change) -> Plan:
        """Compute what a small vector becomes, in front of its reader."""
        steps: list[tuple[str, ir.Value | Array]] = []
        if change.divisor is not None:
            steps.append(("Div", change.divisor))
        else:
            steps.append(("Mul", change.factor))
            if change.addend is not None:
                steps.append(("Add", change.addend))

        def make() -> ir.Value:
            made = node.inputs[index]
            assert made is not None
            for kind, with_what in steps:
                name = self.unused(f"{label(node)}/{kind}_folded")
                other = (
                    with_what
                    if isinstance(with_what, ir.Value)
                    else self.initializer(f"{name}.constant", np.asarray(with_what, np.float32))
                )
                new = ir.node(kind, [made, other], name=name)
                new.outputs[0].name = name
                self.graph.insert_before(node, new)
                made = new.outputs[0]
            return made

        return Plan((Edit(node, index, make),), len(steps))

    def constant(self, node: ir.Node, index: int, array: Array) -> ir.Value:
        """A new initialiser in place of an input, float32, under another name: it is no longer the checkpoint's."""
        old = node.inputs[index] if index < len(node.inputs) else None
        while old is not None and (cast := producer(old, "Cast")) is not None:
            old = cast.inputs[0]
        own = old is not None and len(tuple(old.uses())) == 1
        name = str(old.name) if own and old is not None else f"{label(node)}.{index}"
        return self.initializer(f"{name.removesuffix('.folded')}.folded", array)

    def initializer(self, name: str, array: Array) -> ir.Value:
        """A float32 initialiser."""
        return self.add(name, lambda name: ir.tensor(np.asarray(array, np.float32), name=name))

    def add(self, name: str, tensor: Callable[[str], ir.TensorProtocol]) -> ir.Value:
        """An initialiser under a name that is not taken."""
        name = self.unused(name)
        made = ir.val(name, const_value=tensor(name))
        self.graph.initializers.add(made)
        return made

    def unused(self, name: str) -> str:
        """`name`, or with a number behind it."""
        found = name if name not in self._names else next(n for i in itertools.count(2) if (n := f"{name}_{i}") not in self._names)
        self._names.add(found)
        return found

    # What each operator does with a change. Each says which inputs take it, or raises.

    def _add(self, node: ir.Node, change: Change) -> Plan:
        if change.addend is None:
            return self.operand(node, 0, change) + self.operand(node, 1, change)
        # One operand takes the addend as well, a constant if there is one.
        order = sorted((0, 1), key=lambda i: (constant(node.inputs[i]) is None, not self._small_operand(node, i)))
        other = {i: self.operand(node, i, change.linear) for i in (0, 1)}
        reason = ""
        for i in order:
            try:
                return self.operand(node, i, change) + other[1 - i]
            except AbsorptionError as refused:
                reason = reason or str(refused)
        raise AbsorptionError(reason)

    def _small_operand(self, node: ir.Node, index: int) -> bool:
        value = node.inputs[index]
        return value is not None and self.small(value, node.outputs[0])

    def _mul(self, node: ir.Node, change: Change) -> Plan:
        if change.addend is not None:
            raise AbsorptionError(f"{label(node)} is a product, which takes no shift")
        plans: list[Plan] = []
        reason = ""
        for i in sorted((0, 1), key=lambda i: constant(node.inputs[i]) is None):
            try:
                plans.append(self.operand(node, i, change))
            except AbsorptionError as refused:
                reason = reason or str(refused)
            if plans and not plans[-1].vectors and not plans[-1].left:
                break
        if not plans:
            raise AbsorptionError(reason)
        return min(plans, key=lambda plan: plan.cost)

    def _matmul(self, node: ir.Node, change: Change) -> Plan:
        left, right = node.inputs
        assert right is not None
        if weight_like(right):
            # A number for all channels passes a rotation.
            return self.operand(node, 0, change) if change.divisor is not None else self._weight(node, right, change)
        if -2 in change.axes:
            raise AbsorptionError(f"{label(node)} mixes the rows along which it differs")
        softmax = producer(left, "Softmax")
        if change.addend is not None and (softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, len(self.shape(left)) - 1)):
            raise AbsorptionError(f"the rows of {label(node)} have no sum of 1, so a shift does not pass")
        return self.operand(node, 1, change)

    def _weight(self, node: ir.Node, weight: ir.Value, change: Change) -> Plan:
        """Into the output channels of a linear layer."""
        if change.addend is not None:
            raise AbsorptionError(f"{label(node)} has no bias to take the shift")
        if change.axes - {-1}:
            raise AbsorptionError(f"{label(node)} has no such channels")
        if len(tuple(weight.uses())) != 1:
            raise AbsorptionError(f"the weight of {label(node)} has several readers")
        cast = producer(weight, "Cast")
        stored = weight if cast is None else cast.inputs[0]
        dequantize = producer(stored, "DequantizeLinear")
        assert stored is not None
        if dequantize is None and str(stored.name).endswith(f".{UP}"):
            return Plan((Edit(node, 1, lambda: self.constant(node, 1, change.of(array_of(stored)))),))
        if dequantize is None:
            raise AbsorptionError(f"the weight of {label(node)} is not quantized, and would be rounded and stored once more")
        codes, scale = dequantize.inputs[:2]
        if codes is None or codes.const_value is None or scale is None or scale.const_value is None:
            raise AbsorptionError(f"the codes of {label(node)} are not constant")
        if any(len(tuple(v.uses())) != 1 for v in (stored, codes)):
            raise AbsorptionError(f"the weight of {label(node)} has several readers")
        if scale.const_value.size == 1:
            raise AbsorptionError(f"the whole weight of {label(node)} has one scale")
        factor = change.factor.reshape(-1)
        scales = scale.const_value.numpy().astype(np.float64) * np.abs(factor)
        edits = [Edit(dequantize, 1, lambda: self.constant(dequantize, 1, np.asarray(scales, np.float32)))]
        if (factor < 0).any():
            offset = self._offset(codes)
            edits.append(Edit(dequantize, 0, self._turned(codes, factor < 0, offset is not None)))
            if offset is not None:
                # -(c s + o) = (-1 - c) s + (s - o): the codes above stay within their range. That -o is what `change` makes of o.
                (own, at), added = offset, np.where(factor < 0, scale.const_value.numpy().astype(np.float64), 0)
                edits.append(Edit(own, at, lambda: self.constant(own, at, _now(own, at) - added), first=True))
        return Plan(tuple(edits))

    def _offset(self, codes: ir.Value) -> tuple[ir.Node, int] | None:
        """Where the zero points of an asymmetric weight are read; None for a symmetric one."""
        name = str(codes.name).removesuffix(".folded") + OFFSET
        found = next((v for n in (name, f"{name}.folded") if (v := self.graph.initializers.get(n)) is not None), None)
        uses = () if found is None else tuple(found.uses())
        return (uses[0].node, uses[0].idx) if len(uses) == 1 and uses[0].node.op_type == "Mul" else None

    def _turned(self, codes: ir.Value, turn: Array, asymmetric: bool) -> Callable[[], ir.Value]:
        """The codes c [K, N], in some columns -c, or -1 - c of asymmetric ones, of which every code has a counterpart."""
        tensor = codes.const_value
        assert tensor is not None
        if not asymmetric and has_least_code(tensor):
            raise AbsorptionError(f"{codes.name} has codes without a counterpart of the other sign")

        def negated(name: str) -> ir.TensorProtocol:
            return turned_codes(tensor, turn, asymmetric=asymmetric, name=name)

        return lambda: self.add(f"{codes.name}.folded", lambda name: _lazy(partial(negated, name), tensor.dtype, tensor.shape, name))

    def _layer_norm(self, node: ir.Node, change: Change) -> Plan:
        rank = len(self.shape(node.outputs[0]))
        if change.divisor is not None:
            raise AbsorptionError(f"the weight of {label(node)} is constant")
        if change.axes - {-1} or node.attributes.get_int("axis", -1) not in (-1, rank - 1):
            raise AbsorptionError(f"{label(node)} has no such channels")
        arrays = [constant(v) for v in node.inputs[1:]]
        if any(a is None for a in arrays):
            raise AbsorptionError(f"the weight of {label(node)} is not constant")
        weight, bias = arrays[0], arrays[1] if len(arrays) > 1 else np.zeros(())
        assert weight is not None and bias is not None
        whole = np.broadcast_to(change.linear.of(weight).reshape(-1), weight.shape)
        edits = [Edit(node, 1, lambda: self.constant(node, 1, whole))]
        if change.addend is not None or len(arrays) > 1:
            moved = np.broadcast_to(change.of(bias).reshape(-1), weight.shape)
            edits.append(Edit(node, 2, lambda: self.constant(node, 2, moved)))
        return Plan(tuple(edits))

    def _transpose(self, node: ir.Node, change: Change) -> Plan:
        rank = len(self.shape(node.outputs[0]))
        perm = node.attributes.get_ints("perm", tuple(reversed(range(rank))))

        def back(array: Array) -> Array:
            return array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(np.argsort(perm))

        return self.operand(node, 0, change.mapped(back))

    def _reshape(self, node: ir.Node, change: Change) -> Plan:
        before, after = self.shape(node.inputs[0]), self.shape(node.outputs[0])
        if not change.axes:
            return self.operand(node, 0, change.mapped(lambda a: a.reshape(())))
        # The channels are the last axes of both; how many, the first axis along which the change differs tells.
        first = min(change.axes)
        own = after[first:]
        size = _product(own)
        count = next((i for i in range(1, len(before) + 1) if _product(before[-i:]) == size), None)
        if size is None or count is None:
            raise AbsorptionError(f"{label(node)} does not keep the channels together")
        shape = [int(n or 0) for n in before[-count:]]

        def back(array: Array) -> Array:
            inner = array.reshape(array.shape[max(array.ndim + first, 0) :])
            return np.broadcast_to(inner, [int(n or 0) for n in own]).reshape(shape)

        return self.operand(node, 0, change.mapped(back))

    def _expand(self, node: ir.Node, change: Change) -> Plan:
        before = self.shape(node.inputs[0])
        if any(-axis > len(before) or before[axis] in (1, None) for axis in change.axes):
            raise AbsorptionError(f"{label(node)} repeats the channels")
        return self.operand(node, 0, change.mapped(lambda a: a.reshape(a.shape[max(a.ndim - len(before), 0) :])))

    def _slice(self, node: ir.Node, change: Change) -> Plan:
        rank = len(self.shape(node.outputs[0]))
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if _whole_slice(node):
            return self.operand(node, 0, change)
        cut = set() if axes is None else {int(a) % rank - rank for a in axes}
        if not cut or cut & change.axes:
            raise AbsorptionError(f"{label(node)} cuts the channels")
        known = all(self.shape(node.inputs[0])[axis] is not None for axis in cut)  # or it may be a vector made of an activation
        return self.operand(node, 0, dataclasses.replace(change, of_vector=change.of_vector and known))

    def _split(self, node: ir.Node, output: int, change: Change) -> Plan:
        """Its other outputs stay as they are."""
        shapes = [self.shape(o) for o in node.outputs]
        axis = node.attributes.get_int("axis", 0) % len(shapes[0]) - len(shapes[0])
        sizes = [s[axis] for s in shapes]
        if any(n is None for n in sizes):
            raise AbsorptionError(f"the parts of {label(node)} have no fixed sizes")
        counts = [int(n or 0) for n in sizes]

        def whole(array: Array, other: float) -> Array:
            array = array.reshape((1,) * (-axis - array.ndim) + array.shape)
            shape = list(array.shape)
            shape[axis] = sum(counts)
            result = np.full(shape, other)
            start = sum(counts[:output])
            np.moveaxis(result, axis, 0)[start : start + counts[output]] = np.moveaxis(array, axis, 0)
            return result

        addend = None if change.addend is None else whole(change.addend, 0.0)
        factor = whole(change.factor, 1.0 if change.divisor is None else 0.0)
        return self.operand(node, 0, dataclasses.replace(change, factor=factor, addend=addend))

    def _concat(self, node: ir.Node, change: Change) -> Plan:
        rank = len(self.shape(node.outputs[0]))
        axis = node.attributes["axis"].as_int() % rank - rank
        if axis not in change.axes:
            return Plan.all(self.operand(node, i, change) for i in range(len(node.inputs)))
        sizes = [self.shape(v)[axis] for v in node.inputs]
        if any(n is None for n in sizes):
            raise AbsorptionError(f"the parts of {label(node)} have no fixed sizes")
        ends = np.cumsum([n or 0 for n in sizes])
        parts = [change.mapped(_cut(axis, int(end - (n or 0)), int(end))) for end, n in zip(ends, sizes, strict=True)]
        plans: list[Plan] = []
        refused: list[str] = []
        for i, part in enumerate(parts):
            try:
                plans.append(self.operand(node, i, part))
            except AbsorptionError as reason:
                if change.divisor is not None:
                    raise
                refused.append(str(reason))
                value = node.inputs[i]
                assert value is not None
                plans.append(Plan(self.vector(node, i, part).edits, 0, ((str(value.name), str(reason)),)))
        if len(refused) == len(parts):
            raise AbsorptionError(refused[0])
        return Plan.all(plans)

    def _gather(self, node: ir.Node, change: Change) -> Plan:
        """A row of a table: the table takes it."""
        table, index = node.inputs
        array = constant(table)
        if array is None or node.attributes.get_int("axis", 0) != 0 or index is None or index.name != "step":
            raise AbsorptionError(f"behind Gather {label(node)}, which is no row of a table for each step")
        if any(-a >= array.ndim for a in change.axes):
            raise AbsorptionError(f"the table of {label(node)} has no such channels")
        row = change.mapped(lambda a: a.reshape(a.shape[max(a.ndim - array.ndim + 1, 0) :]))
        if change.table is not None:
            if len(change.table) != len(array):
                raise AbsorptionError(f"the table of {label(node)} has {len(array)} steps, that of the scale {len(change.table)}")
            divisor = change.table.astype(np.float64).reshape(-1, *(1,) * (array.ndim - 1))
            divisor = np.where(row.factor != 0, divisor, 1.0)
            return Plan((Edit(node, 0, lambda: self.constant(node, 0, _now(node, 0) / divisor)),))
        return Plan((Edit(node, 0, lambda: self.constant(node, 0, row.of(_now(node, 0)))),))

    def _pass_on(self, node: ir.Node, change: Change) -> Plan:
        return self.operand(node, 0, change)


_WAYS: dict[str, Callable[[Absorption, ir.Node, Change], Plan]] = {
    "Add": Absorption._add,
    "Mul": Absorption._mul,
    "MatMul": Absorption._matmul,
    "LayerNormalization": Absorption._layer_norm,
    "Transpose": Absorption._transpose,
    "Reshape": Absorption._reshape,
    "Squeeze": Absorption._reshape,
    "Unsqueeze": Absorption._reshape,
    "Expand": Absorption._expand,
    "Slice": Absorption._slice,
    "Concat": Absorption._concat,
    "Gather": Absorption._gather,
    "Cast": Absorption._pass_on,
}


def _now(node: ir.Node, index: int) -> Array:
    """A constant that a node reads."""
    array = constant(node.inputs[index])
    assert array is not None
    return array


def _whole_slice(node: ir.Node) -> bool:
    """Whether a Slice takes all there is, in order."""
    starts, ends, *rest = (constant(v) for v in (*node.inputs[1:3], *node.inputs[4:5]))
    last = np.iinfo(np.int32).max
    if starts is None or ends is None or any(r is None or (r != 1).any() for r in rest):
        return False
    return bool(not starts.any() and (ends >= last).all())


def _lazy(made: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: ir.ShapeProtocol, name: str) -> ir.LazyTensor:
    """A tensor that is computed when it is written."""
    return ir.LazyTensor(made, dtype=dtype, shape=ir.Shape(shape.numpy()), name=name)


def _product(sizes: Sequence[int | None]) -> int | None:
    return None if None in sizes else math.prod(n for n in sizes if n is not None)


def _cut(axis: int, start: int, end: int) -> Callable[[Array], Array]:
    """Elements start to end along an axis counted from the last, if the array has more than one there."""

    def cut(array: Array) -> Array:
        if array.ndim < -axis or array.shape[axis] == 1:
            return array
        return np.moveaxis(np.moveaxis(array, axis, 0)[start:end], 0, axis)

    return cut
