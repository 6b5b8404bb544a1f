"""`vditc.QAttention`: softmax(q k^T scale + mask) v, whose first product is of INT8 codes (SageAttention, arXiv 2410.02367).

    k'      = k - mean of k over its keys                    smooth_k; adds the same number to all scores of a query
    s_q     = max(max|q| / 127, 1e-8)                        one scale for every token of a head; s_k the same of k'
    c_q     = rint(q / s_q)                                  c_k the same of k'
    scores  = (c_q c_k^T) * s_k * (s_q * scale) + max(mask, -1e30)
    y       = softmax(scores) v

Everything is float32 but the sums of codes, which are exact integers; kernels multiply v in its own type by weights rounded to it and sum
in float32. A query whose keys are all hidden by the mask averages all values: a mask ends at -1e30.

| input | type and shape |
|---|---|
| q | fp16 or bf16 [B, H, queries, D]; by token [B, queries, H, D] |
| k, v | the same type [B, H, keys, D]; by token [B, keys, H, D] |
| mask | the same type [B or 1, 1, 1, keys]; when mask |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from vditc.numerics import EPS
from vditc.plugins.plugin_op import FLOATS, Dims, PluginOp

HIDDEN = -1e30  # what a mask is at least
MAX_WIDTH, WIDTHS_OF = 128, 8  # channels of a head: a multiple of 8, which are 16 bytes, up to 128
SCALES = (1e-20, 1e20)  # so that no factor of float32 is 0 or infinite
_TYPES = {name: FLOATS[name] for name in ("fp16", "bf16")}
_HEADS_FIRST = "Transpose <perm = [0, 2, 1, 3]>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QAttention(PluginOp):
    """Attention with INT8 scores; `*_by_token`: that tensor is [B, tokens, H, D] instead of [B, H, tokens, D]."""

    op_type: ClassVar[str] = "QAttention"

    scale: float
    smooth_k: bool = True
    mask: bool = False
    q_by_token: bool = False
    k_by_token: bool = False
    v_by_token: bool = False
    y_by_token: bool = False

    def __post_init__(self) -> None:
        if not SCALES[0] <= self.scale <= SCALES[1]:
            raise ValueError(f"scale {self.scale!r}; wanted a number from {SCALES[0]:g} to {SCALES[1]:g}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """See the module's docstring."""
        return ("q", "k", "v", *(("mask",) if self.mask else ()))

    @property
    def outputs(self) -> tuple[str, ...]:
        """y, of the type of q, [B, H, queries, D] or by token [B, queries, H, D]."""
        return ("y",)

    @property
    def overload(self) -> str:
        """int8_smooth, int8_smooth_mask_vy_by_token, ..."""
        turned = "".join(name for name in "qkvy" if getattr(self, f"{name}_by_token"))
        return "_".join(["int8", *["smooth"] * self.smooth_k, *["mask"] * self.mask, *[f"{turned}_by_token"] * bool(turned)])

    def types(self, given: Sequence[ir.DataType | None]) -> tuple[ir.DataType, ...]:
        """See `PluginOp`."""
        for name, found in zip(self.inputs, given, strict=True):
            wanted = tuple(_TYPES.values()) if name == "q" else given[:1]
            if found not in wanted or found is None:
                kinds = " or ".join(w.name.lower() for w in wanted if w)
                raise ValueError(f"{name} is {found.name.lower() if found else 'of unknown type'}; wanted {kinds}")
        assert given[0] is not None
        return (given[0],)

    def shapes(self, given: Sequence[Dims | None]) -> tuple[Dims | None, ...]:
        """See `PluginOp`."""
        q = given[0]
        if q is None or len(q) != 4 or self.q_by_token is self.y_by_token:
            return (q,)
        return ((q[0], q[2], q[1], q[3]),)

    def body(self) -> Sequence[str]:
        """See the module's docstring."""
        lines = ["last = Constant <value_ints = [-1]> ()", "tokens = Constant <value_ints = [-2]> ()"]
        lines += [_constant("high", 127), _constant("low", -127), _constant("least", EPS), _constant("hidden", HIDDEN)]
        for name in "qkv":
            turned = getattr(self, f"{name}_by_token")
            lines.append(f"{name}1 = Cast <to = 1> ({name})")
            lines.append(f"{name}2 = {_HEADS_FIRST if turned else 'Identity'} ({name}1)")
        if self.smooth_k:
            lines += ["mean = ReduceMean <keepdims = 1> (k2, tokens)", "k3 = Sub (k2, mean)"]
        else:
            lines.append("k3 = Identity (k2)")
        for name, x in (("q", "q2"), ("k", "k3")):
            lines += [
                f"{name}_sizes = Abs ({x})",
                f"{name}_range = ReduceMax <keepdims = 1> ({name}_sizes, last)",
                f"{name}_part = Div ({name}_range, high)",
                f"{name}_scale = Max ({name}_part, least)",
                f"{name}_ratio = Div ({x}, {name}_scale)",
                f"{name}_bounded = Clip ({name}_ratio, low, high)",
                f"{name}_codes = Round ({name}_bounded)",
            ]
        lines += [
            "k_turned = Transpose <perm = [0, 1, 3, 2]> (k_codes)",
            "k_scales = Transpose <perm = [0, 1, 3, 2]> (k_scale)",
            "factor = Constant <value_float: float = @scale> ()",
            "sums = MatMul (q_codes, k_turned)",
            "by_key = Mul (sums, k_scales)",
            "q_factor = Mul (q_scale, factor)",
            "s0 = Mul (by_key, q_factor)",
        ]
        if self.mask:
            lines += ["mask1 = Cast <to = 1> (mask)", "mask2 = Max (mask1, hidden)", "scores = Add (s0, mask2)"]
        lines += [f"weights = Softmax <axis = -1> ({'scores' if self.mask else 's0'})", "y1 = MatMul (weights, v2)"]
        return [*lines, f"y2 = {_HEADS_FIRST if self.y_by_token else 'Identity'} (y1)", "y = CastLike (y2, q)"]


def _constant(name: str, value: float) -> str:
    return f"{name} = Constant <value = float {{{value:.9g}}}> ()"
