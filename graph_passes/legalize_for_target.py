"""Rewrite what TensorRT reads but does not fuse.

INT4 weights with one scale per output channel are unpacked by a kernel of their own, into a float copy of the weight in
every run; with a scale per block they stay INT4 up to the GEMM. So the same scales are repeated for every block:

    %w = DequantizeLinear<axis=1>(%c, %s)                 with %s [N]
    %y = MatMul(%x, %w)
        ->
    %w = DequantizeLinear<axis=0, block_size=128>(%c, %s')      with %s' [K / 128, N], each row %s
    %y = MatMul(%x, %w)

The values are the same. Where activations are quantized as well the form must stay per channel (spec.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.patterns import blocked, quantized_matmuls


class Blocks(tuple[int, ...]):
    """Sizes of blocks, the first one that fits is taken; written "128:64"."""

    def __new__(cls, text: str = "") -> Self:
        """ValueError for what is no such list."""
        return cls.of(tuple(int(part) for part in text.split(":") if part))

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Self:
        """From numbers; ValueError unless they are positive."""
        made = super().__new__(cls, sizes)
        if any(size < 1 for size in made):
            raise ValueError(f"blocks {made}")
        return made

    def __str__(self) -> str:
        return ":".join(map(str, self))


TENSORRT = Blocks("128:64:32:16")  # as the quirk int4-blocks says


@dataclasses.dataclass(frozen=True, kw_only=True)
class LegalizeForTarget(Pass):
    """The forms that the target fuses: `blocks` of INT4 weights, none where they need none. Refusal: a K that no block divides."""

    name: ClassVar[str] = "legalize-for-target"

    blocks: Blocks = TENSORRT

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        if not self.blocks:
            return Result(model, modified=False)
        beside_codes = {q.weight for q in quantized_matmuls(model.graph)}
        refusals: list[Refusal] = []
        modified = False
        for node in list(model.graph):
            if node.op_type != "DequantizeLinear" or node in beside_codes or blocked(node):
                continue
            codes, scale = node.inputs[0], node.inputs[1]
            if codes is None or scale is None or scale.const_value is None or codes.dtype is not ir.DataType.INT4:
                continue
            assert codes.shape is not None and scale.name is not None
            k, n = codes.shape.numpy()
            block = next((b for b in self.blocks if k % b == 0 and k > b), None)  # a single block is one scale per channel again
            by_channel = scale.const_value.size == 1 or node.attributes.get_int("axis", 1) % 2 == 1
            if block is None or not by_channel:
                reason = (
                    f"no block of {', '.join(map(str, self.blocks))} divides {k} inputs" if block is None else "its scale is not per column"
                )
                refusals.append(Refusal(str(node.name), f"{reason}: the weight is unpacked in every run"))
                continue
            rows = np.ascontiguousarray(np.broadcast_to(scale.const_value.numpy().reshape(-1), (k // block, n)))
            name = f"{scale.name}.blocks{k // block}"  # weights of other lengths may share the scale
            if name not in model.graph.initializers:
                model.graph.initializers.add(ir.val(name, const_value=ir.tensor(rows, dtype=scale.const_value.dtype, name=name)))
            node.replace_input_with(1, model.graph.initializers[name])
            node.attributes["axis"] = ir.AttrInt64("axis", 0)
            node.attributes["block_size"] = ir.AttrInt64("block_size", block)
            modified = True
        return Result(model, modified, tuple(refusals))
