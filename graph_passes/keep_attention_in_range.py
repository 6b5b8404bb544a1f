"""Attention in bfloat16 within a graph of float16: q, k and v are rounded to it, the result comes back.

    %t = Transpose<perm=[0, 1, 3, 2]>(%k)      %t = Transpose<perm=[0, 1, 3, 2]>(Cast<to=16>(%k))
    %a = MatMul(%q, %t)                        %a = MatMul(Cast<to=16>(%q), %t)
    %b = Add(%a, %mask)                        %b = Add(%a, Cast<to=16>(%mask))
    %w = Softmax<axis=-1>(%b)          ->      %w = Softmax<axis=-1>(%b)
    %y = MatMul(%w, %v)                        %p = MatMul(%w, Cast<to=16>(%v))
                                               %y = Cast<to=10>(%p)

Fused float16 attention sums its weights in float16, which ends at 65,504: over more keys it gives NaN. The queries are scaled in float16,
in front of the Cast.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from vditc.graph_passes.attentions import DecomposedAttention, decomposed_attentions
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import cast_behind, remove_unread
from vditc.graph_passes.element_types import element_types
from vditc.graph_passes.spec import Spec

_HALF, _WIDE = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepAttentionInRange(Pass):
    """Attention of a float16 graph in bfloat16, which counts any number of keys. Refusal: another softmax, scores with other readers."""

    name: ClassVar[str] = "keep-attention-in-range"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered"})

    def spec_after(self, spec: Spec) -> Spec:
        """Attention may be of another type than the rest."""
        return dataclasses.replace(spec, attention="bf16")

    def numerics(self) -> str:
        """Eight bits of q, k, v, scores and weights."""
        return "attention-bf16"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        work = _Casts(model.graph)
        refusals: list[Refusal] = []
        modified = False
        for found in list(decomposed_attentions(model.graph)):
            if not isinstance(found, DecomposedAttention):
                refusals.append(Refusal(str(found[0].name), found[1]))
            elif all(work.types.get(v) is _HALF for v in (found.q, found.k, found.v)):
                if (why := found.shared()) is not None:
                    refusals.append(Refusal(str(found.softmax.name), why))
                else:
                    work.widen(found)
                    modified = True
        return Result(model, modified, tuple(refusals))


class _Casts:
    """One run over one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.types = graph, element_types(graph).of
        self.made: dict[ir.Value, ir.Value] = {}

    def widen(self, a: DecomposedAttention) -> None:
        """Put one attention between Casts."""
        keys = ir.node("Transpose", [self.wide(a.k)], {"perm": a.transpose.attributes["perm"].as_ints()}, name=f"{a.softmax.name}/keys")
        keys.outputs[0].name = f"{a.softmax.name}/keys"
        self.graph.insert_before(a.scores, keys)
        a.scores.replace_input_with(0, self.wide(a.scores.inputs[0]))
        a.scores.replace_input_with(1, keys.outputs[0])
        if a.masking is not None:
            at = next(i for i, v in enumerate(a.masking.inputs) if v is a.mask)
            a.masking.replace_input_with(at, self.wide(a.mask))
        a.product.replace_input_with(1, self.wide(a.v))
        out = a.product.outputs[0]
        back = ir.node("Cast", [out], {"to": int(_HALF)}, name=f"{a.product.name}/float16")
        new = back.outputs[0]
        new.name, new.type, new.shape = out.name, out.type, out.shape
        out.replace_all_uses_with(new, replace_graph_outputs=True)
        back.replace_input_with(0, out)
        out.name = f"{out.name}.bfloat16"
        self.graph.insert_after(a.product, back)
        for value in (out, *(n.outputs[0] for n in a.inner)):
            value.type = ir.TensorType(_WIDE)
        remove_unread(self.graph, [a.transpose])

    def wide(self, value: ir.Value | None) -> ir.Value:
        """`value` in bfloat16, made once, right behind what computes it."""
        assert value is not None
        if value not in self.made:
            self.made[value] = cast_behind(self.graph, value, _WIDE)
        return self.made[value]
