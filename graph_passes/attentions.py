"""Attention as the export writes it: two products and a softmax."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from vditc.graph_passes.patterns import only_reader, producer, small_constant


@dataclasses.dataclass(frozen=True)
class DecomposedAttention:
    """softmax(q * scale k^T + mask) v.

    q -> [Mul by scale] -> MatMul <- Transpose <- k;  MatMul -> [Add of mask] -> Softmax -> MatMul <- v
    """

    scaling: ir.Node | None  # Mul of the queries
    transpose: ir.Node  # of the keys
    scores: ir.Node  # MatMul
    masking: ir.Node | None  # Add
    softmax: ir.Node
    product: ir.Node  # MatMul

    @property
    def scale(self) -> float:
        """By which the queries are multiplied."""
        found = None if self.scaling is None else next((s for v in self.scaling.inputs if (s := _scalar(v)) is not None), None)
        return 1.0 if found is None else found

    @property
    def q(self) -> ir.Value:
        """Queries, [batch, heads, queries, width], not scaled."""
        value = self.scores.inputs[0] if self.scaling is None else next(v for v in self.scaling.inputs if _scalar(v) is None)
        assert value is not None
        return value

    @property
    def k(self) -> ir.Value:
        """What `transpose` makes keys [batch, heads, width, keys] of."""
        assert self.transpose.inputs[0] is not None
        return self.transpose.inputs[0]

    @property
    def v(self) -> ir.Value:
        """Values, [batch, heads, keys, width]."""
        assert self.product.inputs[1] is not None
        return self.product.inputs[1]

    @property
    def mask(self) -> ir.Value | None:
        """Added to the scores."""
        return None if self.masking is None else next(v for v in self.masking.inputs if v is not self.scores.outputs[0])

    def shared(self) -> str | None:
        """Why it cannot be changed as one: something else reads what is within it."""
        for node in self.inner:
            if only_reader(node.outputs[0]) is None:
                return f"the output of {node.name} has another reader"
        return None

    @property
    def inner(self) -> tuple[ir.Node, ...]:
        """Nodes whose outputs nobody else should read, in order."""
        return tuple(n for n in (self.scores, self.masking, self.softmax) if n is not None)


def decomposed_attentions(graph: ir.Graph) -> Iterator[DecomposedAttention | tuple[ir.Node, str]]:
    """Every attention over four-dimensional queries, keys and values; a Softmax that is none, with the reason."""
    for softmax in graph:
        if softmax.op_type != "Softmax":
            continue
        if softmax.attributes.get_int("axis", -1) not in (-1, 3):
            yield softmax, "a softmax over another axis than the last"
            continue
        masking = producer(softmax.inputs[0], "Add")
        read = softmax.inputs if masking is None else masking.inputs
        scores = next((n for v in read if (n := producer(v, "MatMul")) is not None), None)
        transpose = producer(scores.inputs[1], "Transpose") if scores is not None else None
        products = [use for use in softmax.outputs[0].uses() if use.node.op_type == "MatMul" and use.idx == 0]
        if scores is None or transpose is None or len(transpose.attributes["perm"].as_ints()) != 4 or not products:
            yield softmax, "a softmax that does not stand between two products of heads"
            continue
        scaling = producer(scores.inputs[0], "Mul")
        if scaling is not None and all(_scalar(v) is None for v in scaling.inputs):
            scaling = None
        yield DecomposedAttention(scaling, transpose, scores, masking, softmax, products[0].node)


def _scalar(value: ir.Value | None) -> float | None:
    array = small_constant(value)
    return float(array) if array is not None and array.shape == () else None
