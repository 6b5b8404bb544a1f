"""Which nodes behind the product of a quantized layer `vditc.QLinear` computes too: sums, a low-rank branch, GELU or a gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from vditc.graph_passes.channel_change import Array, constant, label
from vditc.graph_passes.epilogue import Epilogue
from vditc.graph_passes.inferred_shapes import Shape, why_not_spread
from vditc.graph_passes.patterns import QuantizedMatMul, only_reader, producer, weight_like
from vditc.plugins.plugin_op import FLOATS
from vditc.plugins.qlinear.op import ACTIVATIONS, LOW_RANKS, MAX_RANK

_OUTPUTS = {dtype: name for name, dtype in FLOATS.items()}
_GELUS = {approximate: name for name, approximate in ACTIVATIONS.items()}


@dataclasses.dataclass(eq=False)
class Branch:
    """A product behind a layer, (x' down_weight [K, R]) up [R, N], of 16-bit numbers: SVDQuant (arXiv 2411.05007)."""

    first: ir.Node  # MatMul
    second: ir.Node  # MatMul

    @property
    def rank(self) -> int:
        """R."""
        up = self.second.inputs[1]
        while (cast := producer(up, "Cast")) is not None:
            up = cast.inputs[0]
        assert up is not None and up.const_value is not None
        rank, _ = up.const_value.shape.numpy()
        return rank

    @property
    def padded(self) -> int:
        """The next rank that the operator has."""
        return min(r for r in LOW_RANKS if r >= self.rank)


@dataclasses.dataclass(eq=False)
class Absorbed:
    """Nodes behind a product that the operator computes, up to the value `end`, and what it needs for them."""

    end: ir.Value
    nodes: list[ir.Node]
    left: ir.Value | None = None
    right: ir.Value | None = None
    branch: Branch | None = None
    bias: Array | None = None
    activation: str = "none"
    gate: ir.Value | None = None
    residual: ir.Value | None = None
    output: str = "fp32"
    stays: str = ""  # why a branch, or a gate and a residual, stay behind the layer, and what follows them

    @classmethod
    def behind(cls, layer: QuantizedMatMul, known: Mapping[ir.Value, int], shapes: Mapping[str, Shape]) -> Absorbed:
        """As many as fit, in the operator's order: sums, the cast, a branch, then GELU or gate and residual.

        `known`: axes of values; `shapes`: of values by name, as far as they are known.
        """
        found = Epilogue.of(layer)
        made = cls(found.start, [n for n in (layer.matmul, layer.rescale) if n is not None])
        for term in found.terms:
            if term.constant and made.bias is None:
                made.bias = constant(term.value)
            elif term.product is not None and made.left is None and _rank(term.product[1]) <= MAX_RANK:
                made.left, made.right = term.product
                made.take(term.value.producer())
            else:
                return made
            made.take(term.add)
        if (cast := only_reader(made.end)) is not None and cast.op_type == "Cast":
            if ir.DataType(cast.attributes["to"].as_int()) not in _OUTPUTS:
                return made
            made.output = _OUTPUTS[ir.DataType(cast.attributes["to"].as_int())]
            made.take(cast)
        if not made._low_rank(layer):
            return made
        if (gelu := only_reader(made.end)) is not None and gelu.op_type == "Gelu":
            made.activation = _GELUS[gelu.attributes.get_string("approximate", "none")]
            made.take(gelu)
        elif (mul := only_reader(made.end)) is not None and mul.op_type == "Mul":
            add = only_reader(mul.outputs[0])
            if add is not None and add.op_type == "Add":
                gate, residual = other(mul, made.end), other(add, mul.outputs[0])
                axes = known.get(made.end)
                if axes is not None and all(v is not None and known.get(v, axes + 1) <= axes for v in (gate, residual)):
                    made.stays = made._unspread(mul, layer, axes, shapes, gate=gate, residual=residual)
                    if not made.stays:
                        made.gate, made.residual = gate, residual
                        made.take(mul, add)
        return made

    def _unspread(self, mul: ir.Node, layer: QuantizedMatMul, axes: int, shapes: Mapping[str, Shape], **read: ir.Value | None) -> str:
        """Why the operator does not repeat a gate or a residual for all tokens; "" if it does, or for all that is known of their shapes."""
        whole = shapes.get(str(self.end.name), (None,) * axes)
        codes = layer.weight.inputs[0]
        if codes is not None and codes.const_value is not None:
            whole = (*whole[:-1], codes.const_value.shape.numpy()[-1])
        for role, value in read.items():
            own = None if value is None else shapes.get(str(value.name))
            if value is not None and own is not None and (why := why_not_spread(own, whole)):
                return f"its gated residual {label(mul)} stays behind: the {role} {value.name} {why}"
        return ""

    def _low_rank(self, layer: QuantizedMatMul) -> bool:
        """Whether there is no branch behind it, or it is taken."""
        add = only_reader(self.end)
        second = None if add is None or add.op_type != "Add" else producer(other(add, self.end), "MatMul")
        first = None if second is None else producer(second.inputs[0], "MatMul")
        if add is None or second is None or first is None or not all(weight_like(n.inputs[1]) for n in (first, second)):
            return True
        branch = Branch(first, second)
        self.stays = self._unfit(branch, layer)
        if not self.stays:
            self.branch = branch
            self.take(second, add)
        return not self.stays

    def _unfit(self, branch: Branch, layer: QuantizedMatMul) -> str:
        """Why the operator does not compute a branch; "" if it does."""
        name = label(branch.second)
        if self.output == "fp32":
            return f"its branch {name} is computed in float32; QLinear's factors have 16 bits"
        if branch.rank > LOW_RANKS[-1]:
            return f"its branch {name} has rank {branch.rank}; QLinear adds up to {LOW_RANKS[-1]}"
        if only_reader(branch.second.outputs[0]) is None:
            return f"its branch {name} is read by others too"
        if branch.rank != branch.padded and only_reader(branch.first.outputs[0]) is None:
            return f"its branch {name} has rank {branch.rank}, no multiple of 16, and others read {label(branch.first)}"
        if _uncast(branch.first.inputs[0]) is not _quantized(layer):
            return f"its branch {name} reads {branch.first.inputs[0].name if branch.first.inputs[0] else '?'}, not what the layer quantizes"
        return ""

    def take(self, *nodes: ir.Node | None) -> None:
        """Nodes that the operator computes; the last one's output is its own."""
        self.nodes += [node for node in nodes if node is not None]
        self.end = self.nodes[-1].outputs[0]


def other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other operand of a node of two."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _rank(right: ir.Value) -> int:
    """R of an initialiser [R, N]."""
    assert right.const_value is not None
    rank, _ = right.const_value.shape.numpy()
    return rank


def _quantized(layer: QuantizedMatMul) -> ir.Value | None:
    """The tensor whose tokens a layer's codes are; None where they lie in another order."""
    quantize = layer.quantize
    if quantize is None or producer(layer.activation.inputs[0], "Reshape") is not None:
        return None
    value = quantize.inputs[0]
    if quantize.op_type == "QuantizeLinear":
        while (node := producer(value, "Clip", "Div")) is not None:
            value = node.inputs[0]
    return _uncast(value)


def _uncast(value: ir.Value | None) -> ir.Value | None:
    while (cast := producer(value, "Cast")) is not None:
        value = cast.inputs[0]
    return value
