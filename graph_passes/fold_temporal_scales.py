"""Put the static scale of a quantized layer's input that differs by step into what computes that input.

    %s  = Gather(%scales, %step)                                 %s  = Gather(%scales, %step)
    %a  = Mul(%norm, %scale)                                     %a  = Mul(%norm, Div(%scale, %s))       vectors, not tokens
    %x  = Add(%a, %shift)                                        %x' = Add(%a, Div(%shift, %s))
    %q  = QuantizeLinear(Div(%x, %s), 1)                  ->     %q  = QuantizeLinear(%x', 1)
    %y  = Mul(MatMul(DequantizeLinear(%q, 1), %w), %s)           %y  = Mul(MatMul(DequantizeLinear(%q, 1), %w), %s)

Scale and shift that are gathered by `step` themselves are divided beforehand, row by row, so nothing is left to compute. The scales
of QuantizeLinear and DequantizeLinear stay the constant 1, as TensorRT wants them. `vditc.graph_passes.absorption` says what takes a
divisor: no stored weight does, so a norm without modulation keeps its Div, as does what stands behind GELU or in the residual stream.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.absorption import Absorption
from vditc.graph_passes.channel_change import AbsorptionError, Change, constant, label
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.patterns import by_step, producer


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldTemporalScales(Pass):
    """Makes the Div by a step's scale disappear. Refusal: a producer that cannot take it, with the reason."""

    name: ClassVar[str] = "fold-temporal-scales"
    needs: ClassVar[frozenset[str]] = frozenset({"canonical", "constants-folded"})

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        found = [(node, scale) for node in model.graph if (scale := step_scale(node)) is not None]
        if not found:
            return Result(model, modified=False)
        absorption = Absorption(model)
        refusals: list[Refusal] = []
        modified = False
        for divide, gather in found:
            x, table = divide.inputs[0], constant(gather.inputs[0])
            assert x is not None and table is not None
            try:
                if others := [label(use.node) for use in x.uses() if use.node is not divide]:
                    raise AbsorptionError(f"{x.name} is also read by {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}")
                change = Change(np.ones(()), divisor=gather.outputs[0], table=table)
                plan = absorption.plan(x, change)
            except AbsorptionError as reason:
                refusals.append(Refusal(label(divide), str(reason)))
                continue
            if gather is not model.graph[0]:  # in front of all that may now read it
                model.graph.remove(gather)
                model.graph.insert_before(model.graph[0], gather)
            plan.apply()
            divide.outputs[0].replace_all_uses_with(x)
            model.graph.remove(divide, safe=True)
            modified = True
        return Result(model, modified, tuple(refusals))


def step_scale(node: ir.Node) -> ir.Node | None:
    """The Gather of a table [steps] by `step` that a Div in front of a QuantizeLinear divides by."""
    if node.op_type != "Div" or (gather := producer(node.inputs[1], "Gather")) is None:
        return None
    readers = [use.node.op_type for use in node.outputs[0].uses()]
    return gather if by_step(node.inputs[1]) and readers and all(r in ("QuantizeLinear", "Clip") for r in readers) else None
