"""Give norm, modulation and per-token quantization a leading axis of 1, so that one kernel computes all of it.

    %n = LayerNormalization(%x)                          %u = Unsqueeze(%x, [0])
    %m = Add(Mul(%n, %scale), %shift)                    %n = LayerNormalization(%u)
    %s = Max(Div(ReduceMax(Abs(%m)), 127), eps)          %m = Add(Mul(%n, %scale), %shift)
    %c = QuantizeLinear(Div(%m, %s), 1)          ->      ...
    %p = MatMul(DequantizeLinear(%c, 1), %w)             %p = MatMul(DequantizeLinear(%c, 1), %w)
    %y = Cast(Add(Mul(%p, %s), %bias))                   %y = Squeeze(Cast(Add(Mul(%p, %s), %bias)), [0])

with a scale and shift that the graph computes, one row a clip. TensorRT-RTX 1.7 flattens [batch, tokens, C] in front of a norm whose codes
go into a product, and cannot flatten what is modulated by clip: it cuts the kernel behind the norm's mean, and writes and reads the
centred tokens once more as float32. Tokens behind a leading 1 are not flattened, nor are tokens of four axes (Latte, LTX-Video). Static
scales and unquantized products are not cut.

RMS norms likewise, spelt out or as RMSNormalization. A Reshape that keeps the channels, between modulation and quantization, goes behind
the products. In float32 outputs are equal bit for bit; in float16 ONNX Runtime leaves out other pairs of its own casts.

Refused: modulated tokens that are joined with others, or otherwise changed, before they are quantized.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.inferred_shapes import Shape, inferred_shapes
from vditc.graph_passes.patterns import producer, rms_norms, small_constant, weight_like

_BROADCAST = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
_NORMS = ("LayerNormalization", "RMSNormalization")
_ALONE = ("Abs", "Cast", "Clip", "Neg", "Reciprocal", "Sqrt", *_NORMS)
_REDUCE = ("ReduceMax", "ReduceMean", "ReduceSum")
_CODES = ("QuantizeLinear", "DequantizeLinear")
_FLATTENED = 3  # axes of tokens that TensorRT-RTX flattens


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinNormsToQuantization(Pass):
    """A leading axis of 1 from modulated norms to products of per-token codes. Refusal: what stands between norm and quantization."""

    name: ClassVar[str] = "join-norms-to-quantization"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered", "constants-folded"})

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        graph, refusals = model.graph, list[Refusal]()
        dynamic = {n for n in graph if n.op_type == "QuantizeLinear" and _per_token(n)}
        dynamic -= {n for n in dynamic if any(u.node.domain for u in n.outputs[0].uses())}  # a plugin's product has no axis to spare
        if not dynamic:
            return Result(model, False)
        dims, order, lifted = dict(inferred_shapes(graph)), {n: i for i, n in enumerate(graph)}, False
        norms = [*((n,) for n in graph if n.op_type in _NORMS), *rms_norms(graph)]
        norms.sort(key=lambda nodes: order[nodes[-1]])
        for norm in norms:
            region = _Region(graph, norm, dims, order)
            codes = dynamic.intersection(region.nodes)
            if region.modulated and codes:
                for node in region.lift(codes):
                    del order[node]
                    lifted = True
            elif region.modulated and region.stop is not None and dynamic.intersection(_behind(region.stop)):
                refusals.append(Refusal(str(norm[-1].name), f"{region.stop.name} ({region.stop.op_type}) stands before the quantization"))
        return Result(model, lifted, tuple(refusals))


def _per_token(quantize: ir.Node) -> bool:
    """Whether the codes are of x / max(max|x| [* clip] / high, eps), for each token."""
    clip = producer(quantize.inputs[0], "Clip")
    divide = producer(quantize.inputs[0] if clip is None else clip.inputs[0], "Div")
    node = None if divide is None else producer(divide.inputs[1], "Max")
    while node is not None and node.op_type != "ReduceMax":
        node = producer(node.inputs[0], "Div", "Mul", "ReduceMax")
    axes = small_constant(node.inputs[1]) if node is not None and len(node.inputs) > 1 else None
    return axes is not None and axes.tolist() == [-1]


def _behind(node: ir.Node) -> set[ir.Node]:
    """Nodes that the tokens of `node` go through up to their quantization, it included."""
    found, todo = {node}, [node]
    while todo:
        for use in [u for v in todo.pop().outputs for u in v.uses() if u.node not in found]:
            found.add(use.node)
            if use.node.op_type in (*_BROADCAST, *_ALONE, *_REDUCE, "Concat", "Reshape"):
                todo.append(use.node)
    return found


@dataclasses.dataclass(frozen=True)
class _State:
    """Of a value with the leading axis: whether it is behind a product, and the Reshape that is still to come."""

    product: bool = False
    reshape: ir.Node | None = None


class _Region:
    """What a norm's tokens go through, until they are a product in the compute type."""

    def __init__(self, graph: ir.Graph, norm: Sequence[ir.Node], dims: dict[str, Shape], order: dict[ir.Node, int]) -> None:
        self.graph, self.norm, self.dims, self.order = graph, norm, dims, order
        assert norm[0].inputs[0] is not None
        self.x = norm[0].inputs[0]
        self.axis: ir.Value | None = None  # of the leading 1, where there is to be one
        self.states: dict[ir.Value, _State] = {}
        self.nodes: dict[ir.Node, None] = {}
        self.modulated = False
        self.made: list[ir.Node] = []  # not in the graph yet
        self.stop: ir.Node | None = None  # the first that the tokens meet before any product and that does not keep the axis
        led = producer(self.x, "Unsqueeze")
        if self.dims.get(str(self.x.name)) and (led is None or (at := small_constant(led.inputs[1])) is None or at.tolist() != [0]):
            self.grow()

    def grow(self) -> None:
        """Fills `nodes`, in graph order."""
        todo = [(self.order[n], n) for n in self.norm if n in self.order]
        seen = {n for _, n in todo}
        while todo:
            _, node = todo.pop(min(range(len(todo)), key=lambda i: todo[i][0]))
            ours = [self.states[v] for v in node.inputs if v in self.states]
            state = _State(any(s.product for s in ours) or node.op_type == "MatMul", ours[0].reshape if ours else None)
            if any(s.reshape is not state.reshape for s in ours) or not self.keeps(node, state):
                if self.stop is None and not any(s.product for s in ours):
                    self.stop = node
                continue
            self.nodes[node] = None
            if not state.product and node not in self.norm and node.op_type in ("Add", "Mul", "Sub"):
                self.modulated |= any(v not in self.states and not weight_like(v) for v in node.inputs)
            out = node.outputs[0]
            self.states[out] = dataclasses.replace(state, reshape=node) if node.op_type == "Reshape" else state
            if not (state.product and node.op_type == "Cast"):
                new = dict.fromkeys(u.node for u in out.uses() if u.node in self.order and u.node not in seen)
                seen |= new.keys()
                todo += [(self.order[n], n) for n in new]

    def keeps(self, node: ir.Node, state: _State) -> bool:
        """Whether the node does the same to tokens with a leading axis."""
        first = node.inputs[0]
        others = [v for v in node.inputs if v is not None and v not in self.states and not (v is self.x and node in self.norm)]
        sizes = [self.dims.get(str(v.name)) for v in (node.outputs[0], *others)]
        if node.outputs[0].is_graph_output() or None in sizes:
            return False
        out, *beside = (s for s in sizes if s is not None)
        if node.op_type in _BROADCAST:
            # Behind a product or in front of a Reshape only what has no axis but the channels: of others nobody knows where they lie.
            most = 1 if state.product or state.reshape is not None else len(out)
            return all(len(s) <= most for s in beside) and any(len(out) == self.rank(v) for v in node.inputs if v not in others)
        if node.op_type in _REDUCE:
            axes = small_constant(node.inputs[1]) if len(node.inputs) > 1 else None
            return axes is not None and axes.tolist() == [-1] and node.attributes.get_int("keepdims", 1) == 1
        if node.op_type == "MatMul":
            return first in self.states and weight_like(node.inputs[1]) and len(beside) == 1 and len(beside[0]) == 2
        if node.op_type == "Reshape":
            before = self.dims[str(first.name)] if first is not None else ()
            return (
                first in self.states
                and not state.product
                and state.reshape is None
                and isinstance(out[-1], int)
                and before[-1:] == out[-1:]
            )
        if node.op_type in _CODES:
            return "axis" not in node.attributes and not any(beside)
        return node.op_type in _ALONE and node.attributes.get_int("axis", -1) == -1

    def rank(self, value: ir.Value | None) -> int:
        return len(self.dims[str(value.name)]) if value is not None else 0

    def lift(self, codes: set[ir.Node]) -> list[ir.Node]:
        """Put the axis on what leads to `codes` and on what is behind them; returns these nodes."""
        kept = set(codes)
        for node in reversed(self.nodes):
            if any(u.node in kept for u in node.outputs[0].uses()):
                kept.add(node)
        behind = set(codes)
        for node in self.nodes:
            if any(v is not None and v.producer() in behind for v in node.inputs):
                behind.add(node)
        kept |= behind
        lifted = [n for n in self.nodes if n in kept]
        if len(self.dims[str(self.x.name)]) <= _FLATTENED:
            self.axis = self.integers("join_norms.axis", [0])
            led = self.node("Unsqueeze", [self.x, self.axis], f"{self.norm[-1].outputs[0].name}_led")
            self.graph.insert_before(lifted[0], self.taken())
            for use in list(self.x.uses()):
                if use.node in kept and use.node in self.norm:
                    use.node.replace_input_with(use.idx, led)
        elif not any(n.op_type == "Reshape" for n in lifted):
            return []
        for node in lifted:
            self.leave(node, kept)
        return lifted

    def without_axis(self, value: ir.Value | None, name: str) -> ir.Value:
        assert value is not None
        return value if self.axis is None else self.node("Squeeze", [value, self.axis], name)

    def leave(self, node: ir.Node, kept: set[ir.Node]) -> None:
        """Others read what a lifted node gives as it was before."""
        out, reshape = node.outputs[0], self.states[node.outputs[0]].reshape
        outside = [u for u in out.uses() if u.node not in kept]
        if node is reshape:
            for use in [u for u in out.uses() if u.node in kept]:
                use.node.replace_input_with(use.idx, node.inputs[0])
            if outside:
                node.replace_input_with(0, self.without_axis(node.inputs[0], f"{out.name}_tokens"))
                self.graph.insert_before(node, self.taken())
            return
        out.shape = None if self.axis is not None else out.shape
        if not outside or (self.axis is None and reshape is None):
            return
        whole = self.without_axis(out, f"{out.name}_tokens")
        if reshape is not None:
            whole = self.reshaped(whole, reshape, self.dims[str(out.name)][-1])
        # In front of all that read it. The shape that `reshape` reads is there: the node is behind the place where `reshape` was.
        self.graph.insert_after(node, self.taken())
        self.dims[str(whole.name)] = self.dims[str(out.name)]
        for use in outside:
            use.node.replace_input_with(use.idx, whole)

    def reshaped(self, value: ir.Value, reshape: ir.Node, channels: int | None) -> ir.Value:
        """`value` as `reshape` has it, but for the number of channels."""
        assert isinstance(channels, int) and value.name is not None
        shape, name = reshape.inputs[1], value.name
        if (known := small_constant(shape)) is not None:
            wanted = self.integers(f"{name}.shape", [*known.tolist()[:-1], channels])
        else:
            ends = [self.integers(f"join_norms.{n}", [i]) for n, i in (("axis", 0), ("last", -1))]
            leading = self.node("Slice", [shape, *ends], f"{name}_leading")
            wanted = self.node("Concat", [leading, self.integers(f"{name}.channels", [channels])], f"{name}_shape", axis=0)
        return self.node("Reshape", [value, wanted], f"{name}_reshaped")

    def integers(self, name: str, values: list[int]) -> ir.Value:
        if name not in self.graph.initializers:
            self.graph.initializers.add(ir.val(name, const_value=ir.tensor(np.array(values, np.int64), name=name)))
        return self.graph.initializers[name]

    def node(self, kind: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int) -> ir.Value:
        made = ir.node(kind, inputs, attributes, name=name)
        made.outputs[0].name = name
        self.made.append(made)
        return made.outputs[0]

    def taken(self) -> list[ir.Node]:
        """What was made since the last call, to be put into the graph."""
        made, self.made = self.made, []
        return made
