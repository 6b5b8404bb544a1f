"""One operator Attention instead of two products and a softmax.

    %s = Mul(%q, %scale)
    %t = Transpose<perm=[0, 1, 3, 2]>(%k)
    %a = MatMul(%s, %t)                        ->      %y = Attention<scale=0.125>(%q, %k, %v, %mask)
    %b = Add(%a, %mask)
    %w = Softmax<axis=-1>(%b)
    %y = MatMul(%w, %v)

with %q, %k, %v of float16 or bfloat16, [batch, heads, tokens, width]; the mask may be missing.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from vditc.graph_passes.attentions import DecomposedAttention, decomposed_attentions
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import remove_unread
from vditc.graph_passes.element_types import element_types

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormAttention(Pass):
    """Attention of opset 23 for QK^T, softmax and PV in 16 bits. Refusal: other types, another softmax, scores with other readers."""

    name: ClassVar[str] = "form-attention"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered", "opset-23"})

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        graph, types = model.graph, element_types(model.graph).of
        refusals: list[Refusal] = []
        modified = False
        for found in list(decomposed_attentions(graph)):
            if not isinstance(found, DecomposedAttention):
                refusals.append(Refusal(str(found[0].name), found[1]))
            elif (why := _reason(found, types)) is not None:
                refusals.append(Refusal(str(found.softmax.name), why))
            else:
                _replace(graph, found)
                modified = True
        return Result(model, modified, tuple(refusals))


def _reason(a: DecomposedAttention, types: dict[ir.Value, ir.DataType]) -> str | None:
    """Why this attention stays as it is."""
    read = [types.get(v) for v in (a.q, a.k, a.v)]
    if read[0] not in _HALF:
        return f"computed in {read[0].name.lower() if read[0] else 'an unknown type'}: engines have the operator in 16 bits alone"
    if any(found is not read[0] for found in read):
        return "queries, keys and values of different types"
    return a.shared()


def _replace(graph: ir.Graph, a: DecomposedAttention) -> None:
    name, k = str(a.softmax.name), a.k
    perm = list(a.transpose.attributes["perm"].as_ints())
    perm[2], perm[3] = perm[3], perm[2]
    if perm != [0, 1, 2, 3]:
        turned = ir.node("Transpose", [k], {"perm": perm}, name=f"{name}_keys")
        turned.outputs[0].name = f"{name}_keys"
        graph.insert_before(a.product, turned)
        k = turned.outputs[0]
    inputs = [a.q, k, a.v, *([] if a.mask is None else [a.mask])]
    made = ir.node("Attention", inputs, {"scale": a.scale}, name=name)
    old = a.product.outputs[0]
    new = made.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(a.product, made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    for node in (a.product, a.softmax, a.masking, a.scores):
        if node is not None:
            graph.remove(node, safe=True)
    remove_unread(graph, (a.scaling, a.transpose))
