"""`vditc.QuantizeToken`: codes and scale of every token, and what was computed with the token just before.

    v     = float32(x)
    v     = type of x(residual + gate * v)                      gated; it is also an output, `sum`
    v     = GELU(v)                                             activation = gelu (erf) or gelu_tanh
    v     = (v - mean) / sqrt(mean((v - mean)^2) + epsilon)     norm = layer; rms: v / sqrt(mean(v^2) + epsilon)
    v     = v * weight + bias                                   of the norm
    v     = v * gain + shift                                    modulation: gain is 1 + scale of AdaLN
    v     = (v - center) * balance                              what did not fold
    v     = v H                                                 rotation = 256: blocks of channels, H = sylvester(256) / 16
    scale = max(max|v| * clip / high, 1e-8)                     high = 2^(bits - 1) - 1; or, scaled = given, the input `given`
    codes = min(max(rint(v / scale), -high - 1), high)
    total = scale * sum(codes)                                  a zero point of weights needs it
    share = scale * sum(codes * alpha[r])                       one for each r: Q-VDiT (arXiv 2505.22167), section 3.2

A token in which a NaN or an infinity is quantized has the scale NaN and the codes 0; by a given scale a NaN becomes the least code.

Everything is float32; divisions and roundings (half to even) are IEEE's. Parts that no attribute asks for are left out, and so are their
inputs and outputs, since a TensorRT plugin has no optional ones.

| input | type and shape |
|---|---|
| x | fp16, bf16 or fp32 [..., K] |
| gate, residual | of the type of x, broadcast to x as gain and shift are; when gated |
| weight, bias | float32 [K] |
| gain, shift | float32, broadcast to x: [..., K], in front of K axes of 1, then axes as x has them, then axes of 1 |
| center, balance | float32 [K] |
| clip | float32, one element: a factor of the step on the range |
| given | float32, one element: the scale, positive and finite |
| alpha | float32 [shares, K] |

| output | type and shape |
|---|---|
| codes | int8 [..., K], of every number of bits; packed: [..., K / 2], two codes a byte, `vditc.plugins.packing.pack_tokens` |
| scale | float32 [..., 1]; when scaled = token |
| total | float32 [..., 1]; when total |
| share0, share1, ... | float32 [..., 1]; as many as shares |
| sum | of the type of x [..., K]; when gated |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vditc.hadamard import factors
from vditc.numerics import EPS
from vditc.plugins.gelu import APPROXIMATE
from vditc.plugins.packing import code_range
from vditc.plugins.plugin_op import FLOATS, Dims, PluginOp

BITS = (8, 6, 4, 3)
ROTATION = 256  # channels of a block: 8 values for each lane of a warp
MAX_SHARES = 4  # weighted sums of one token: q, k and v have one each
SCALES = ("token", "given")
NORMS = ("none", "layer", "rms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeToken(PluginOp):
    """Every token to codes of `bits` bits; what the flags name is an input of that name."""

    op_type: ClassVar[str] = "QuantizeToken"

    bits: int = 8
    scaled: str = "token"  # by its own greatest value, or by what is given
    clip: bool = False
    packed: bool = False  # two codes a byte
    gated: bool = False
    activation: str = "none"
    norm: str = "none"
    epsilon: float = 0.0  # of the norm
    weight: bool = False
    bias: bool = False
    gain: bool = False
    shift: bool = False
    center: bool = False
    balance: bool = False
    rotation: int = 0
    total: bool = False
    shares: int = 0

    def __post_init__(self) -> None:
        choices = {"bits": BITS, "rotation": (0, ROTATION), "shares": tuple(range(MAX_SHARES + 1))}
        for name, allowed in {**choices, "scaled": SCALES, "norm": NORMS, "activation": ("none", *APPROXIMATE)}.items():
            if (found := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} {found!r}; wanted {' or '.join(map(str, allowed))}")
        if (self.norm != "none") != (self.epsilon > 0):
            raise ValueError(f"norm {self.norm} with epsilon {self.epsilon}; wanted a positive epsilon of a norm")
        if self.norm == "none" and (self.weight or self.bias):
            raise ValueError("weight or bias without a norm")
        if self.norm != "none" and self.activation != "none":
            raise ValueError(f"activation {self.activation} in front of norm {self.norm}; wanted one of them")
        if self.scaled == "given" and self.clip:
            raise ValueError("a clip of a given scale; wanted scaled token")
        if self.packed and self.bits > 4:
            raise ValueError(f"packed codes of {self.bits} bits; wanted 4 or 3")

    @property
    def inputs(self) -> tuple[str, ...]:
        """See the module's docstring."""
        flags = ("weight", "bias", "gain", "shift", "center", "balance", "clip")
        return (
            "x",
            *(("gate", "residual") if self.gated else ()),
            *(name for name in flags if getattr(self, name)),
            *(("given",) if self.scaled == "given" else ()),
            *(("alpha",) if self.shares else ()),
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """See the module's docstring."""
        return (
            "codes",
            *(("scale",) if self.scaled == "token" else ()),
            *(("total",) if self.total else ()),
            *(f"share{r}" for r in range(self.shares)),
            *(("sum",) if self.gated else ()),
        )

    @property
    def overload(self) -> str:
        """a8_token, a4_packed_gated_layer_gain_shift_r256_token_clip_total_shares2, ..."""
        named = (
            ("packed", self.packed),
            ("gated", self.gated),
            (self.activation, self.activation != "none"),
            (self.norm, self.norm != "none"),
        )
        flags = ((name, getattr(self, name)) for name in ("weight", "bias", "gain", "shift", "center", "balance"))
        rest = ((f"r{self.rotation}", self.rotation), (self.scaled, True), ("clip", self.clip), ("total", self.total))
        parts = [name for name, there in (*named, *flags, *rest, (f"shares{self.shares}", self.shares)) if there]
        return "_".join([f"a{self.bits}", *parts])

    def types(self, given: Sequence[ir.DataType | None]) -> tuple[ir.DataType, ...]:
        """See `PluginOp`."""
        for name, found in zip(self.inputs, given, strict=True):
            wanted = tuple(FLOATS.values()) if name == "x" else (given[0],) if name in ("gate", "residual") else (ir.DataType.FLOAT,)
            if found not in wanted:
                kinds = " or ".join(w.name.lower() for w in wanted if w is not None)
                raise ValueError(f"{name} is {found.name.lower() if found else 'of unknown type'}; wanted {kinds}")
        assert given[0] is not None
        return tuple({"codes": ir.DataType.INT8, "sum": given[0]}.get(name, ir.DataType.FLOAT) for name in self.outputs)

    def shapes(self, given: Sequence[Dims | None]) -> tuple[Dims | None, ...]:
        """See `PluginOp`."""
        if (x := given[0]) is None:
            return (None,) * len(self.outputs)
        codes = (*x[:-1], x[-1] // 2 if isinstance(x[-1], int) else None) if self.packed else x
        return tuple({"codes": codes, "sum": x}.get(name, (*x[:-1], 1)) for name in self.outputs)

    def body(self) -> Sequence[str]:
        """See the module's docstring."""
        lines = ["v0 = Cast <to = 1> (x)", "last = Constant <value_ints = [-1]> ()"]
        v = "v0"
        if self.gated:
            lines += ["gate_wide = Cast <to = 1> (gate)", "residual_wide = Cast <to = 1> (residual)"]
            lines += ["gated_x = Mul (gate_wide, v0)", "sum_wide = Add (residual_wide, gated_x)", "sum = CastLike (sum_wide, x)"]
            lines.append("v_sum = Cast <to = 1> (sum)")
            v = "v_sum"

        def then(op: str, name: str, second: str = "", attributes: str = "") -> str:
            lines.append(f"{name} = {op} {attributes} ({', '.join(filter(None, (v, second)))})")
            return name

        if self.activation != "none":
            v = then("Gelu", "active", attributes=f'<approximate = "{APPROXIMATE[self.activation]}">')
        if self.norm == "layer":
            mean = then("ReduceMean", "mean", "last", "<keepdims = 1>")
            v = then("Sub", "centred", mean)
        if self.norm != "none":
            lines += [
                f"squares = Mul ({v}, {v})",
                "variance = ReduceMean <keepdims = 1> (squares, last)",
                "epsilon_of_norm = Constant <value_float: float = @epsilon> ()",
                "more = Add (variance, epsilon_of_norm)",
                "root = Sqrt (more)",
            ]
            v = then("Div", "normal", "root")
        flags = {"weight": "Mul", "bias": "Add", "gain": "Mul", "shift": "Add", "center": "Sub", "balance": "Mul"}
        for name, op in flags.items():
            if getattr(self, name):
                v = then(op, f"after_{name}", name)
        if self.rotation:
            lines += _rotated(v, self.rotation)
            v = "rotated"
        low, high = code_range(self.bits)
        lines += [*_constant("low", low), *_constant("high", high)]
        if self.scaled == "token":
            # ReduceMax may pass over a NaN, v - v does not: it is 0, but NaN of a NaN and of infinities.
            lines += [f"sizes = Abs ({v})", "most = ReduceMax <keepdims = 1> (sizes, last)"]
            lines += [f"zeros = Sub ({v}, {v})", "nothing = ReduceSum <keepdims = 1> (zeros, last)", "range = Add (most, nothing)"]
            lines += ["clipped = Mul (range, clip)"] if self.clip else []
            lines += [f"part = Div ({'clipped' if self.clip else 'range'}, high)", *_constant("least", EPS), "scale = Max (part, least)"]
        scale = "scale" if self.scaled == "token" else "given"
        lines += [f"ratio = Div ({v}, {scale})", f"{'inside' if self.scaled == 'given' else 'bounded'} = Clip (ratio, low, high)"]
        if self.scaled == "given":
            lines += ["no_number = IsNaN (ratio)", "bounded = Where (no_number, low, inside)"]
        lines += [
            "whole = Round (bounded)",
            *(_packed() if self.packed else ["codes = Cast <to = 3> (whole)"]),
        ]
        if self.total:
            lines += ["sum_of_codes = ReduceSum <keepdims = 1> (whole, last)", f"total = Mul (sum_of_codes, {scale})"]
        for r in range(self.shares):
            lines += [f"at{r} = Constant <value_int = {r}> ()", f"weights{r} = Gather <axis = 0> (alpha, at{r})"]
            lines += [f"weighed{r} = Mul (whole, weights{r})", f"sum{r} = ReduceSum <keepdims = 1> (weighed{r}, last)"]
            lines.append(f"share{r} = Mul (sum{r}, {scale})")
        return lines


def _packed() -> list[str]:
    """Lines that put two codes of `whole` into a byte: those of channels i and i + 16 of a block of 32."""
    return [
        "p_leading = Shape <end = -1> (whole)",
        "p_blocks = Constant <value_ints = [-1, 2, 16]> ()",
        "p_shape = Concat <axis = 0> (p_leading, p_blocks)",
        "p_apart = Reshape (whole, p_shape)",
        "p_wide = Cast <to = 6> (p_apart)",
        "p_low, p_high = Split <axis = -2, num_outputs = 2> (p_wide)",
        "sixteen = Constant <value = int32 {16}> ()",
        "p_nibble = Mod (p_low, sixteen)",
        "p_upper = Mul (p_high, sixteen)",
        "p_both = Add (p_upper, p_nibble)",
        "p_bytes = Cast <to = 3> (p_both)",
        "p_rest = Constant <value_ints = [-1]> ()",
        "p_narrow = Concat <axis = 0> (p_leading, p_rest)",
        "codes = Reshape (p_bytes, p_narrow)",
    ]


def _rotated(v: str, block: int) -> list[str]:
    """A^T x B of every block as [n, p]; both matrices are symmetric."""
    found = factors(block)
    assert found is not None
    left, right = found
    lines = [f"shape = Shape ({v})", f"parts = Constant <value_ints = [-1, {len(left)}, {len(right)}]> ()", f"apart = Reshape ({v}, parts)"]
    for name, matrix in (("left", left.T), ("right", right)):
        entries = ", ".join(f"{float(x):g}" for x in np.ravel(matrix))
        lines.append(f"{name} = Constant <value = float[{len(matrix)},{len(matrix)}] {{{entries}}}> ()")
    return [*lines, "half = MatMul (apart, right)", "mixed = MatMul (left, half)", "rotated = Reshape (mixed, shape)"]


def _constant(name: str, value: float) -> list[str]:
    return [f"{name} = Constant <value = float {{{value:.9g}}}> ()"]
