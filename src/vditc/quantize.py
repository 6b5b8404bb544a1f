"""Round to nearest, fast: what `vditc.scheme.quantize_weight` defines, bit for bit, in pieces that stay in a core's cache.

Only arrays here; files and threads are elsewhere. Every operation releases the interpreter's lock (the casts of ml_dtypes do not).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vditc.float_codes import code_dtype, nvfp4, to_codes
from vditc.numerics import Granularity
from vditc.scheme import QuantSpec, asymmetric_grid, weight_scale

Array = npt.NDArray[Any]
_BF16 = np.dtype(ml_dtypes.bfloat16)
_SLAB = 1 << 16  # elements of a float32 temporary: 256 KiB, about half of a core's second-level cache


def to_float32(weight: Array, out: npt.NDArray[np.float32]) -> None:
    """Cast into `out`, an array of the same shape. A bfloat16 is the upper half of a float32."""
    if weight.dtype == _BF16:
        np.left_shift(weight.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        np.copyto(out, weight, casting="unsafe")


def absmax(weight: Array) -> npt.NDArray[np.float32]:
    """Greatest magnitude along the last axis; infinite or NaN if some element is.

    Magnitudes of floats are ordered as their bits are, and infinities and NaNs come after all others.
    """
    if weight.dtype not in (_BF16, np.float16, np.float32):
        wide = np.empty(weight.shape, np.float32)
        to_float32(weight, wide)
        return absmax(wide)
    bits = np.dtype(f"u{weight.dtype.itemsize}")
    top = (weight.view(bits) & bits.type(np.iinfo(bits).max >> 1)).max(-1)
    return np.asarray(np.asarray(top, bits).view(weight.dtype), np.float32)


def row_scale(rows: Array, spec: QuantSpec, scale_dtype: Any) -> tuple[Array, bool]:
    """Scale of whole rows [R, K] of a per-channel ([R]) or per-group ([R, K / G]) weight, and whether all elements are finite."""
    groups = rows.reshape(len(rows), -1, spec.group_size) if spec.granularity is Granularity.PER_GROUP and spec.group_size else rows
    top = absmax(groups)
    return weight_scale(top, spec, scale_dtype), bool(np.isfinite(top).all())


def row_grid(rows: Array, spec: QuantSpec, scale_dtype: Any) -> tuple[Array, npt.NDArray[np.float32], bool]:
    """Scale [R] and zero point [R] of whole rows [R, K] of an asymmetric per-channel weight, and whether all elements are finite."""
    wide = np.empty(rows.shape, np.float32)
    to_float32(rows, wide)
    lowest, highest = wide.min(-1), wide.max(-1)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        return np.ones(len(rows), scale_dtype), np.zeros(len(rows), np.float32), False
    return *asymmetric_grid(lowest, highest, spec, scale_dtype), True


def quantize_rows(rows: Array, scale: Array, spec: QuantSpec, zero_point: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.int8]:
    """`clip(rint(rows / scale + zero_point))` in float32, int8 [R, K]; scale [] | [R] | [R, K / G], zero point [R], rows finite.

    FP8: E4M3 codes of rows / scale.
    """
    count, width = rows.shape
    scale = scale.astype(np.float32)
    group = width // scale.shape[1] if scale.ndim == 2 else 1
    step = max(1, _SLAB // (max(count, 1) * group)) * group
    codes = np.empty(rows.shape, code_dtype(spec.qtype))
    for start in range(0, width, step):
        part = rows[:, start : start + step]
        x = np.empty(part.shape, np.float32)
        to_float32(part, x)
        if scale.ndim == 2:
            grouped = x.reshape(count, -1, group)
            np.divide(grouped, scale[:, start // group : (start + step) // group, None], out=grouped)
        else:
            np.divide(x, scale[:, None] if scale.ndim else scale, out=x)
        if zero_point is not None:
            np.add(x, zero_point[:, None], out=x)
        if not spec.qtype.integer:
            codes[:, start : start + step] = to_codes(x, spec.qtype)
            continue
        np.rint(x, out=x)
        np.clip(x, np.float32(spec.qtype.low), np.float32(spec.qtype.high), out=x)
        np.copyto(codes[:, start : start + step], x, casting="unsafe")
    return codes


def nvfp4_rows(rows: Array, tensor_scale: Array) -> tuple[Array, Array]:
    """Codes E2M1 [R, K] and block scales E4M3 [R, K / 16] of whole rows [R, K]."""
    wide = np.empty(rows.shape, np.float32)
    to_float32(rows, wide)
    return nvfp4(wide, tensor_scale)


class Sheet:
    """The codes of an [N, K] weight as files store them, put together from blocks of rows.

    `transposed`: as [K, N]. Four-bit codes lie two a byte in the order of the array, the first in the low nibble.
    """

    def __init__(self, shape: tuple[int, int], bits: int, *, transposed: bool) -> None:
        """`shape`: [N, K]; codes of up to 4 `bits` are packed, which wants an even number of them."""
        n, k = shape
        outer, inner = (k, n) if transposed else (n, k)
        self.transposed, self.packed = transposed, bits <= 4
        # Two codes of a byte are in the same line of the array, or else they are packed at the end.
        self.late = self.packed and inner % 2 == 1
        self.array: Array = np.empty((outer, inner // 2), np.uint8) if self.packed and not self.late else np.empty((outer, inner), np.int8)

    def put(self, codes: Array, row: int) -> None:
        """Codes of a byte each [R, K] of the rows from `row` on; `row` is even. Threads may put different rows at the same time."""
        end, codes = row + len(codes), codes.view(np.int8)
        if not self.packed or self.late:
            if self.transposed:
                self.array[:, row:end] = codes.T
            else:
                self.array[row:end] = codes
        elif self.transposed:
            low, high = codes[::2].view(np.uint8), codes[1::2].view(np.uint8)
            self.array[:, row // 2 : end // 2] = ((low & 15) | (high << 4)).T
        else:
            pairs = codes.view("<u2")
            np.copyto(self.array[row:end], (pairs & 15) | ((pairs >> 4) & 240), casting="unsafe")

    def stored(self) -> Array:
        """int8 [N, K] or [K, N]; packed: uint8 [N * K / 2]."""
        if not self.packed:
            return self.array
        flat = self.array.reshape(-1)
        if self.late:
            pairs = flat.view("<u2")
            return np.asarray((pairs & 15) | ((pairs >> 4) & 240), np.uint8)
        return flat


def unpack_rows(packed: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.int8]:
    """Codes int8 of whole rows, from two a byte."""
    codes = np.empty((packed.size, 2), np.int8)
    np.right_shift((packed << 4).view(np.int8).reshape(-1), 4, out=codes[:, 0])
    np.right_shift(packed.view(np.int8).reshape(-1), 4, out=codes[:, 1])
    return codes.reshape(shape)
