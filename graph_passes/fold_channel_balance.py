"""Put the balance and the shift of a quantized layer's input into what computes that input.

    %a  = Mul(LayerNormalization(%h, %ones), %scale)             %a  = Mul(LayerNormalization(%h, %m), %scale)
    %x  = Add(%a, %shift)                                        %x  = Add(%a, Add(Mul(%shift, %m), %-zm))      vectors, not tokens
    %x1 = Sub(%x, %z)                                     ->     ... quantize %x
    %x2 = Mul(%x1, %m)   ... quantize %x2

`vditc.graph_passes.absorption` says what takes them. What stays is a refusal: behind GELU, in the residual stream, in a tensor that other
layers read as it is or with another balance. A factor alone folds where a shift cannot; the shift is then in units of the balanced tensor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vditc.errors import InputError
from vditc.graph_passes.absorption import Absorption
from vditc.graph_passes.channel_change import AbsorptionError, Array, Change, Plan, constant, forget, label
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.patterns import consumers, only_reader, producer

_NAME = re.compile(r"(.+)/(Mul_balance|Sub_shift)(_\d+)?")


@dataclasses.dataclass(frozen=True, eq=False)
class Transformed:
    """The explicit transform of one input: Mul(Sub(x, shift), balance), or one of the two."""

    layer: str
    x: ir.Value
    nodes: tuple[ir.Node, ...]  # Sub, Mul
    shift: Array | None
    balance: Array | None

    @property
    def output(self) -> ir.Value:
        """x'."""
        return self.nodes[-1].outputs[0]

    @property
    def change(self) -> Change:
        """x' of x."""
        factor = np.ones(()) if self.balance is None else self.balance.astype(np.float64)
        return Change(factor, None if self.shift is None else -self.shift.astype(np.float64) * factor)

    def key(self) -> tuple[bytes, ...]:
        """Equal for transforms that do the same."""
        return tuple(b"-" if a is None else a.tobytes() for a in (self.shift, self.balance))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldChannelBalance(Pass):
    """Makes Mul and Sub in front of quantization disappear. Refusal: a producer that cannot take them, with the reason."""

    name: ClassVar[str] = "fold-channel-balance"
    needs: ClassVar[frozenset[str]] = frozenset({"canonical", "constants-folded"})

    explicit: bool = False  # leave everything as it is, to compare with

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring; InputError for a factor that is 0, infinite or NaN, with its layer and channel."""
        found = list(transformed_inputs(model.graph))
        if self.explicit or not found:
            return Result(model, modified=False)
        absorption = Absorption(model)
        by_input: dict[ir.Value, list[Transformed]] = {}
        for one in found:
            by_input.setdefault(one.x, []).append(one)
        refusals: list[Refusal] = []
        folded = False
        for x, readers in by_input.items():
            try:
                plan, rest = _plan(absorption, x, readers)
            except AbsorptionError as reason:
                refusals += [Refusal(label(r.nodes[-1]), str(reason)) for r in readers]
                continue
            plan.apply()
            for reader in readers:
                _remove(model.graph, absorption, reader, keep_shift=rest is not None)
                if rest is not None:
                    refusals.append(Refusal(label(reader.nodes[0]), rest))
            refusals += [Refusal(readers[0].layer, f"the channels of {part} stay explicit: {reason}") for part, reason in plan.left]
            folded = True
        return Result(model, folded, tuple(refusals))


def transformed_inputs(graph: ir.Graph) -> list[Transformed]:
    """Every explicit transform, by the names that the exporter gives its nodes."""
    found: list[Transformed] = []
    for node in graph:
        match = _NAME.fullmatch(node.name or "")
        if match is None or node.op_type != {"Mul_balance": "Mul", "Sub_shift": "Sub"}[match[2]]:
            continue
        x, array = node.inputs[0], constant(node.inputs[1])
        if x is None or array is None or constant(x) is not None:
            continue
        is_balance = node.op_type == "Mul"
        wrong = np.flatnonzero(~np.isfinite(array) | (is_balance & (array == 0)))
        if wrong.size:
            raise InputError(
                found=f"a {'balance' if is_balance else 'shift'} of {array.reshape(-1)[wrong[0]]} for channel {wrong[0]}",
                wanted="finite factors other than 0, finite shifts",
                where=f"layer {match[1]}",
                fix="calibrate again",
            )
        if is_balance:
            before = producer(x, "Sub")
            if before is not None and _NAME.fullmatch(before.name or "") and only_reader(x) is not None:
                assert before.inputs[0] is not None
                found.append(Transformed(match[1], before.inputs[0], (before, node), constant(before.inputs[1]), array))
            else:
                found.append(Transformed(match[1], x, (node,), None, array))
        else:
            after = consumers(node.outputs[0], "Mul")
            if not any(_NAME.fullmatch(n.name or "") for n in after) or len(tuple(node.outputs[0].uses())) != 1:
                found.append(Transformed(match[1], x, (node,), array, None))
    return found


def _plan(absorption: Absorption, x: ir.Value, readers: list[Transformed]) -> tuple[Plan, str | None]:
    """The plan, and why the shift stays if it does."""
    first = readers[0]
    if any(r.key() != first.key() for r in readers):
        raise AbsorptionError(f"{x.name} is read with {len({r.key() for r in readers})} transforms, by {_names(r.layer for r in readers)}")
    if outputs := [label(n) for r in readers for n in r.nodes if n.outputs[0].is_graph_output()]:
        raise AbsorptionError(f"the graph gives out what {outputs[0]} makes")
    own = {r.nodes[0] for r in readers}
    if others := [label(u.node) for u in x.uses() if u.node not in own]:
        raise AbsorptionError(f"{x.name} is also read as it is, by {_names(others)}")
    try:
        return absorption.plan(x, first.change), None
    except AbsorptionError as reason:
        if first.shift is None or first.balance is None:
            raise
        return absorption.plan(x, first.change.linear), str(reason)


def _names(names: Iterable[str]) -> str:
    first, *rest = dict.fromkeys(names)
    return first + (f", {', '.join(rest[:2])}" if rest else "") + (", ..." if len(rest) > 2 else "")


def _remove(graph: ir.Graph, absorption: Absorption, reader: Transformed, *, keep_shift: bool) -> None:
    """What is folded goes; a shift that stays is one of the balanced tensor."""
    x = reader.x
    if keep_shift:
        sub = reader.nodes[0]
        assert reader.shift is not None and reader.balance is not None
        moved = np.asarray(reader.shift.astype(np.float64) * reader.balance, np.float32)
        before = sub.inputs[1]
        sub.replace_input_with(1, absorption.constant(sub, 1, moved))
        forget(graph, before)
        x = sub.outputs[0]
    reader.output.replace_all_uses_with(x)
    gone = reader.nodes[1:] if keep_shift else reader.nodes
    constants = [node.inputs[1] for node in gone]
    graph.remove(gone, safe=True)
    for value in constants:
        forget(graph, value)
