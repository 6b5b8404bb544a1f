"""One operator RMSNormalization instead of a float32 island.

    %w = Cast<to=1>(%x)
    %s = Pow(%w, 2)
    %m = ReduceMean<keepdims=1>(%s, [-1])
    %e = Add(%m, 1e-6)                         ->      %y = RMSNormalization<axis=-1, epsilon=1e-06, stash_type=1>(%x, %gain)
    %r = Reciprocal(Sqrt(%e))
    %n = Cast<to=10>(Mul(%w, %r))
    %y = Mul(%n, %gain)

The operator computes in float32 (`stash_type`) and rounds before it multiplies by the gain, as the island does. Where %x is float32
already, behind a product of codes, so are %gain and the product, which is then rounded: ONNX Runtime 1.31 and TensorRT-RTX 1.7 take %x and
%gain of one type alone.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import inserted, remove_unread
from vditc.graph_passes.element_types import element_types
from vditc.graph_passes.patterns import only_reader, producer, rms_norms, small_constant, weight_like
from vditc.graph_passes.ranks import ranks

_FLOAT = ir.DataType.FLOAT


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormRmsNormalization(Pass):
    """RMSNormalization of opset 23 for x / sqrt(mean(x^2) + eps) * gain over the last axis. Refusal: one that is not of that form."""

    name: ClassVar[str] = "form-rms-normalization"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered", "opset-23"})

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        work = _Norms(model.graph)
        refusals: list[Refusal] = []
        modified = False
        for nodes in list(rms_norms(model.graph)):
            why = work.replace(nodes)
            modified |= why is None
            if why is not None:
                refusals.append(Refusal(str(nodes[-1].name), why))
        return Result(model, modified, tuple(refusals))


class _Norms:
    """One run over one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.types, self.ranks = graph, element_types(graph).of, ranks(graph)

    def replace(self, nodes: tuple[ir.Node, ...]) -> str | None:
        """Put the operator in, or say why not."""
        square, mean, add, *_, last = nodes
        x = square.inputs[0]
        assert x is not None
        axes = small_constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
        last_axis = self.ranks.get(x, 0) - 1  # -1, if it is not known
        if axes is None or axes.tolist() not in ([-1], [last_axis]) or mean.attributes.get_int("keepdims", 1) != 1:
            return "the mean is not known to be over the last axis alone"
        epsilon = next((float(a.reshape(())) for v in add.inputs if (a := small_constant(v)) is not None and a.size == 1), None)
        if epsilon is None:
            return "what is added to the mean is no constant"
        rounding = _only_reader(last, "Cast")
        scaling = _only_reader(rounding or last, "Mul")
        gain = None if scaling is None else next((v for v in scaling.inputs if v is not (rounding or last).outputs[0]), None)
        if scaling is None or gain is None or not weight_like(gain) or self.ranks.get(gain) != 1:
            return "no gain of one axis behind it alone: the operator wants one"
        if any(n.outputs[0].is_graph_output() for n in nodes) or any(_read_elsewhere(n, nodes) for n in nodes[:-1]):
            return "something else reads what is within it"
        widened = producer(x, "Cast")
        narrow = widened.inputs[0] if widened is not None else None
        if narrow is not None and self.types.get(narrow) is self.types.get(gain):
            self.put(nodes, scaling, narrow, gain, epsilon)
        elif self.types.get(x) is self.types.get(gain):
            self.put(nodes, scaling, x, gain, epsilon)
        else:
            self.put(nodes, scaling, x, self.cast(gain, _FLOAT, scaling, f"{scaling.outputs[0].name}.gain"), epsilon)
        remove_unread(self.graph, (rounding, *reversed(nodes), widened))
        return None

    def put(self, nodes: tuple[ir.Node, ...], scaling: ir.Node, x: ir.Value, gain: ir.Value, epsilon: float) -> None:
        """The operator in the place of `scaling`, rounded to what that gave."""
        made = ir.node(
            "RMSNormalization", [x, gain], {"axis": -1, "epsilon": epsilon, "stash_type": 1}, name=f"{nodes[-1].name}/RMSNormalization"
        )
        self.graph.insert_before(scaling, made)
        old, new = scaling.outputs[0], made.outputs[0]
        wanted, given = self.types[old], self.types[gain]
        if wanted is not given:
            new.name = f"{old.name}.exact"
            new = self.cast(new, wanted, scaling, f"{old.name}.rounded")
        new.name, new.type, new.shape = old.name, old.type, old.shape
        self.types[new] = wanted
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(scaling, safe=True)

    def cast(self, value: ir.Value, to: ir.DataType, before: ir.Node, name: str) -> ir.Value:
        """`value` as `to`."""
        made = inserted(self.graph, before, "Cast", [value], name, to=int(to))
        self.types[made] = to
        return made


def _only_reader(node: ir.Node, op_type: str) -> ir.Node | None:
    """The one node that reads what `node` gives, if it is of that type."""
    reader = only_reader(node.outputs[0])
    return reader if reader is not None and reader.op_type == op_type else None


def _read_elsewhere(node: ir.Node, nodes: tuple[ir.Node, ...]) -> bool:
    """Whether something outside of `nodes` reads what `node` gives."""
    return any(use.node not in nodes for use in node.outputs[0].uses())
