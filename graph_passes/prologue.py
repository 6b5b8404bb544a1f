"""What stands in front of the codes of a quantized activation, up to where something else reads it: what `vditc.QuantizeToken` computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.absorbed import Absorbed
from vditc.graph_passes.absorption import Absorption
from vditc.graph_passes.channel_change import AbsorptionError, constant, label
from vditc.graph_passes.element_types import element_types
from vditc.graph_passes.fold_rotation import Rotation
from vditc.graph_passes.inferred_shapes import why_not_spread
from vditc.graph_passes.patterns import (
    activation_bits,
    by_step,
    for_plugins,
    only_reader,
    producer,
    quantized_matmuls,
    rms_norms,
    small_constant,
)
from vditc.graph_passes.ranks import ranks
from vditc.hadamard import factors
from vditc.numerics import EPS
from vditc.plugins.gelu import APPROXIMATE
from vditc.plugins.packing import code_range
from vditc.plugins.quantize_token.op import BITS, ROTATION

_GELUS = {approximate: name for name, approximate in APPROXIMATE.items()}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class UnfitError(Exception):
    """What the operator does not compute; the message says why."""


class Surroundings:
    """What a walk through one graph needs to know of it."""

    def __init__(self, model: ir.Model) -> None:
        self.types: dict[ir.Value, ir.DataType] = element_types(model.graph).of
        self.rms = {nodes[-1]: nodes for nodes in rms_norms(model.graph)}
        starts = (n for n in model.graph if n.op_type == "Reshape" and "/Reshape_rotation_in" in (n.name or ""))
        self.rotations = {r.nodes[-1]: r for n in starts if (r := Rotation.at(n)) is not None}
        self.shapes = Absorption(model)
        known = ranks(model.graph)
        layers = (q for q in quantized_matmuls(model.graph) if for_plugins(q.weight))
        ends = [found.nodes[-1] for q in layers if (found := Absorbed.behind(q, known, self.shapes.shapes)).gate is not None]
        self.taken = set(ends)  # gated residuals that layers of the plugin library will compute

    def same_shape(self, a: ir.Value, b: ir.Value) -> bool:
        """Whether two values are known to have the same axes."""
        try:
            return self.shapes.shape(a) == self.shapes.shape(b)
        except AbsorptionError:
            return False

    def last_axis(self, value: ir.Value | None) -> int | None:
        """Channels of a value, where they are known."""
        try:
            shape = self.shapes.shape(value)
        except AbsorptionError:
            return None
        return shape[-1] if shape else None

    def why_no_vector(self, value: ir.Value, beside: ir.Value) -> str:
        """Why `value` is not repeated for all tokens of `beside`, in a way that the operator can read; "" if it is."""
        try:
            own, whole = self.shapes.shape(value), self.shapes.shape(beside)
        except AbsorptionError as unknown:
            return str(unknown)
        if not own or own[-1] in (None, 1) or own[-1] != whole[-1] or len(own) > len(whole):
            return f"{value.name} is no vector of its channels"
        if not self.shapes.small(value, beside):
            return f"{value.name} differs by token"
        return f"{value.name} {why}" if (why := why_not_spread(own, whole)) else ""

    def of_channels(self, value: ir.Value | None, beside: ir.Value) -> bool:
        """Whether a value is a constant with a number for every channel of `beside`, or a constant divided by the scale of the step."""
        if of_channels(value):
            return True
        try:
            return self.shapes.shape(value) == self.shapes.shape(beside)[-1:] and len(self.shapes.shape(beside)) > 1
        except AbsorptionError:
            return False

    def behind_norm(self, value: ir.Value | None, steps: int = 6) -> bool:
        """Whether a norm computes a value, maybe with products and sums behind it."""
        node = producer(value, "Mul", "Add", "Cast")
        return self.is_norm(value) or (node is not None and steps > 0 and any(self.behind_norm(v, steps - 1) for v in node.inputs[:2]))

    def ahead(self, value: ir.Value | None) -> bool:
        """Whether a norm, GELU or rotation stands in front of a value, maybe with a balance, a shift and an order of tokens behind it."""
        while (node := producer(value, "Mul", "Sub", "Cast", "Reshape")) is not None and node not in self.rotations:
            assert value is not None
            others = [v for v in node.inputs if not self.of_channels(v, value)] if node.op_type in ("Mul", "Sub") else node.inputs[:1]
            if len(others) != 1:
                break
            value = others[0]
        return node in self.rotations or producer(value, "Gelu") is not None or self.behind_norm(value)

    def is_norm(self, value: ir.Value | None) -> bool:
        """Whether a norm computes a value."""
        node = producer(value, "Cast")
        value = value if node is None else node.inputs[0]
        return producer(value, "LayerNormalization") is not None or (value is not None and value.producer() in self.rms)


@dataclasses.dataclass(frozen=True, eq=False)
class _Walk:
    """A way up the graph: nodes so far, and what they read."""

    x: ir.Value
    readers: tuple[ir.Node, ...]  # of x, among the nodes
    nodes: tuple[ir.Node, ...]

    def up(self, x: ir.Value | None, *nodes: ir.Node) -> _Walk:
        """Past the nodes that compute x."""
        assert x is not None
        return _Walk(x, nodes, (*self.nodes, *nodes))

    def shared(self) -> str:
        """Who else reads x; "" if nobody does."""
        others = [label(use.node) for use in self.x.uses() if use.node not in self.readers]
        others += ["whoever takes the graph's outputs"] if self.x.is_graph_output() else []
        return f"{self.x.name} is also read by {', '.join(others[:3])}" if others else ""

    def past_cast(self, types: Mapping[ir.Value, ir.DataType]) -> _Walk:
        """Past a Cast between floating-point types, which the operator makes superfluous."""
        cast = producer(self.x, "Cast")
        floats = {types.get(v) for v in (self.x, None if cast is None else cast.inputs[0]) if v is not None}
        return self if cast is None or self.shared() or not floats <= {*_FLOATS} else self.up(cast.inputs[0], cast)

    def unwidened(self, types: Mapping[ir.Value, ir.DataType]) -> _Walk:
        """To what a Cast to float32 reads, whoever else reads its output: that changes no number."""
        cast = producer(self.x, "Cast")
        if cast is None or types.get(self.x) is not ir.DataType.FLOAT or types.get(_there(cast.inputs[0])) not in _FLOATS:
            return self
        return self.up(cast.inputs[0], cast)


@dataclasses.dataclass(frozen=True, eq=False)
class Gated:
    """sum = residual + gate * x, in front of a norm."""

    add: ir.Node
    before: _Walk  # to the sum
    sum: ir.Value
    gate: ir.Value
    residual: ir.Value


@dataclasses.dataclass(eq=False)
class Prologue:
    """Nodes that the operator computes, from the tensor `x` to the codes, and what it needs for them."""

    quantize: ir.Node
    bits: int
    walk: _Walk
    scale: ir.Value | None = None  # what the operator's own scale replaces
    given: ir.Value | None = None  # else the scale, one element
    clip: ir.Value | None = None
    rotation: int = 0
    reshape: ir.Node | None = None  # of tokens, in front of everything that follows the modulation: it then follows the codes
    activation: str = "none"
    norm: str = "none"
    epsilon: float = 0.0
    vectors: dict[str, ir.Value] = dataclasses.field(default_factory=dict)  # the operator's inputs of these names
    gated: Gated | None = None
    left: str = ""  # why what stands in front of x stays there, where it could have gone

    @property
    def x(self) -> ir.Value:
        """What the operator reads."""
        return self.walk.x

    @classmethod
    def of(cls, quantize: ir.Node, around: Surroundings) -> Prologue:
        """As much as fits. UnfitError when not even the quantization does."""
        made = _quantization(quantize)
        made.walk = made.walk.past_cast(around.types)
        if made._rotate(around):
            made._explicit(around)
            made._compute(around)
        if not made.left and made.norm == made.activation == "none" and around.ahead(made.x):
            made.left = made.walk.shared()
        made.walk = made.walk.unwidened(around.types)
        if made.norm != "none":
            made._gate(around)
        return made

    def ungate(self, reason: str) -> None:
        """Leave the gated residual in front after all."""
        assert self.gated is not None
        self.walk, self.left, self.gated = self.gated.before, f"its gated residual {label(self.gated.add)} stays in front: {reason}", None

    def _gate(self, around: Surroundings) -> None:
        """A gated residual whose sum others read too; not where a layer of the plugin library computes it."""
        add = producer(self.x, "Add")
        if add is None or add in around.taken or not self.walk.shared():
            return
        at = next((i for i in (1, 0) if producer(add.inputs[i], "Mul") is not None), None)
        mul = None if at is None else producer(add.inputs[at], "Mul")
        if at is None or mul is None or only_reader(mul.outputs[0]) is not add:
            return
        residual, reasons = _there(add.inputs[1 - at]), [around.why_no_vector(_there(v), self.x) for v in mul.inputs]
        reasons = ["" if of_channels(v) else reason for v, reason in zip(mul.inputs, reasons, strict=True)]
        self.gated = Gated(add, self.walk, self.x, _there(mul.inputs[1]), residual)
        if "" not in reasons:
            return self.ungate(reasons[1])
        gate = 1 if not reasons[1] else 0
        x = _there(mul.inputs[1 - gate])
        if not (around.same_shape(residual, self.x) and around.same_shape(x, self.x)):
            return self.ungate("its operands are not of one shape")
        self.gated = dataclasses.replace(self.gated, gate=_there(mul.inputs[gate]))
        self.walk = self.walk.up(x, mul, add)

    def _rotate(self, around: Surroundings) -> bool:
        """Whether there is no rotation in front, or it goes in."""
        end = producer(self.x, "Reshape")
        found = None if end is None else around.rotations.get(end)
        if end is None or found is None:
            return True
        if reason := self.walk.shared() or no_sylvester(found):
            self.left = reason
            return False
        shape = producer(end.inputs[1], "Shape")
        self.walk = self.walk.up(found.nodes[0].inputs[0], *found.nodes, *([] if shape is None else [shape]))
        self.rotation = ROTATION
        return True

    def _explicit(self, around: Surroundings) -> None:
        """A balance and a shift that did not fold."""
        for name, kind in (("balance", "Mul"), ("center", "Sub")):
            node = producer(self.x, kind)
            at = None if node is None else next((i for i in (1, 0) if around.of_channels(node.inputs[i], self.x)), None)
            if node is None or at is None or (kind == "Sub" and at == 0) or self.walk.shared():
                continue
            if around.last_axis(node.inputs[1 - at]) == 1:  # one number of a token becomes its channels: x has others than its codes
                continue
            self.vectors[name] = _there(node.inputs[at])
            self.walk = self.walk.up(node.inputs[1 - at], node)

    def _compute(self, around: Surroundings) -> None:
        """GELU, or modulation and norm; in front of a Reshape of tokens if there is one."""
        start = self.walk
        reshape = producer(self.x, "Reshape")
        if (
            reshape is not None
            and around.last_axis(self.x) not in (None, 1)
            and around.last_axis(self.x) == around.last_axis(reshape.inputs[0])
        ):
            self.walk, self.reshape = self.walk.up(reshape.inputs[0], reshape), reshape
        before = self.walk
        behind = start.shared() if self.reshape is not None else ""
        gelu = producer(self.x, "Gelu")
        if gelu is not None and not (self.walk.shared() or behind):
            self.activation = _GELUS[gelu.attributes.get_string("approximate", "none")]
            self.walk = self.walk.up(gelu.inputs[0], gelu)
        elif gelu is None:
            self._normalize(around, behind)
        else:
            self.left = self.walk.shared() or behind
        if self.walk is before:
            self.walk, self.reshape = start, None

    def _normalize(self, around: Surroundings, behind: str) -> None:
        """Modulation and norm; of a norm that others read too, only the modulation. `behind`: why nothing in front may go."""
        walk, vectors = self.walk, dict[str, ir.Value]()
        for name, kind in (("shift", "Add"), ("gain", "Mul"), ("bias", "Add"), ("weight", "Mul")):
            walk = walk.past_cast(around.types)
            node = producer(walk.x, kind)
            if node is None or node in around.rms:
                continue
            try:
                at = _vector_of(node, around, constant_only=name in ("bias", "weight"))
            except UnfitError as reason:
                self.left = str(reason) if around.behind_norm(walk.x) else ""
                return
            if at is None:
                continue
            if walk.shared() or behind:
                self.left = (walk.shared() or behind) if around.behind_norm(walk.x) else ""
                return
            vectors[name] = _there(node.inputs[at])
            walk = walk.up(node.inputs[1 - at], node)
        walk = walk.past_cast(around.types)
        if not around.is_norm(walk.x):
            return
        try:
            self._norm(walk, vectors, around, walk.shared() or behind)
        except UnfitError as refused:
            self.left = str(refused)
            if vectors and vectors.keys() <= {"gain", "shift"} and not behind:
                self.walk = walk
                self.vectors |= vectors

    def _norm(self, walk: _Walk, vectors: dict[str, ir.Value], around: Surroundings, taken: str) -> None:
        """The norm that computes `walk.x`, in front of its vectors. UnfitError when it is none of the operator's, or `taken` by others."""
        if taken:
            raise UnfitError(taken)
        own = dict[str, ir.Value]()
        if (layer := producer(walk.x, "LayerNormalization")) is not None:
            if layer.attributes.get_int("axis", -1) != -1:
                raise UnfitError(f"{label(layer)} is not over the last axis")
            for name, value, idle in zip(("weight", "bias"), layer.inputs[1:], (1, 0), strict=False):
                if value is not None and not _is(value, idle):
                    own[name] = value
            if any(not of_channels(v) for v in own.values()):
                raise UnfitError(f"the weight of {label(layer)} is computed when the graph runs")
            nodes: tuple[ir.Node, ...] = (layer,)
            x, epsilon, kind = layer.inputs[0], layer.attributes.get_float("epsilon", 1e-5), "layer"
        else:
            end = walk.x.producer()
            assert end is not None
            nodes = around.rms[end]
            x, epsilon, kind = nodes[0].inputs[0], _epsilon(nodes), "rms"
            if any(len({use.node for use in n.outputs[0].uses()}) != 1 or n.outputs[0].is_graph_output() for n in nodes[:-1]):
                raise UnfitError(f"a part of the norm {label(end)} is also read by others")
        if own.keys() & vectors.keys():
            raise UnfitError(f"behind {label(nodes[-1])} there are more products and sums than QuantizeToken has")
        if not own and vectors.keys() <= {"gain", "shift"} and all(map(of_channels, vectors.values())):
            vectors = {{"gain": "weight", "shift": "bias"}[n]: v for n, v in vectors.items()}  # constants: the norm's own
        self.norm, self.epsilon = kind, epsilon
        self.vectors |= own | vectors
        if self.vectors.keys() == {"balance"}:
            self.vectors = {"weight": self.vectors["balance"]}
        self.walk = walk.up(x, *nodes)


def _quantization(quantize: ir.Node) -> Prologue:
    """The arithmetic that decides the codes, as `vditc.export.qdq` writes it."""
    value = _there(quantize.inputs[0])
    unit = small_constant(quantize.inputs[1])
    if quantize.outputs[0].dtype not in (None, ir.DataType.INT8) or quantize.attributes.get_int("output_dtype", 3) != 3:
        raise UnfitError("its codes are no integers")
    if unit is None or unit.size != 1:
        raise UnfitError("its scale is no constant of one element")
    walk, bits = _Walk(value, (quantize,), (quantize,)), 8
    if (clip := producer(value, "Clip")) is not None and not walk.shared():
        bits, bounds = activation_bits(quantize), [small_constant(v) for v in clip.inputs[1:]]
        if bits not in BITS or [None if b is None else float(b) for b in bounds] != [float(b) for b in code_range(bits)]:
            raise UnfitError(f"its codes are clipped to {' and '.join(map(str, bounds))}")
        walk = walk.up(clip.inputs[0], clip)
    divide = producer(walk.x, "Div")
    divisor = None if divide is None else divide.inputs[1]
    ranged = producer(divisor, "Max")
    if divide is None or divisor is None or walk.shared() or not (ranged is not None or by_step(divisor) or _is_scalar(divisor)):
        if bits != 8 and float(unit) != 1:
            raise UnfitError("it is clipped before it is divided by its scale")
        return Prologue(quantize, bits, walk, given=quantize.inputs[1])
    if float(unit) != 1:
        raise UnfitError("it has two scales")
    if ranged is None:
        return Prologue(quantize, bits, walk.up(divide.inputs[0], divide), given=divisor)
    return _dynamic(quantize, bits, walk, divide, ranged)


def _dynamic(quantize: ir.Node, bits: int, walk: _Walk, divide: ir.Node, ranged: ir.Node) -> Prologue:
    """s = Max(ReduceMax(|x|) [* clip] / high, EPS)."""
    least, part = small_constant(ranged.inputs[1]), producer(ranged.inputs[0], "Div")
    high = None if part is None else small_constant(part.inputs[1])
    if part is None or least is None or np.float32(least) != np.float32(EPS) or high is None or float(high) != code_range(bits)[1]:
        raise UnfitError(f"its scale is not its greatest value by {code_range(bits)[1]}, at least {EPS}")
    inner, clip, top = [ranged, part], None, part.inputs[0]
    if (clipped := producer(top, "Mul")) is not None:
        clip, top = clipped.inputs[1], clipped.inputs[0]
        inner.append(clipped)
        if not (by_step(clip) or _is_scalar(clip)):
            raise UnfitError("its clip is no number")
    reduce = producer(top, "ReduceMax")
    sizes = None if reduce is None else producer(reduce.inputs[0], "Abs")
    if reduce is None or sizes is None or sizes.inputs[0] is not divide.inputs[0]:
        raise UnfitError("its scale is not made of its greatest value")
    axes = small_constant(reduce.inputs[1]) if len(reduce.inputs) > 1 else None
    if axes is None or axes.tolist() != [-1] or reduce.attributes.get_int("keepdims", 1) != 1:
        raise UnfitError("one scale for the whole tensor, made when the graph runs: QuantizeToken would have to read all of it first")
    inner += [reduce, sizes]
    for node, reader in zip(inner[1:], inner, strict=False):
        if reason := _Walk(node.outputs[0], (reader,), ()).shared():
            raise UnfitError(reason)
    last = walk.up(divide.inputs[0], divide)
    walk = _Walk(last.x, (divide, sizes), (*last.nodes, *inner))
    return Prologue(quantize, bits, walk, scale=ranged.outputs[0], clip=clip)


def of_channels(value: ir.Value | None) -> bool:
    """A constant with a number for every channel."""
    array = constant(value)
    return array is not None and array.ndim > 0 and array.size == array.shape[-1] > 1


def _vector_of(node: ir.Node, around: Surroundings, *, constant_only: bool) -> int | None:
    """Which input of a product or sum is a vector; None when it must be a constant and is not. UnfitError says why none is."""
    found = next((i for i in (1, 0) if of_channels(node.inputs[i])), None)
    if found is not None or constant_only:
        return found
    reasons = [around.why_no_vector(_there(v), node.outputs[0]) for v in node.inputs]
    if "" in reasons:
        return 1 if not reasons[1] else 0
    raise UnfitError(reasons[0] if around.is_norm(node.inputs[1]) else reasons[1])


def no_sylvester(rotation: Rotation) -> str:
    """Why a rotation is not the operator's."""
    wanted = factors(ROTATION)
    assert wanted is not None
    left, right = rotation.left, rotation.right
    if left is None or right is None or not (np.array_equal(left, wanted[0].T) and np.array_equal(right, wanted[1])):
        return f"it is rotated in blocks of {rotation.block}; QuantizeToken rotates blocks of {ROTATION} by Sylvester's matrix"
    if any(only_reader(n.outputs[0]) is None for n in rotation.nodes[:-1]):
        return f"a part of the rotation {label(rotation.nodes[0])} is also read by others"
    return ""


def _epsilon(rms: tuple[ir.Node, ...]) -> float:
    """Of a norm that `rms_norms` found."""
    mean, add = rms[1], rms[2]
    axes = small_constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    epsilon = next((float(a) for v in add.inputs if (a := small_constant(v)) is not None and a.size == 1), 0.0)
    if axes is None or axes.tolist() != [-1] or mean.attributes.get_int("keepdims", 1) != 1 or epsilon <= 0:
        raise UnfitError(f"{label(rms[-1])} is no norm over the last axis with an epsilon")
    return epsilon


def _is_scalar(value: ir.Value | None) -> bool:
    array = small_constant(value)
    return array is not None and array.size == 1


def _is(value: ir.Value, number: float) -> bool:
    """Whether all elements of a constant are one number."""
    array = constant(value)
    return array is not None and bool((array == number).all())


def _there(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
