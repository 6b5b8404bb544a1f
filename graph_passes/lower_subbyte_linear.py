"""Hand quantized layers with weights of 4 and 3 bits to the plugin library.

    %q  = QuantizeLinear(%x / %s, 1)         int8                %q = QuantizeLinear(%x / %s, 1)
    %p  = MatMul(DequantizeLinear(%q, 1), DequantizeLinear(%c, %sw))
    %y1 = Mul(%p, %s)                                            %h = vditc.QLinear<n, k, bits, rank, bias, activation,
    %y2 = Add(%y1, MatMul(%u, %v))      of fold-token-aware  ->                     gated, output>(
    %y3 = Cast<to=10>(Add(%y2, %bias))                                  %q, %s, %packed, %sw, %u, %v, %bias, %gate, %r)
    %h  = Add(%r, Mul(%gate, %y3))      or Gelu(%y3)

TensorRT stores such weights in 4 bits but unpacks them by a kernel of its own in every run, and has none for 3. Codes that all fit three
bits are packed in three (`vditc.plugins.packing`), others in four; with `eight=true` layers of 8 bits are handed over too. Who quantizes
the input stays: TensorRT fuses it with the norm in front, and int8 tensors go into a plugin as they are. What does not fit the epilogue
stays behind the layer. Packed weights are made when the graph is written, one layer at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.graph_passes.channel_change import constant, forget, label
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import remove_unread
from vditc.graph_passes.epilogue import Epilogue
from vditc.graph_passes.patterns import QuantizedMatMul, activation_bits, blocked, only_reader, quantized_matmuls, small_constant
from vditc.graph_passes.ranks import ranks
from vditc.graph_passes.tensor_bytes import tensor_bytes
from vditc.plugins.catalogue import attach_functions
from vditc.plugins.packing import code_range, pack, packed_bytes
from vditc.plugins.plugin_op import FLOATS
from vditc.plugins.qlinear.op import ACTIVATIONS, MAX_RANK, QLinear

Array = npt.NDArray[Any]
_OUTPUTS = {dtype: name for name, dtype in FLOATS.items()}
_FEW = 1 << 12  # bytes
_GELUS = {approximate: name for name, approximate in ACTIVATIONS.items()}


class _UnfitError(Exception):
    """A layer that the operator does not take; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowerSubbyteLinear(Pass):
    """Q/DQ products with weights of few bits -> `vditc.QLinear`, weights packed. Refusal: a layer that it does not take."""

    name: ClassVar[str] = "lower-subbyte-linear"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered", "constants-folded"})

    eight: bool = False

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        refusals: list[Refusal] = []
        figures = {"layers handed over": 0, "bytes of their weights": 0}
        known = ranks(model.graph)
        for layer in list(quantized_matmuls(model.graph)):
            codes = layer.weight.inputs[0]
            if codes is None or codes.dtype not in ((ir.DataType.INT4, ir.DataType.INT8) if self.eight else (ir.DataType.INT4,)):
                continue
            try:
                op = _lower(model.graph, layer, known)
            except _UnfitError as reason:
                refusals.append(Refusal(label(layer.matmul), str(reason)))
                continue
            figures["layers handed over"] += 1
            figures["bytes of their weights"] += packed_bytes(op.n, op.k, op.bits)
        if not figures["layers handed over"]:
            return Result(model, modified=False, refusals=tuple(refusals))
        attach_functions(model)
        return Result(model, modified=True, refusals=tuple(refusals), figures=figures)


@dataclasses.dataclass(eq=False)
class _Absorbed:
    """Nodes behind a product that the operator computes, up to the value `end`, and what it needs for them."""

    end: ir.Value
    nodes: list[ir.Node]
    left: ir.Value | None = None
    right: ir.Value | None = None
    bias: Array | None = None
    activation: str = "none"
    gate: ir.Value | None = None
    residual: ir.Value | None = None
    output: str = "fp32"

    @classmethod
    def behind(cls, layer: QuantizedMatMul, known: Mapping[ir.Value, int]) -> _Absorbed:
        """As many as fit, in the operator's order: the sums, the cast, then GELU or gate and residual. `known`: axes of values."""
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
            made.output = _OUTPUTS[ir.DataType(cast.attributes["to"].as_int())]
            made.take(cast)
        if (gelu := only_reader(made.end)) is not None and gelu.op_type == "Gelu":
            made.activation = _GELUS[gelu.attributes.get_string("approximate", "none")]
            made.take(gelu)
        elif (mul := only_reader(made.end)) is not None and mul.op_type == "Mul":
            add = only_reader(mul.outputs[0])
            if add is not None and add.op_type == "Add":
                gate, residual = _other(mul, made.end), _other(add, mul.outputs[0])
                axes = known.get(made.end)
                if axes is not None and all(v is not None and known.get(v, axes + 1) <= axes for v in (gate, residual)):
                    made.gate, made.residual = gate, residual
                    made.take(mul, add)
        return made

    def take(self, *nodes: ir.Node | None) -> None:
        """Nodes that the operator computes; the last one's output is its own."""
        self.nodes += [node for node in nodes if node is not None]
        self.end = self.nodes[-1].outputs[0]


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _rank(right: ir.Value) -> int:
    """R of an initialiser [R, N]."""
    assert right.const_value is not None
    rank, _ = right.const_value.shape.numpy()
    return rank


def _lower(graph: ir.Graph, layer: QuantizedMatMul, known: dict[ir.Value, int]) -> QLinear:
    """Put the operator in the place of a layer; _UnfitError, and nothing changed, when it cannot be. `known`: axes of values."""
    quantize, codes = layer.quantize, layer.weight.inputs[0]
    assert codes is not None and codes.const_value is not None
    k, n = codes.const_value.shape.numpy()
    weight_scale, one = constant(layer.weight.inputs[1]), small_constant(layer.activation.inputs[1])
    if quantize is None or one is None or one.size != 1:
        raise _UnfitError("its codes are not made by QuantizeLinear or QuantizeToken with one constant scale")
    by_output = layer.weight.attributes.get_int("axis", 1) in (1, -1)
    if blocked(layer.weight) or weight_scale is None or not (weight_scale.size == 1 or (by_output and weight_scale.size == n)):
        raise _UnfitError("its weight has no scale per output channel")
    scale = layer.activation.inputs[1]
    if layer.rescale is not None:
        if float(one) != 1:
            raise _UnfitError(f"its input has two scales, {float(one)} and {layer.rescale.name}'s")
        if only_reader(layer.matmul.outputs[0]) is None:
            raise _UnfitError("its product is read before it is scaled")
        scale = _other(layer.rescale, layer.matmul.outputs[0])
    found, name = _Absorbed.behind(layer, known), label(layer.matmul).removesuffix("/MatMul")
    op = QLinear(
        n=n,
        k=k,
        bits=_bits(codes.const_value),
        activation_bits=activation_bits(quantize),
        rank=0 if found.right is None else _rank(found.right),
        bias=found.bias is not None,
        activation=found.activation,
        gated=found.gate is not None,
        output=found.output,
    )

    def stored(suffix: str, tensor: ir.TensorProtocol) -> ir.Value:
        made = ir.val(f"{name}.{suffix}", const_value=tensor)
        tensor.name = made.name
        graph.initializers.add(made)
        return made

    scales = ir.tensor(np.ascontiguousarray(np.broadcast_to(weight_scale.astype(np.float32).reshape(-1), (n,))))
    inputs = [
        layer.activation.inputs[0],
        scale,
        stored("weight.packed", _packed(codes.const_value, op)),
        stored("weight_scale.packed", scales),
    ]
    inputs += [value for value in (found.left, found.right) if value is not None]
    inputs += [stored("bias.packed", ir.tensor(found.bias.astype(np.float32)))] if found.bias is not None else []
    inputs += [value for value in (found.gate, found.residual) if value is not None]
    node = op.node([value for value in inputs if value is not None], f"{name}/QLinear")
    graph.insert_before(found.nodes[-1], node)
    made, end = node.outputs[0], found.end
    made.dtype, made.shape = FLOATS[op.output], end.shape
    known |= {made: known[end]} if end in known else {}
    end_name = end.name
    end.replace_all_uses_with(made, replace_graph_outputs=True)
    read = dict.fromkeys(v for gone in (*found.nodes, layer.activation, layer.weight) for v in gone.inputs)
    graph.remove(found.nodes, safe=True)
    remove_unread(graph, (layer.activation, layer.weight))
    for value in read:
        forget(graph, value)
    made.name = end_name
    return op


def _bits(codes: ir.TensorProtocol) -> int:
    """Three when every code of four bits fits in three."""
    if codes.dtype is ir.DataType.INT8:
        return 8
    low, high = code_range(3)
    pairs = np.arange(256)
    signed = (np.stack([pairs & 15, pairs >> 4]) ^ 8) - 8
    outside = np.any((signed < low) | (signed > high), axis=0)
    stored = tensor_bytes(codes)
    return 4 if outside[stored[:_FEW]].any() or outside[stored].any() else 3  # a few bytes of four-bit codes tell


def _packed(codes: ir.TensorProtocol, op: QLinear) -> ir.LazyTensor:
    """[K, N] codes as the operator's weight, made when it is written."""

    def made() -> ir.TensorProtocol:
        stored = tensor_bytes(codes)
        if codes.dtype is ir.DataType.INT4:
            nibbles = np.stack([stored & 15, stored >> 4], axis=-1).reshape(-1)[: op.n * op.k]
            array = ((nibbles ^ 8) - 8).astype(np.uint8).view(np.int8)
        else:
            array = stored.view(np.int8)
        return ir.Tensor(pack(np.ascontiguousarray(array.reshape(op.k, op.n).T), op.bits), name=f"{op.n} x {op.k}")

    return ir.LazyTensor(made, ir.DataType.INT8, ir.Shape([packed_bytes(op.n, op.k, op.bits)]), cache=False)
