"""`vditc.QLinear`: quantized activations times packed weights of 8, 4 or 3 bits, and what follows the product.

    acc   = x W^T                                  integers
    f     = acc * weight_scale                     or, of groups: f = f + acc[g] * weight_scale[g] from f = 0, g after g
    y     = f * scale + left right + down up + bias          float32, one rounded operation after another, in this order
    y     = GELU(y)                                activation = gelu (erf) or gelu_tanh
    out   = y                                      or, gated: residual + gate * y

`left right` is a sum of `rank` outer products, one number of each token times one of each output: zero points of weights, and the
estimate of Q-VDiT (arXiv 2505.22167). `down up` is the branch of SVDQuant (arXiv 2411.05007), whose factors have 16 bits and are multiplied
and summed in float32. The body of the function computes the products of codes in float32, which is exact while sums stay below
2^24 (K up to 16384 for weights of 4 bits and 8-bit codes; groups of any K); a kernel's accumulators are exact integers
(`vditc.plugins.qlinear.reference`).

| input | type and shape |
|---|---|
| x | int8 [..., K], codes; packed: [..., K / 2], two codes a byte, `vditc.plugins.packing.pack_tokens` |
| scale | float32 [..., 1], or of one element |
| weight | int8 [packed_bytes(N, K, bits)], `vditc.plugins.packing` |
| weight_scale | float32 [N]; of groups [K / 128, N] |
| left, right | float32 [..., rank], [rank, N]; when rank > 0 |
| down, up | fp16 or bf16, as `output` (fp16 where that is fp32), [..., low_rank], [low_rank, N]; when low_rank > 0 |
| b | float32 [N]; when bias |
| gate, residual | of the output's type, [..., N] or broadcast to it; when gated |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from vditc.plugins.gelu import APPROXIMATE
from vditc.plugins.packing import BITS, BLOCK, LAYOUT
from vditc.plugins.plugin_op import FLOATS, Dims, PluginOp

ACTIVATIONS = {"none": None, **APPROXIMATE}  # -> `approximate` of the operator Gelu
MAX_RANK = 4  # outer products that a kernel's epilogue adds
GROUP = 128  # inputs that share a scale of an output, where all do not
LOW_RANKS = (0, 16, 32, 48, 64)  # columns of `down`: steps of one product of 16-bit numbers (mma.m16n8k16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QLinear(PluginOp):
    """A quantized linear layer, `n` outputs, `k` inputs; `bits` of its weights, `activation_bits` of its codes (in 8 unless `packed`)."""

    op_type: ClassVar[str] = "QLinear"

    n: int
    k: int
    bits: int
    unsigned: bool = False  # weights are codes 0 ... 15
    activation_bits: int = 8
    packed: bool = False  # x has two codes a byte
    layout: int = LAYOUT
    group: int = 0  # inputs that share a weight scale; 0: all
    rank: int = 0
    low_rank: int = 0
    bias: bool = False
    activation: str = "none"
    gated: bool = False
    output: str = "fp16"

    def __post_init__(self) -> None:
        choices = {"bits": BITS, "activation_bits": (8, 6, 4, 3), "layout": (LAYOUT,), "rank": tuple(range(MAX_RANK + 1))}
        choices |= {"group": (0, GROUP), "low_rank": LOW_RANKS}
        for name, allowed in {**choices, "activation": tuple(ACTIVATIONS), "output": tuple(FLOATS)}.items():
            if (found := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} {found!r}; wanted {' or '.join(map(str, allowed))}")
        if self.n < 1 or self.k < 1:
            raise ValueError(f"n {self.n}, k {self.k}; wanted positive numbers")
        if self.unsigned and self.bits != 4:
            raise ValueError(f"unsigned weights of {self.bits} bits; wanted bits 4")
        if self.packed and (self.activation_bits > 4 or self.k % BLOCK):
            raise ValueError(f"packed, activation_bits {self.activation_bits}, k {self.k}; wanted 4 or 3 bits and a multiple of {BLOCK}")
        if self.group and self.k % self.group:
            raise ValueError(f"group {self.group}, k {self.k}; wanted a multiple of {self.group}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """See the module's docstring."""
        optional = {"left": self.rank, "right": self.rank, "down": self.low_rank, "up": self.low_rank}
        optional |= {"b": self.bias, "gate": self.gated, "residual": self.gated}
        return ("x", "scale", "weight", "weight_scale", *(name for name, there in optional.items() if there))

    @property
    def outputs(self) -> tuple[str, ...]:
        """y [..., N] of type `output`."""
        return ("y",)

    @property
    def overload(self) -> str:
        """w4_fp16, w4u_packed_g128_rank_lowrank_bias_gelu_fp16, ..."""
        sums = ("packed" * self.packed, f"g{self.group}" * bool(self.group), "rank" * bool(self.rank), "lowrank" * bool(self.low_rank))
        rest = ("bias" * self.bias, self.activation.replace("none", ""), "gated" * self.gated, self.output)
        return "_".join([f"w{self.bits}{'u' * self.unsigned}", *filter(None, (*sums, *rest))])

    def types(self, given: Sequence[ir.DataType | None]) -> tuple[ir.DataType, ...]:
        """See `PluginOp`."""
        out = FLOATS[self.output]
        own = {"x": ir.DataType.INT8, "weight": ir.DataType.INT8, "gate": out, "residual": out}
        own |= dict.fromkeys(("down", "up"), self.branch_type)
        for name, found in zip(self.inputs, given, strict=True):
            wanted = own.get(name, ir.DataType.FLOAT)
            if found is not wanted:
                raise ValueError(f"{name} is {found.name.lower() if found else 'of unknown type'}; wanted {wanted.name.lower()}")
        return (out,)

    def shapes(self, given: Sequence[Dims | None]) -> tuple[Dims | None, ...]:
        """See `PluginOp`."""
        return (None if given[0] is None else (*given[0][:-1], self.n),)

    @property
    def branch_type(self) -> ir.DataType:
        """Of `down` and `up`."""
        return ir.DataType.FLOAT16 if self.output == "fp32" else FLOATS[self.output]

    def body(self) -> Sequence[str]:
        """See the module's docstring."""
        lines = [*(_tokens() if self.packed else ["xf = Cast <to = 1> (x)"]), *_codes(self.bits, unsigned=self.unsigned)]
        lines += ["wf = Cast <to = 1> (codes)", "w = Transpose <perm = [1, 0]> (wf)"]
        lines += _groups(self.group) if self.group else ["acc = MatMul (xf, w)", "by_output = Mul (acc, weight_scale)"]
        lines.append("y0 = Mul (by_output, scale)")
        last = "y0"
        if self.rank:
            lines += ["term = MatMul (left, right)", f"y1 = Add ({last}, term)"]
            last = "y1"
        if self.low_rank:
            lines += ["down_wide = Cast <to = 1> (down)", "up_wide = Cast <to = 1> (up)", "branch = MatMul (down_wide, up_wide)"]
            lines.append(f"y_branch = Add ({last}, branch)")
            last = "y_branch"
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


def _tokens() -> list[str]:
    """Lines that unpack `x` into `xf` float [..., K]: of a block of 32 channels byte i has channels i and i + 16."""
    return [
        "x_leading = Shape <end = -1> (x)",
        "x_bytes = Constant <value_ints = [-1, 16]> ()",
        "x_blocks = Concat <axis = 0> (x_leading, x_bytes)",
        "x_apart = Reshape (x, x_blocks)",
        "x_pairs = Cast <to = 6> (x_apart)",
        *_constant("sixteen", 16),
        *_constant("eight", 8),
        "x_low = Mod (x_pairs, sixteen)",
        "x_without = Sub (x_pairs, x_low)",
        "x_second = Div (x_without, sixteen)",
        "x_above = Add (x_low, eight)",
        "x_turned = Mod (x_above, sixteen)",
        "x_first = Sub (x_turned, eight)",
        "x_both = Concat <axis = -1> (x_first, x_second)",
        "x_rest = Constant <value_ints = [-1]> ()",
        "x_shape = Concat <axis = 0> (x_leading, x_rest)",
        "x_codes = Reshape (x_both, x_shape)",
        "xf = Cast <to = 1> (x_codes)",
    ]


def _groups(size: int) -> list[str]:
    """Lines that multiply `xf` and `w` [K, N] group by group into `by_output`."""
    step = (
        "step (float[] before, float[] x_group, float[] w_group, float[] s_group) => (float[] after)"
        " { acc = MatMul (x_group, w_group) part = Mul (acc, s_group) after = Add (before, part) }"
    )
    return [
        "g_leading = Shape <end = -1> (xf)",
        f"g_parts = Constant <value_ints = [-1, {size}]> ()",
        "g_shape = Concat <axis = 0> (g_leading, g_parts)",
        "x_groups = Reshape (xf, g_shape)",
        "w_shape = Concat <axis = 0> (g_parts, n)",
        "w_groups = Reshape (w, w_shape)",
        "y_shape = Concat <axis = 0> (g_leading, n)",
        "nothing = ConstantOfShape <value = float[1] {0}> (y_shape)",
        f"by_output = Scan <num_scan_inputs = 3, scan_input_axes = [-2, 0, 0], body = {step}> (nothing, x_groups, w_groups, weight_scale)",
    ]


def _codes(bits: int, *, unsigned: bool) -> list[str]:
    """Lines that unpack `weight` into `codes` int32 [N, K] of `xf` [..., K], by the axes of `vditc.plugins.packing`."""
    lines = [
        "n = Shape <start = -1> (weight_scale)",
        "k = Shape <start = -1> (xf)",
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
            lines.append(f"{'lying' if unsigned else 'nibbles'} = Transpose <perm = [0, 4, 2, 1, 6, 3, 5]> (fields)")
            if not unsigned:
                lines += [*_constant("half", 8), *_constant("whole", 16)]
                lines += ["above = Add (nibbles, half)", "turned = Mod (above, whole)", "lying = Sub (turned, half)"]
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
