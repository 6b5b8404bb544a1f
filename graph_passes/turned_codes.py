"""Codes of a weight [K, N] whose sign turns in some of its columns, computed on packed bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.graph_passes.tensor_bytes import tensor_bytes

Array = npt.NDArray[np.uint8]
_HALVES = np.arange(256, dtype=np.uint8)
_NEGATED = ((16 - (_HALVES & 15)) & 15) | (((16 - (_HALVES >> 4)) & 15) << 4)  # two four-bit codes of a byte


def turned_codes(tensor: ir.TensorProtocol, turn: npt.NDArray[np.bool_], *, asymmetric: bool, name: str) -> ir.TensorProtocol:
    """Codes c as they are, or where `turn` [N] says so -c; -1 - c of asymmetric ones, of which every code has a counterpart.

    INT8, INT4 and FP8, whose sign is a bit. In the same type and shape.
    """
    (k, n), dtype, raw = tensor.shape.numpy(), tensor.dtype, tensor_bytes(tensor)
    if dtype is not ir.DataType.INT4:
        codes = raw.reshape(k, n)
        if dtype is ir.DataType.FLOAT8E4M3FN:
            codes ^= turn * np.uint8(0x80)
        elif asymmetric:
            codes ^= turn * np.uint8(0xFF)
        else:
            np.negative(codes, out=codes, where=turn)
        return ir.Tensor(codes.view(dtype.numpy()), dtype=dtype, name=name)
    # Which halves of the bytes turn: of one row, or of two where a row ends amid a byte.
    rows = 1 + n % 2
    halves = np.tile(turn, rows).astype(np.uint8)
    mask = (halves[0::2] * 0x0F) | (halves[1::2] * np.uint8(0xF0))
    whole = raw[: len(raw) // len(mask) * len(mask)].reshape(-1, len(mask))
    rest = raw[whole.size :]
    for part, own in ((whole, mask), (rest, mask[: len(rest)])):
        part ^= own if asymmetric else (part ^ _NEGATED[part]) & own
    if k * n % 2:
        raw[-1] &= 0x0F  # the last byte holds one code
    return ir.PackedTensor(raw, dtype, shape=ir.Shape((k, n)), name=name)


def has_least_code(tensor: ir.TensorProtocol) -> bool:
    """Whether some code of an integer type is its least, -8 or -128, which has no counterpart."""
    raw = tensor_bytes(tensor)
    if tensor.dtype is ir.DataType.INT4:
        return bool(((raw & 15) == 8).any() or ((raw >> 4) == 8).any())
    return tensor.dtype is ir.DataType.INT8 and bool((raw == 0x80).any())
