"""Hand quantized layers with weights of 4 and 3 bits to the plugin library.

    %q  = QuantizeLinear(%x / %s, 1)         int8                %q = QuantizeLinear(%x / %s, 1)
    %p  = MatMul(DequantizeLinear(%q, 1), DequantizeLinear(%c, %sw))
    %y1 = Mul(%p, %s)                                            %h = vditc.QLinear<n, k, bits, rank, bias, activation,
    %y2 = Add(%y1, MatMul(%u, %v))      of fold-token-aware  ->                     gated, output>(
    %y3 = Cast<to=10>(Add(%y2, %bias))                                  %q, %s, %packed, %sw, %u, %v, %bias, %gate, %r)
    %h  = Add(%r, Mul(%gate, %y3))      or Gelu(%y3)

TensorRT stores such weights in 4 bits but unpacks them by a kernel of its own in every run, and has none for 3. Codes that all fit three
bits are packed in three (`vditc.plugins.packing`), others in four; layers of 8 bits are
handed over where they have groups, which TensorRT miscompiles beside codes, and all of them with `eight=true`. Who quantizes
the input stays: TensorRT fuses it with the norm in front, and int8 tensors go into a plugin as they are. What does not fit the epilogue
stays behind the layer. Packed weights are made when the graph is written, one layer at a time.

A branch of SVDQuant, Add(%y, MatMul(MatMul(%x, %down), %up)) in 16 bits, goes in with MatMul(%x, %down) left in front of the layer; its
rank is filled up with zeros to a multiple of 16. Weights with a scale for each 128 inputs keep them (`group`), or, where that is slow and
`requantize=true` says that numbers may change, become codes of eight bits with a scale for each output. With `packed=true` four-bit codes
that only layers of four-bit weights read lie two in a byte.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.absorbed import Absorbed, Branch, other
from vditc.graph_passes.channel_change import Array, constant, forget, label
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import inserted, remove_unread
from vditc.graph_passes.inferred_shapes import inferred_shapes
from vditc.graph_passes.packed_tokens import pack_four_bits
from vditc.graph_passes.patterns import QuantizedMatMul, activation_bits, blocked, only_reader, producer, quantized_matmuls, small_constant
from vditc.graph_passes.ranks import ranks
from vditc.graph_passes.subbyte_weights import Requantized, bits_of, packed
from vditc.plugins.catalogue import attach_functions, plugin_nodes
from vditc.plugins.packing import packed_bytes
from vditc.plugins.plugin_op import FLOATS
from vditc.plugins.qlinear.op import GROUP, QLinear


class _UnfitError(Exception):
    """A layer that the operator does not take; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowerSubbyteLinear(Pass):
    """Q/DQ products with weights of few bits -> `vditc.QLinear`, weights packed. Refusal: a layer that it does not take."""

    name: ClassVar[str] = "lower-subbyte-linear"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered", "constants-folded"})

    eight: bool = False
    requantize: bool = False  # groups to channels of eight bits
    packed: bool = False  # for GPUs that multiply four-bit codes: sm_80 to sm_89

    def numerics(self) -> str:
        """Requantized weights are other weights."""
        return "requantized" if self.requantize else "rounding"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        work = _Lowering(model.graph, requantize=self.requantize)
        refusals, figures = work.refusals, work.figures
        for layer in list(quantized_matmuls(model.graph)):
            codes = layer.weight.inputs[0]
            few = codes is not None and codes.dtype is ir.DataType.INT4
            if not few and not (codes is not None and codes.dtype is ir.DataType.INT8 and (self.eight or blocked(layer.weight))):
                continue
            try:
                op = work.lower(layer)
            except _UnfitError as reason:
                refusals.append(Refusal(label(layer.matmul), str(reason)))
                continue
            figures["layers handed over"] += 1
            figures["bytes of their weights"] += packed_bytes(op.n, op.k, op.bits)
        if self.packed:
            figures["quantizations packed"] = pack_four_bits(model.graph, plugin_nodes(model), refusals)
        if not figures["layers handed over"] and not figures.get("quantizations packed"):
            return Result(model, modified=False, refusals=tuple(refusals))
        attach_functions(model)
        return Result(model, modified=True, refusals=tuple(refusals), figures=figures)


class _Lowering:
    """One run over one graph."""

    def __init__(self, graph: ir.Graph, *, requantize: bool) -> None:
        self.graph, self.requantize = graph, requantize
        self.known, self.shapes = ranks(graph), inferred_shapes(graph)  # axes of values, and sizes of them
        self.refusals: list[Refusal] = []
        self.figures = {"layers handed over": 0, "bytes of their weights": 0}

    def lower(self, layer: QuantizedMatMul) -> QLinear:
        """Put the operator in the place of a layer; _UnfitError, and nothing changed, when it cannot be."""
        quantize, codes = layer.quantize, layer.weight.inputs[0]
        assert codes is not None and codes.const_value is not None
        k, n = codes.const_value.shape.numpy()
        scales, one = constant(layer.weight.inputs[1]), small_constant(layer.activation.inputs[1])
        if quantize is None or one is None or one.size != 1:
            raise _UnfitError("its codes are not made by QuantizeLinear or QuantizeToken with one constant scale")
        group = _group(layer.weight, scales, n, k)
        assert scales is not None
        scale = layer.activation.inputs[1]
        if layer.rescale is not None:
            if float(one) != 1:
                raise _UnfitError(f"its input has two scales, {float(one)} and {layer.rescale.name}'s")
            if only_reader(layer.matmul.outputs[0]) is None:
                raise _UnfitError("its product is read before it is scaled")
            scale = other(layer.rescale, layer.matmul.outputs[0])
        found, name = Absorbed.behind(layer, self.known, self.shapes), label(layer.matmul).removesuffix("/MatMul")
        if found.stays:
            self.refusals.append(Refusal(label(layer.matmul), found.stays))
        anew = Requantized.of(codes.const_value, scales.astype(np.float32)) if group and self.requantize else None
        op = QLinear(
            n=n,
            k=k,
            bits=8 if anew else bits_of(codes.const_value),
            activation_bits=activation_bits(quantize),
            group=0 if anew else group,
            rank=0 if found.right is None else found.right.const_value.shape.numpy()[0],  # type: ignore[union-attr]
            low_rank=0 if found.branch is None else found.branch.padded,
            bias=found.bias is not None,
            activation=found.activation,
            gated=found.gate is not None,
            output=found.output,
        )
        if anew is not None:
            self.count(anew)
        by_output = anew.scale if anew else scales.astype(np.float32)
        by_output = by_output if op.group else np.broadcast_to(by_output.reshape(-1), (n,))
        given = {
            "x": layer.activation.inputs[0],
            "scale": scale,
            "weight": self.stored(f"{name}.weight.packed", anew.packed(op) if anew else packed(codes.const_value, op)),
            "weight_scale": self.stored(f"{name}.weight_scale.packed", ir.tensor(np.ascontiguousarray(by_output))),
            "left": found.left,
            "right": found.right,
            "gate": found.gate,
            "residual": found.residual,
        }
        if found.bias is not None:
            given["b"] = self.stored(f"{name}.bias.packed", ir.tensor(found.bias.astype(np.float32)))
        if found.branch is not None:
            given["down"], given["up"] = self.factors(found.branch, name)
        node = op.node([v for i in op.inputs if (v := given[i]) is not None], f"{name}/QLinear")
        self.replace(layer, found, node, op)
        return op

    def replace(self, layer: QuantizedMatMul, found: Absorbed, node: ir.Node, op: QLinear) -> None:
        """Put the node where the last of what it computes stood."""
        self.graph.insert_before(found.nodes[-1], node)
        made, end = node.outputs[0], found.end
        made.dtype, made.shape = FLOATS[op.output], end.shape
        self.known |= {made: self.known[end]} if end in self.known else {}
        end_name = end.name
        end.replace_all_uses_with(made, replace_graph_outputs=True)
        read = dict.fromkeys(v for gone in (*found.nodes, layer.activation, layer.weight) for v in gone.inputs)
        self.graph.remove(found.nodes, safe=True)
        remove_unread(self.graph, (layer.activation, layer.weight))
        for value in read:
            forget(self.graph, value)
        made.name = end_name

    def stored(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initialiser."""
        made = ir.val(name, const_value=tensor)
        tensor.name = made.name
        self.graph.initializers.add(made)
        return made

    def factors(self, branch: Branch, name: str) -> tuple[ir.Value, ir.Value]:
        """What the operator reads of a branch, its rank filled up with zeros."""
        if more := branch.padded - branch.rank:
            for node, part, axis in ((branch.first, "down", 1), (branch.second, "up", 0)):
                old = node.inputs[1]
                array = constant(old)
                assert old is not None and array is not None
                ends = [(0, 0), (0, 0)]
                ends[axis] = (0, more)
                filled = self.stored(f"{name}.low_rank.{part}.filled", ir.tensor(np.pad(array, ends)))
                if (cast := producer(old, "Cast")) is not None:
                    to = ir.DataType(cast.attributes["to"].as_int())
                    filled = inserted(self.graph, node, "Cast", [filled], f"{filled.name}/Cast", to=int(to))
                    filled.dtype = to
                node.replace_input_with(1, filled)
                forget(self.graph, old)
            branch.first.outputs[0].shape = None
        down, up = branch.second.inputs
        assert down is not None and up is not None
        return down, up

    def count(self, anew: Requantized) -> None:
        """Say what requantization cost."""
        parts = round(anew.error * 1e6)
        worst = "greatest relative error of their weights, millionths"
        self.figures["layers requantized"] = self.figures.get("layers requantized", 0) + 1
        self.figures[worst] = max(self.figures.get(worst, 0), parts)


def _group(weight: ir.Node, scales: Array | None, n: int, k: int) -> int:
    """Inputs that share a scale, 0 for all. _UnfitError where the operator has no such scales."""
    by_output = weight.attributes.get_int("axis", 1) in (1, -1)
    if not blocked(weight):
        if scales is None or not (scales.size == 1 or (by_output and scales.size == n)):
            raise _UnfitError("its weight has no scale per output channel")
        return 0
    size = weight.attributes["block_size"].as_int()
    if by_output:
        raise _UnfitError("its weight has scales of blocks of outputs")
    if size != GROUP or scales is None or scales.shape != (k // GROUP, n):
        raise _UnfitError(f"its weight has a scale for each {size} of {k} inputs; QLinear has scales of {GROUP}, or of channels")
    return GROUP
