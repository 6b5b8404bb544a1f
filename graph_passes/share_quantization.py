"""Quantize a tensor once for all its readers.

    %a = DequantizeLinear(QuantizeLinear(%x, %s), %s)            %a = DequantizeLinear(QuantizeLinear(%x, %s), %s)
    %q = MatMul(%a, %wq)                                  ->     %q = MatMul(%a, %wq)
    %b = DequantizeLinear(QuantizeLinear(%x, %s), %s)            %k = MatMul(%a, %wk)
    %k = MatMul(%b, %wk)

The same holds for the absmax and the scale of a per-token quantization. Two nodes are the same when operator, attributes
and inputs are; constants of up to 1024 elements are compared by value, so equal per-step tables are shared too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import ClassVar

import onnx_ir as ir

from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.patterns import producer, quantization_arithmetic, small_constant, weight_like


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShareQuantization(Pass):
    """Merges equal activation quantizations; keeps the first, under its name. Refusal: same tensor, other scale."""

    name: ClassVar[str] = "share-quantization"
    needs: ClassVar[frozenset[str]] = frozenset({"constants-folded"})

    def numerics(self) -> str:
        """Equal nodes give equal values."""
        return "exact"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        arithmetic = quantization_arithmetic(model.graph)
        first: dict[Hashable, ir.Node] = {}
        quantized: dict[ir.Value, ir.Node] = {}
        refusals: list[Refusal] = []
        modified = False
        for node in list(model.graph):
            if node not in arithmetic or node.op_type in ("MatMul", "Mul", "Add") or weight_like(node.outputs[0]):
                continue
            same = first.setdefault(_key(node), node)
            if same is not node:
                ir.convenience.replace_all_uses_with(node.outputs, same.outputs)
                model.graph.remove(node, safe=True)
                modified = True
            elif node.op_type == "QuantizeLinear" and (x := _tensor(node)) is not None:
                other = quantized.setdefault(x, node)
                if other is not node:
                    refusals.append(Refusal(str(node.name), f"{x.name} is also quantized by {other.name}, but with another scale or range"))
        return Result(model, modified, tuple(refusals))


def _key(node: ir.Node) -> Hashable:
    """Equal for nodes that compute the same."""
    attributes = tuple(sorted((name, str(a.value)) for name, a in node.attributes.items()))
    return node.op_type, attributes, tuple(_operand(v) for v in node.inputs)


def _operand(value: ir.Value | None) -> Hashable:
    array = small_constant(value)
    return value if array is None else (str(array.dtype), array.shape, array.tobytes())


def _tensor(quantize: ir.Node) -> ir.Value | None:
    """What a QuantizeLinear quantizes, before division and clipping."""
    value = quantize.inputs[0]
    while (node := producer(value, "Clip", "Div")) is not None:
        value = node.inputs[0]
    return value
