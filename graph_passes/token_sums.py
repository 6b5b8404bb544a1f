"""Sums of a token's codes that the graph computes and `vditc.QuantizeToken` can give: for zero points, and Q-VDiT's weighed ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.channel_change import Array, constant
from vditc.graph_passes.patterns import consumers, small_constant
from vditc.graph_passes.prologue import Prologue, of_channels
from vditc.plugins.quantize_token.op import MAX_SHARES


@dataclasses.dataclass(eq=False)
class TokenSums:
    """Sums of the codes that the operator gives: values, and the nodes that computed them."""

    total: list[ir.Value] = dataclasses.field(default_factory=list)
    shares: list[tuple[Array, list[ir.Value]]] = dataclasses.field(default_factory=list)
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    left: str = ""

    @classmethod
    def of(cls, found: Prologue) -> TokenSums:
        """Of the dequantized codes of one quantization. Too many weighed ones all stay."""
        made = cls()
        weighed: list[tuple[Array, list[ir.Value], list[ir.Node]]] = []
        unit = small_constant(found.quantize.inputs[1])
        for floats in consumers(found.quantize.outputs[0], "DequantizeLinear"):
            if (by := small_constant(floats.inputs[1])) is None or unit is None or by.tolist() != unit.tolist():
                continue
            for reader in consumers(floats.outputs[0], "ReduceSum", "Mul"):
                if reader.op_type == "ReduceSum" and (ends := _scaled(reader, found)):
                    made.total += ends
                    made.nodes += [reader, *(n for v in ends if (n := v.producer()) is not None)]
                elif reader.op_type == "Mul" and (alpha := next((v for v in reader.inputs if of_channels(v)), None)) is not None:
                    sums = consumers(reader.outputs[0], "ReduceSum")
                    if len(sums) == 1 and len(tuple(reader.outputs[0].uses())) == 1 and (ends := _scaled(sums[0], found)):
                        array = np.asarray(constant(alpha), np.float32).reshape(-1)
                        weighed.append((array, ends, [reader, sums[0], *(n for v in ends if (n := v.producer()) is not None)]))
        if len(weighed) > MAX_SHARES:
            made.left = f"{len(weighed)} weighed sums of its codes; QuantizeToken gives {MAX_SHARES}"
            return made
        made.shares = [(alpha, ends) for alpha, ends, _ in weighed]
        made.nodes += [node for _, _, nodes in weighed for node in nodes]
        return made


def _scaled(total: ir.Node, found: Prologue) -> list[ir.Value]:
    """What a sum over channels becomes once it has its scale: by a Mul behind it, or where the codes were dequantized."""
    axes = small_constant(total.inputs[1]) if len(total.inputs) > 1 else None
    value = total.outputs[0]
    if axes is None or axes.tolist() != [-1] or total.attributes.get_int("keepdims", 1) != 1:
        return []
    divided = found.scale if found.given is None else found.given
    if divided is found.quantize.inputs[1]:
        return [value]
    muls = consumers(value, "Mul")
    scaled = [m.outputs[0] for m in muls if divided in m.inputs]
    return scaled if len(scaled) == len(tuple(value.uses())) and not value.is_graph_output() else []
