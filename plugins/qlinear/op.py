"""`vditc.QLinear`: quantized activations times packed weights of 8, 4 or 3 bits, and what follows the product.

    acc   = x W^T                                  integers
    y     = ((acc * weight_scale) * scale + left right) + bias        float32, in this order
    y     = GELU(y)                                activation = gelu (erf) or gelu_tanh
    out   = y                                      or, gated: residual + gate * y

`left right` is a sum of `rank` outer products, one number of each token times one of each output: zero points of weights, and the
estimate of Q-VDiT (arXiv 2505.22167). The body of the function computes the products in float32, which is exact while sums stay below
2^24 (K up to 16384 for weights of 4 bits and 8-bit codes); a kernel's accumulators are exact integers
(`vditc.plugins.qlinear.reference`).

| input | type and shape |
|---|---|
| x | int8 [..., K], codes |
| scale | float32 [..., 1], or of one element |
| weight | int8 [packed_bytes(N, K, bits)], `vditc.plugins.packing` |
| weight_scale | float32 [N] |
| left, right | float32 [..., rank], [rank, N]; when rank > 0 |
| bias | float32 [N]; when bias |
| gate, residual | of the output's type, [..., N] or broadcast to it; when gated |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from vditc.plugins.gelu import APPROXIMATE
from vditc.plugins.packing import BITS, LAYOUT
from vditc.plugins.plugin_op import FLOATS, PluginOp

ACTIVATIONS = {"none": None, **APPROXIMATE}  # -> `approximate` of the operator Gelu
MAX_RANK = 4  # outer products that a kernel's epilogue adds


@dataclasses.dataclass(frozen=True, kw_only=True)
class QLinear(PluginOp):
    """A quantized linear layer, `n` outputs, `k` inputs; `bits` of its weights, `activation_bits` of its codes, which are stored in 8."""

    op_type: ClassVar[str] = "QLinear"

    n: int
    k: int
    bits: int
    activation_bits: int = 8
    layout: int = LAYOUT
    rank: int = 0
    bias: bool = False
    activation: str = "none"
    gated: bool = False
    output: str = "fp16"

    def __post_init__(self) -> None:
        choices = {"bits": BITS, "activation_bits": (8, 6, 4, 3), "layout": (LAYOUT,), "rank": tuple(range(MAX_RANK + 1))}
        for name, allowed in {**choices, "activation": tuple(ACTIVATIONS), "output": tuple(FLOATS)}.items():
            if (found := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} {found!r}; wanted {' or '.join(map(str, allowed))}")
        if self.n < 1 or self.k < 1:
            raise ValueError(f"n {self.n}, k {self.k}; wanted positive numbers")

    @property
    def inputs(self) -> tuple[str, ...]:
        """See the module's docstring."""
        optional = {"left": self.rank, "right": self.rank, "b": self.bias, "gate": self.gated, "residual": self.gated}
        return ("x", "scale", "weight", "weight_scale", *(name for name, there in optional.items() if there))

    @property
    def outputs(self) -> tuple[str, ...]:
        """y [..., N] of type `output`."""
        return ("y",)

    @property
    def overload(self) -> str:
        """w4, w4_rank_bias_gelu_fp16, ..."""
        parts = ("rank" * bool(self.rank), "bias" * self.bias, self.activation.replace("none", ""), "gated" * self.gated, self.output)
        return "_".join([f"w{self.bits}", *filter(None, parts)])

    def types(self, given: Sequence[ir.DataType | None]) -> tuple[ir.DataType, ...]:
        """See `PluginOp`."""
        out = FLOATS[self.output]
        for name, found in zip(self.inputs, given, strict=True):
            wanted = ir.DataType.INT8 if name in ("x", "weight") else out if name in ("gate", "residual") else ir.DataType.FLOAT
            if found is not wanted:
                raise ValueError(f"{name} is {found.name.lower() if found else 'of unknown type'}; wanted {wanted.name.lower()}")
        return (out,)

    def body(self) -> Sequence[str]:
        """See the module's docstring."""
        lines = [*_codes(self.bits), "xf = Cast <to = 1> (x)", "wf = Cast <to = 1> (codes)", "w = Transpose <perm = [1, 0]> (wf)"]
        lines += ["acc = MatMul (xf, w)", "by_output = Mul (acc, weight_scale)", "y0 = Mul (by_output, scale)"]
        last = "y0"
        if self.rank:
            lines += ["term = MatMul (left, right)", f"y1 = Add ({last}, term)"]
            last = "y1"
        if self.bias:
            lines.append(f"y2 = Add ({last}, b)")
            last = "y2"
        if (approximate := ACTIVATIONS[self.activation]) is not None:
            lines.append(f'y3 = Gelu <approximate = "{approximate}"> ({last})')
            last = "y3"
        if self.gated:
            lines += ["g = Cast <to = 1> (gate)", "r = Cast <to = 1> (residual)", f"gy = Mul (g, {last})", "y4 = Add (r, gy)"]
            last = "y4"
        return [*lines, f"y = Cast <to = {int(FLOATS[self.output])}> ({last})"]


def _codes(bits: int) -> list[str]:
    """Lines that unpack `weight` into `codes` int32 [N, K], by the axes of `vditc.plugins.packing`."""
    lines = [
        "n = Shape (weight_scale)",
        "k = Shape <start = -1> (x)",
        "block = Constant <value_ints = [32]> ()",
        "less = Constant <value_ints = [31]> ()",
        "n_more = Add (n, less)",
        "k_more = Add (k, less)",
        "rows = Div (n_more, block)",
        "columns = Div (k_more, block)",
        "wide = Cast <to = 6> (weight)",
    ]
    match bits:
        case 8:  # row block, column block, group, lane / 4, lane % 4, tile, register, byte
            lines += _shaped("wide", "2, 8, 4, 2, 2, 4", "words")
            lines += ["lying = Transpose <perm = [0, 2, 5, 3, 1, 6, 4, 7]> (words)"]
        case 4:  # row block, column block, lane / 4, lane % 4, tile, byte | register
            lines += [*_unsigned(), *_shaped("bytes", "8, 4, 4, 4, 1", "words"), *_fields("words", [1, 16], 16, "fields")]
            lines += ["unsigned = Transpose <perm = [0, 4, 2, 1, 6, 3, 5]> (fields)", *_constant("half", 8), *_constant("whole", 16)]
            lines += ["above = Add (unsigned, half)", "turned = Mod (above, whole)", "lying = Sub (turned, half)"]
        case 3:  # row block, column block, word, lane / 4, lane % 4, byte | tile of the word, register
            lines += [*_unsigned(), *_shaped("bytes", "3, 8, 4, 4, 1", "words")]
            lines += ["parts = Constant <value_ints = [2, 1]> ()", "low_words, sign_word = Split <axis = 2> (words, parts)"]
            lines += [*_fields("low_words", [1, 4, 16, 64], 4, "pairs"), *_shaped("pairs", "2, 8, 4, 4, 2, 2", "low_fields")]
            lines += ["low = Transpose <perm = [0, 2, 6, 3, 1, 7, 4, 5]> (low_fields)"]
            lines += [*_fields("sign_word", [2**i for i in range(8)], 2, "signs"), *_shaped("signs", "8, 4, 4, 2, 2, 2", "sign_fields")]
            lines += ["sign = Transpose <perm = [0, 5, 6, 2, 1, 7, 3, 4]> (sign_fields)", *_constant("four", 4)]
            lines += ["negative = Mul (sign, four)", "lying = Sub (low, negative)"]
    return [
        *lines,
        "full_n = Mul (rows, block)",
        "full_k = Mul (columns, block)",
        "full = Concat <axis = 0> (full_n, full_k)",
        "padded = Reshape (lying, full)",
        "begin = Constant <value_ints = [0, 0]> ()",
        "end = Concat <axis = 0> (n, k)",
        "codes = Slice (padded, begin, end)",
    ]


def _unsigned() -> list[str]:
    """Bytes 0 ... 255 of signed ones."""
    return [*_constant("byte", 256), "bytes = Mod (wide, byte)"]


def _shaped(value: str, rest: str, out: str) -> list[str]:
    """[row blocks, column blocks, rest]."""
    return [
        f"{out}_rest = Constant <value_ints = [{rest}]> ()",
        f"{out}_shape = Concat <axis = 0> (rows, columns, {out}_rest)",
        f"{out} = Reshape ({value}, {out}_shape)",
    ]


def _fields(value: str, divisors: list[int], modulus: int, out: str) -> list[str]:
    """The bits of bytes [..., 1]: [..., fields]."""
    return [
        f"{out}_at = Constant <value = int32[{len(divisors)}] {{{', '.join(map(str, divisors))}}}> ()",
        *_constant(f"{out}_size", modulus),
        f"{out}_shifted = Div ({value}, {out}_at)",
        f"{out} = Mod ({out}_shifted, {out}_size)",
    ]


def _constant(name: str, value: int) -> list[str]:
    return [f"{name} = Constant <value = int32 {{{value}}}> ()"]
