"""What stands behind the product of a quantized linear layer, up to where something else reads it."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from vditc.graph_passes.patterns import QuantizedMatMul, by_step, of_quantizer, only_reader, producer, small_constant


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """One Add and what it adds: a constant [N], or what one of the fields says. Constants are not read here."""

    add: ir.Node
    value: ir.Value
    outer: tuple[ir.Value, ir.Value] | None = None  # u [..., 1], one number for each token, times the constant v [N]
    product: tuple[ir.Value, ir.Value] | None = None  # left [..., R] times the initialiser right [R, N]

    @property
    def constant(self) -> bool:
        """Whether it adds a constant."""
        return self.outer is None and self.product is None


@dataclasses.dataclass(frozen=True, eq=False)
class Epilogue:
    """Adds behind a product and its scale, in order. Values between `start` and `end` have one reader and are no outputs of the graph."""

    start: ir.Value  # the product, scaled
    terms: tuple[Term, ...]

    @property
    def end(self) -> ir.Value:
        """The sum of all."""
        return self.terms[-1].add.outputs[0] if self.terms else self.start

    @classmethod
    def of(cls, layer: QuantizedMatMul) -> Epilogue:
        """Of one layer, up to the first reader that adds nothing of a known kind."""
        start = (layer.rescale or layer.matmul).outputs[0]
        terms: list[Term] = []
        end = start
        codes = layer.weight.inputs[0]
        n = None if codes is None or codes.const_value is None else codes.const_value.shape.numpy()[-1]
        while (add := only_reader(end)) is not None and add.op_type == "Add" and (term := _term(add, end, n)) is not None:
            terms.append(term)
            end = add.outputs[0]
        return cls(start, tuple(terms))


def _term(add: ir.Node, to: ir.Value, n: int | None) -> Term | None:
    """What `add` adds to the value `to`, which has `n` channels."""
    value = add.inputs[1] if add.inputs[0] is to else add.inputs[0]
    if value is None:
        return None
    if _vector(value, n):
        return Term(add, value)
    if only_reader(value) is None:
        return None
    if (node := producer(value, "Mul")) is not None and (parts := _outer(node, n)) is not None:
        return Term(add, value, outer=parts)
    if (node := producer(value, "MatMul")) is not None:
        left, right = node.inputs
        if left is not None and right is not None and right.const_value is not None and len(right.const_value.shape) == 2:
            return Term(add, value, product=(left, right))
    return None


def _outer(product: ir.Node, n: int | None) -> tuple[ir.Value, ir.Value] | None:
    """(u, v) of u [..., 1] times v [N]."""
    for u, v in (product.inputs, reversed(product.inputs)):
        if u is not None and v is not None and _vector(v, n) and of_token(u):
            return u, v
    return None


def _vector(value: ir.Value, n: int | None) -> bool:
    """Whether it is a constant [N], as it is stored or cast."""
    while (cast := producer(value, "Cast")) is not None and cast.inputs[0] is not None:
        value = cast.inputs[0]
    return value.const_value is not None and n is not None and value.const_value.shape.numpy() == (n,)


def of_token(value: ir.Value | None) -> bool:
    """Whether a value is one number for each token, [..., 1]: a sum over channels, scaled, and maybe written in another order and back."""
    if of_quantizer(value):
        return True
    node = producer(value, "ReduceSum", "Mul", "Reshape")
    if node is None:
        return False
    match node.op_type:
        case "ReduceSum":
            axes = small_constant(node.inputs[1]) if len(node.inputs) > 1 else None
            return axes is not None and axes.tolist() == [-1] and node.attributes.get_int("keepdims", 1) == 1
        case "Mul":
            return any(of_token(a) and _scalar_or_of_token(b) for a, b in (node.inputs, reversed(node.inputs)))
        case _:
            shape = producer(node.inputs[1], "Shape")
            return shape is not None and not shape.attributes and of_token(shape.inputs[0])


def _scalar_or_of_token(value: ir.Value | None) -> bool:
    """What does not widen [..., 1] when it is multiplied with it: a dynamic scale, a scale of the step, a number."""
    if by_step(value) or of_token(value):
        return True
    if (array := small_constant(value)) is not None:
        return array.size == 1
    node = producer(value, "Max", "Div", "Mul", "ReduceMax")
    while node is not None and node.op_type != "ReduceMax":
        node = producer(node.inputs[0], "Max", "Div", "Mul", "ReduceMax")
    return node is not None and (len(node.inputs) == 1 or node.attributes.get_int("keepdims", 1) == 1)
