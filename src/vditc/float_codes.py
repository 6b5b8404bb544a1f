"""Floating-point codes: FP8 E4M3, and NVFP4, which is FP4 E2M1 in blocks of 16 with two levels of scales. Arrays only.

    FP8     s = max(absmax / 448, EPS)               code = e4m3(x / s)           x ~ code * s
    NVFP4   t = max(absmax / (6 * 448), EPS)         float32, one of the tensor
            b = max(e4m3(blockmax / 6 / t), 2^-9)    E4M3, one of 16 neighbours along K
            code = e2m1(x / (b * t))                 x ~ code * (b * t)

Divisions are IEEE float32; e4m3 and e2m1 round to nearest, ties to even, and saturate: FP8 of Micikevicius et al. (arXiv 2209.05433),
E2M1 of the OCP Microscaling Formats specification 1.0, the two levels of NVIDIA's NVFP4. A block of zeros has the least block scale.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vditc.numerics import EPS, QType

Array = npt.NDArray[Any]
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)  # one code a byte, in its low nibble
BLOCK = 16  # elements that share a block scale
LEAST_BLOCK_SCALE = np.float32(2.0**-9)  # least positive E4M3
NVFP4_RANGE = QType.FP4_E2M1.high * QType.FP8_E4M3.high  # of an element, in tensor scales

_CODES: dict[QType, np.dtype[Any]] = {QType.FP8_E4M3: E4M3, QType.FP4_E2M1: E2M1}


def code_dtype(qtype: QType) -> np.dtype[Any]:
    """Type of codes in memory: E4M3, E2M1 or int8."""
    return _CODES[qtype] if qtype in _CODES else np.dtype(np.int8)


def to_codes(x: Array, qtype: QType) -> Array:
    """float32 -> codes of a floating-point type, saturated."""
    return np.clip(x, np.float32(qtype.low), np.float32(qtype.high)).astype(_CODES[qtype])


def tensor_scale(absmax: Array) -> Array:
    """t, float32, of the greatest magnitude of a tensor."""
    return np.asarray(np.maximum(np.asarray(absmax, np.float32) / np.float32(NVFP4_RANGE), np.float32(EPS)), np.float32)


def block_scale(blockmax: Array, scale: Array) -> Array:
    """b, E4M3, of the greatest magnitude of each block (float32) and the tensor scale."""
    share = np.asarray(blockmax, np.float32) / np.float32(QType.FP4_E2M1.high) / scale
    return np.maximum(to_codes(share, QType.FP8_E4M3).astype(np.float32), LEAST_BLOCK_SCALE).astype(E4M3)


def nvfp4(x: Array, scale: Array) -> tuple[Array, Array]:
    """x float32 [..., K], K a multiple of 16, and a tensor scale -> codes E2M1 [..., K], block scales E4M3 [..., K / 16]."""
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    level = block_scale(np.abs(blocks).max(-1), scale)
    return to_codes(blocks / (level.astype(np.float32) * scale)[..., None], QType.FP4_E2M1).reshape(x.shape), level


def from_nvfp4(codes: Array, level: Array, scale: Array) -> npt.NDArray[np.float32]:
    """The inverse: float32 [..., K]."""
    return np.asarray(codes.astype(np.float32) * np.repeat(level.astype(np.float32) * scale, BLOCK, -1), np.float32)


def pack_fp4(codes: Array) -> npt.NDArray[np.uint8]:
    """E2M1 codes, even count -> uint8, two a byte, the first in the low nibble (as ONNX FLOAT4E2M1 and UINT4)."""
    flat = np.ascontiguousarray(codes).view(np.uint8).reshape(-1, 2)
    return np.asarray((flat[:, 0] & 15) | (flat[:, 1] << 4), np.uint8)


def unpack_fp4(packed: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> Array:
    """The inverse of `pack_fp4`."""
    codes: Array = np.stack([packed & 15, packed >> 4], -1).view(E2M1)
    return codes.reshape(shape)
