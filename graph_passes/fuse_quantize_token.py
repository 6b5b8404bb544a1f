"""Hand the quantization of a token, and what is computed with the token just before, to the plugin library.

    %n = LayerNormalization(%x)                                    %c, %s, %total = vditc.QuantizeToken<norm, gain, shift,
    %m = Add(Mul(%n, %gain), %shift)                                                 total, ...>(%x, %gain, %shift)
    %s = Max(ReduceMax(Abs(%m)) / 127, 1e-8)                       %f = DequantizeLinear(%c, 1)
    %c = QuantizeLinear(%m / %s, 1)                        ->      %p = Mul(MatMul(%f, %w), %s)
    %f = DequantizeLinear(%c, 1)
    %p = Mul(MatMul(%f, %w), %s)                                   once for all readers of %c, as q, k and v
    %total = Mul(ReduceSum(%f), %s)

In the order of the graph: norm and modulation, or GELU; a shift and a balance that did not fold; a rotation of blocks of 256 channels;
codes by a scale of the token or by one that is given, of the step or constant. As much goes in as nobody else reads. Sums of a token's
codes, which zero points and Q-VDiT's estimate need, come out of the same kernel. A Reshape of tokens in between goes behind the codes.

TensorRT fuses norm, modulation and quantization by itself. Where products of INT8 codes, which it computes too, read them, it is left to do
so, unless `everywhere` says otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.channel_change import Array, array_of, constant, forget, label
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import inserted, remove_unread
from vditc.graph_passes.patterns import consumers, for_plugins, producer, weight_like
from vditc.graph_passes.prologue import Prologue, Surroundings, UnfitError, of_channels
from vditc.graph_passes.token_sums import TokenSums
from vditc.plugins.catalogue import attach_functions
from vditc.plugins.quantize_token.op import QuantizeToken

_OWN_TYPE = ("x", "gate", "residual")  # inputs of the type of x


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseQuantizeToken(Pass):
    """Quantization with norm, modulation, rotation and sums -> `vditc.QuantizeToken`. Refusal: what stays in front, with the reason."""

    name: ClassVar[str] = "fuse-quantize-token"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered", "constants-folded"})

    everywhere: bool = False

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        found = [n for n in model.graph if n.op_type == "QuantizeLinear" and not weight_like(n.outputs[0])]
        found = [n for n in found if self.everywhere or _few_bits(n.outputs[0])]
        if not found:
            return Result(model, modified=False)
        work = _Fusion(model, {node: i for i, node in enumerate(model.graph)})
        for quantize in found:
            try:
                work.fuse(quantize, everywhere=self.everywhere)
            except UnfitError as reason:
                work.refusals.append(Refusal(label(quantize), str(reason)))
        if work.figures["fused"]:
            attach_functions(model)
        return Result(model, bool(work.figures["fused"]), tuple(work.refusals), work.figures)


class _Fusion:
    """One run over one graph."""

    def __init__(self, model: ir.Model, order: dict[ir.Node, float]) -> None:
        self.graph, self.order, self.around = model.graph, order, Surroundings(model)
        self.refusals: list[Refusal] = []
        self.figures = dict.fromkeys(("fused", "with a norm", "with a modulation", "with GELU", "with a rotation", "sums of codes"), 0)
        self.figures["with a gated residual"] = 0

    def fuse(self, quantize: ir.Node, *, everywhere: bool) -> None:
        """Put QuantizeToken in the place of a quantization. UnfitError, and nothing changed, when it cannot be."""
        codes = quantize.outputs[0]
        if not everywhere and (other := _not_for_plugins(codes)):
            raise UnfitError(f"{other} reads its codes too, and no layer of the plugin library")
        found = Prologue.of(quantize, self.around)
        if found.scale is not None and any(
            self.order.get(reader, len(self.order)) < self.order[quantize] for reader in _outside(found.scale, found)
        ):
            raise UnfitError(f"its scale {found.scale.name} is read in front of it")
        at = self.place(found)
        name = label(quantize).removesuffix("/QuantizeLinear")
        sums = TokenSums.of(found)
        if sums.left:
            self.refusals.append(Refusal(label(quantize), sums.left))
        if found.left:
            self.refusals.append(Refusal(label(quantize), found.left))
        op = QuantizeToken(
            bits=found.bits,
            scaled="token" if found.given is None else "given",
            clip=found.clip is not None,
            gated=found.gated is not None,
            activation=found.activation,
            norm=found.norm,
            epsilon=found.epsilon,
            **{n: n in found.vectors for n in ("weight", "bias", "gain", "shift", "center", "balance")},
            rotation=found.rotation,
            total=bool(sums.total),
            shares=len(sums.shares),
        )
        given = {n: self.float32(v, f"{name}.quantize.{n}", at) for n, v in found.vectors.items()}
        given |= {n: v for n, v in (("x", found.x), ("clip", found.clip), ("given", found.given)) if v is not None}
        given |= {} if found.gated is None else {"gate": found.gated.gate, "residual": found.gated.residual}
        if sums.shares:
            given["alpha"] = self.stored(f"{name}.quantize.alpha", np.stack([alpha for alpha, _ in sums.shares]))
        node = op.node([given[n] for n in op.inputs], f"{name}/QuantizeToken")
        self.graph.insert_before(at, node)
        self.order[node] = self.order[at] - 0.5
        for cast in _casts(found):
            self.graph.insert_before(at, cast)
            self.order[cast] = self.order[at] - 0.25
        made = dict(zip(op.outputs, node.outputs, strict=True))
        own = self.around.types[found.x]
        for value, dtype in zip(node.outputs, op.types([own if n in _OWN_TYPE else ir.DataType.FLOAT for n in op.inputs]), strict=True):
            value.dtype = self.around.types[value] = dtype
        if found.reshape is not None:
            made |= {n: self.reshaped(v, found.reshape, quantize, whole=n == "codes") for n, v in made.items() if n != "sum"}
        replaced = [(codes, "codes"), *((v, "total") for v in sums.total)]
        replaced += [] if found.scale is None else [(found.scale, "scale")]
        replaced += [] if found.gated is None else [(found.gated.sum, "sum")]
        replaced += [(v, f"share{r}") for r, (_, values) in enumerate(sums.shares) for v in values]
        for old, by in replaced:
            _replace(old, made[by], named=by == "sum")
        self.remove([*found.walk.nodes, *sums.nodes])
        self.figures["fused"] += 1
        self.figures["with a norm"] += found.norm != "none"
        self.figures["with a modulation"] += op.gain or op.shift
        self.figures["with GELU"] += found.activation != "none"
        self.figures["with a rotation"] += bool(found.rotation)
        self.figures["sums of codes"] += op.total + op.shares
        self.figures["with a gated residual"] += op.gated

    def place(self, found: Prologue) -> ir.Node:
        """The node in front of which the operator stands: the quantization, or who reads the sum of a gated residual before that,
        or the norm's Cast of it.

        Where the operator's other inputs are not there yet, the residual stays.
        """
        if found.gated is None:
            return found.quantize
        sums = [found.gated.sum, *(cast.outputs[0] for cast in _casts(found))]
        first = min([found.quantize, *(n for v in sums for n in _outside(v, found))], key=lambda n: self.order.get(n, -1))
        needed = [found.x, found.gated.gate, found.gated.residual, *found.vectors.values(), found.clip, found.given]
        makers = [v.producer() for v in needed if v is not None]
        if first not in self.order or any(n is not None and self.order.get(n, np.inf) >= self.order[first] for n in makers):
            found.ungate(f"{label(first)} reads the sum before all that QuantizeToken needs is computed")
            return found.quantize
        return first

    def float32(self, value: ir.Value, name: str, before: ir.Node) -> ir.Value:
        """A vector in float32: a constant stored so, what was computed in it, or a Cast."""
        while (cast := producer(value, "Cast")) is not None and self.around.types.get(value) is not ir.DataType.FLOAT:
            assert cast.inputs[0] is not None
            value = cast.inputs[0]
        if (array := constant(value)) is not None:
            wide = np.asarray(array, np.float32).reshape(-1)
            return value if value.dtype is ir.DataType.FLOAT and array.ndim == 1 and value.is_initializer() else self.stored(name, wide)
        if self.around.types.get(value) is ir.DataType.FLOAT:
            return value
        made = inserted(self.graph, before, "Cast", [value], name, to=int(ir.DataType.FLOAT))
        made.dtype = ir.DataType.FLOAT
        return made

    def stored(self, name: str, array: Array) -> ir.Value:
        """A new initialiser."""
        assert name not in self.graph.initializers, name
        made = ir.val(name, const_value=ir.tensor(array, name=name))
        self.graph.initializers.add(made)
        return made

    def integer(self, number: int) -> ir.Value:
        """int64 [1], made once."""
        name = f"quantize_token.{number}"
        return self.graph.initializers.get(name) or self.stored(name, np.array([number], np.int64))

    def reshaped(self, value: ir.Value, like: ir.Node, before: ir.Node, *, whole: bool) -> ir.Value:
        """Tokens in the order of `like`; `whole`: codes, and not one number for each."""
        shape = like.inputs[1]
        assert shape is not None
        name = f"{value.name}.reshaped"
        if not whole:
            if shape.const_value is not None:
                array = array_of(shape).copy()
                array[-1] = 1
                shape = self.stored(f"{name}.shape", array)
            else:
                leading = self.node("Slice", [shape, self.integer(0), self.integer(-1)], f"{name}.leading", before, ir.DataType.INT64)
                shape = self.node("Concat", [leading, self.integer(1)], f"{name}.shape", before, ir.DataType.INT64, axis=0)
        assert value.dtype is not None
        return self.node("Reshape", [value, shape], name, before, value.dtype, allowzero=like.attributes.get_int("allowzero", 0))

    def node(self, kind: str, inputs: list[ir.Value], name: str, before: ir.Node, dtype: ir.DataType, **attributes: int) -> ir.Value:
        """A node and its output."""
        made = ir.node(kind, inputs, attributes, name=name)
        made.outputs[0].name, made.outputs[0].dtype = name, dtype
        self.graph.insert_before(before, made)
        return made.outputs[0]

    def remove(self, nodes: list[ir.Node]) -> None:
        """Those of the nodes that nobody reads any more, and what fed them alone."""
        read = dict.fromkeys(v for node in nodes for v in node.inputs)
        while remove_unread(self.graph, [n for n in dict.fromkeys(nodes) if n.graph is self.graph]):
            pass
        for value in read:
            forget(self.graph, value)


def _outside(value: ir.Value, found: Prologue) -> list[ir.Node]:
    return [use.node for use in value.uses() if use.node not in found.walk.nodes]


def _casts(found: Prologue) -> list[ir.Node]:
    """What the norm reads a gated sum through; where others read it too, it stays, behind the operator."""
    return [] if found.gated is None else [n for n in consumers(found.gated.sum, "Cast") if n in found.walk.nodes]


def _products(codes: ir.Value) -> list[tuple[ir.Node, ir.Node | None]]:
    """Who reads the codes, through DequantizeLinear, other than sums of them: the node and, of a MatMul, the weight's DequantizeLinear."""
    found: list[tuple[ir.Node, ir.Node | None]] = []
    for reader in dict.fromkeys(use.node for use in codes.uses()):
        if reader.op_type != "DequantizeLinear":
            found.append((reader, None))
            continue
        for node in dict.fromkeys(use.node for use in reader.outputs[0].uses()):
            weight = (
                producer(node.inputs[1], "DequantizeLinear") if node.op_type == "MatMul" and node.inputs[0] is reader.outputs[0] else None
            )
            if weight is not None:
                found.append((node, weight))
            elif not (node.op_type == "ReduceSum" or (node.op_type == "Mul" and any(map(of_channels, node.inputs)))):
                found.append((node, None))
    return found


def _few_bits(codes: ir.Value) -> bool:
    """Whether a layer of the plugin library reads the codes, or one that it will compute."""
    return any(_for_plugins(*one) for one in _products(codes))


def _for_plugins(node: ir.Node, weight: ir.Node | None) -> bool:
    return node.op_type == "QLinear" or (weight is not None and for_plugins(weight))


def _not_for_plugins(codes: ir.Value) -> str:
    """Another reader of the codes; "" if there is none."""
    others = [label(node) for node, weight in _products(codes) if not _for_plugins(node, weight)]
    return "the graph's output" if codes.is_graph_output() else ", ".join(others[:3])


def _replace(old: ir.Value, new: ir.Value, *, named: bool) -> None:
    """All readers of one value read another; an output of the graph keeps its name, and others do where they are `named`."""
    new.shape = old.shape
    if named or old.is_graph_output():
        name, old.name = old.name, f"{old.name}.unfused"
        new.name, new.type = name, old.type or new.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
