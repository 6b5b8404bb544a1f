"""One operator RMSNormalization instead of a float32 island.

    %w = Cast<to=1>(%x)
    %s = Pow(%w, 2)
    %m = ReduceMean<keepdims=1>(%s, [-1])
    %e = Add(%m, 1e-6)                         ->      %y = RMSNormalization<axis=-1, epsilon=1e-06, stash_type=1>(%x, %gain)
    %r = Reciprocal(Sqrt(%e))
    %n = Cast<to=10>(Mul(%w, %r))
    %y = Mul(%n, %gain)

The operator computes in float32 (`stash_type`) and rounds before it multiplies by the gain, as the island does. %x is float32 as it is where a
product of codes gives it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.element_types import element_types
from vditc.graph_passes.patterns import producer, rms_norms, small_constant, weight_like


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormRmsNormalization(Pass):
    """RMSNormalization of opset 23 for x / sqrt(mean(x^2) + eps) * gain over the last axis. Refusal: what it does not say."""

    name: ClassVar[str] = "form-rms-normalization"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered", "opset-23"})

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        graph, types = model.graph, element_types(model.graph).of
        refusals: list[Refusal] = []
        modified = False
        for nodes in list(rms_norms(graph)):
            why = _replace(graph, nodes, types)
            modified |= why is None
            if why is not None:
                refusals.append(Refusal(str(nodes[-1].name), why))
        return Result(model, modified, tuple(refusals))


def _replace(graph: ir.Graph, nodes: tuple[ir.Node, ...], types: dict[ir.Value, ir.DataType]) -> str | None:
    """Put the operator in; or say why not."""
    square, mean, add, *_, last = nodes
    axes = small_constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    if axes is None or axes.tolist() not in ([-1], [2]) or mean.attributes.get_int("keepdims", 1) != 1:
        return "the mean is not over the last axis alone"
    epsilon = next((float(a) for v in add.inputs if (a := small_constant(v)) is not None and a.size == 1), None)
    if epsilon is None:
        return "what is added to the mean is no constant"
    rounding = _only(last.outputs[0], "Cast")
    scaling = _only((rounding or last).outputs[0], "Mul")
    gain = None if scaling is None else next((v for v in scaling.inputs if v is not (rounding or last).outputs[0]), None)
    if scaling is None or gain is None or not weight_like(gain) or gain.shape is None or len(gain.shape) != 1:
        return "no gain behind it: the operator wants one"
    x = square.inputs[0]
    widened = producer(x, "Cast")
    if widened is not None and types.get(widened.inputs[0]) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        x = widened.inputs[0]
    made = ir.node("RMSNormalization", [x, gain], {"axis": -1, "epsilon": epsilon, "stash_type": 1}, name=str(last.name))
    old, new = scaling.outputs[0], made.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(scaling, made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    for node in (scaling, rounding, *reversed(nodes), widened):
        if node is not None and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    return None


def _only(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one reader, if it is of that type."""
    uses = value.uses()
    node = uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
    return node if node is not None and node.op_type == op_type else None
