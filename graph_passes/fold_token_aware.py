"""Make one term of all that a method adds behind the product of a quantized layer.

    %y1 = Add(%y0, %bias)                    biases [N]           %y1 = Add(%y0, %bias')              with %bias' = %bias + %correction
    %y2 = Add(%y1, %correction)                                   %u  = Concat<axis=-1>(%total, %share)             [..., R]
    %y3 = Add(%y2, Mul(%total, %offset))                    ->    %y  = Add(%y1, MatMul(%u, %v))      with %v = [%offset; %beta] [R, N]
    %y  = Add(%y3, Mul(%share, %beta))

What a shift took away (`bias_correction`) becomes part of the bias. The zero points of asymmetric weights and the estimate of Q-VDiT
(arXiv 2505.22167, section 3.2; its factors of frames are in %share, one number for each token) become one sum of outer products, which is
the term of rank R of `vditc.QLinear`. Without that operator the outer products stay as they are (`rank_term=false`): TensorRT computes
them together with the scale and the bias, and a MatMul would be a kernel of its own that writes [..., N].
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.channel_change import Array, constant, forget, label
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import inserted
from vditc.graph_passes.epilogue import Epilogue, Term
from vditc.graph_passes.patterns import quantized_matmuls
from vditc.plugins.qlinear.op import MAX_RANK


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldTokenAware(Pass):
    """One bias, and one term of rank R of zero points and estimates. Refusal: more outer products than QLinear adds."""

    name: ClassVar[str] = "fold-token-aware"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered", "constants-folded"})

    rank_term: bool = True

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        refusals: list[Refusal] = []
        modified = False
        for layer in list(quantized_matmuls(model.graph)):
            found = Epilogue.of(layer)
            outer = [t for t in found.terms if t.outer is not None] if self.rank_term else []
            if len(outer) > MAX_RANK:
                refusals.append(Refusal(label(layer.matmul), f"{len(outer)} outer products behind it; QLinear adds {MAX_RANK}"))
                outer = []
            constants = [t for t in found.terms if t.constant]
            if len(constants) > 1 or outer:
                _rewrite(model.graph, found, label(layer.matmul).removesuffix("/MatMul"), constants, outer)
                modified = True
        return Result(model, modified, tuple(refusals))


def _rewrite(graph: ir.Graph, found: Epilogue, layer: str, constants: list[Term], outer: list[Term]) -> None:
    """The same sum: one constant, one product in place of the outer products, then the other terms in their order."""
    last, end = found.terms[-1].add, found.end
    total = found.start

    def op(kind: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
        return inserted(graph, last, kind, inputs, name, **attributes)

    if constants:
        bias = _stored(graph, f"{layer}.bias.folded", sum(_wide(t.value) for t in constants))
        total = op("Add", [total, bias], f"{layer}/Add_bias_folded")
    if outer:
        tokens, vectors = zip(*(t.outer for t in outer if t.outer is not None), strict=True)
        left = tokens[0] if len(tokens) == 1 else op("Concat", list(tokens), f"{layer}/Concat_rank", axis=-1)
        product = op("MatMul", [left, _stored(graph, f"{layer}.rank", np.stack([_wide(v) for v in vectors]))], f"{layer}/MatMul_rank")
        total = op("Add", [total, product], f"{layer}/Add_rank")
    for other in (t for t in found.terms if t not in (*constants, *outer)):
        total = op("Add", [total, other.value], label(other.add))
    name, total.type, total.shape = end.name, end.type, end.shape
    end.replace_all_uses_with(total, replace_graph_outputs=True)
    graph.remove([t.add for t in found.terms], safe=True)
    graph.remove([m for t in outer if (m := t.value.producer()) is not None], safe=True)
    for term in constants:
        forget(graph, term.value)
    total.name = name


def _wide(value: ir.Value) -> Array:
    """The elements of a constant."""
    array = constant(value)
    assert array is not None
    return array.astype(np.float64)


def _stored(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """A new initialiser, float32."""
    made = ir.val(name, const_value=ir.tensor(np.asarray(array, np.float32), name=name))
    graph.initializers.add(made)
    return made
