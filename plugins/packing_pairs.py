"""Codes as ONNX stores them, [K, N] and two a byte along N, straight to the packed weights of `vditc.plugins.packing`.

Nothing is unpacked to a byte a code: everything is done with words of 32 bits, which hold the eight outputs of a tile for one input, output
2 q in the low half of byte q and output 2 q + 1 in its high half. Operations on arrays that fit a core's cache put nibbles of two words
together; then the bytes of four neighbouring inputs, which a lane has in one word, are exchanged.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.plugins.packing import BLOCK, packed_bytes

_Words = npt.NDArray[np.uint32]
_ROWS, _BLOCKS = (
    32,
    32,
)  # of a panel: block rows, 512 bytes of each input, and blocks of a row. All that is made of one stays in a core's cache


def pack_pairs(pairs: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int8]:
    """Codes [K, N] of two's complement, uint8 [K, N / 2] -> int8 [packed_bytes], what `pack` makes of them. `bits`: 4 or 3.

    ValueError unless K and N are multiples of 32, for other bits, and for codes that do not fit in three.
    """
    k, n = pairs.shape[0], 2 * pairs.shape[1]
    if k % BLOCK or n % BLOCK:
        raise ValueError(f"codes [{k}, {n}]; wanted multiples of {BLOCK}")
    if bits not in (4, 3):
        raise ValueError(f"{bits} bits of codes two a byte; wanted 4 or 3")
    out = np.empty((n // BLOCK, k // BLOCK, packed_bytes(BLOCK, BLOCK, bits) // 4), np.uint32)
    words = (
        np.ascontiguousarray(pairs).view(np.uint32).reshape(k // BLOCK, 2, 4, 4, n // BLOCK, 4)
    )  # block, register, lane % 4, byte, block row, tile
    for row, block in itertools.product(range(0, n // BLOCK, _ROWS), range(0, k // BLOCK, _BLOCKS)):
        part = words[block : block + _BLOCKS, ..., row : row + _ROWS, :]
        blocks, rows = part.shape[0], part.shape[4]
        both = np.ascontiguousarray(part.transpose(1, 3, 5, 0, 2, 4))  # each register: byte, tile, block, lane % 4, block row
        made = np.empty((4, bits, 2, blocks, 4, rows), np.uint32)  # byte, word of a lane, odd output, block, lane % 4, block row
        if bits == 4:
            _merge(both[0], both[1], made)
        else:
            _merge_three(both, made)
        lying = _exchange(made).reshape(-1).take(_order(bits, rows, blocks))
        out[row : row + rows, block : block + blocks] = lying.reshape(rows, blocks, -1)
    return out.reshape(-1).view(np.int8)


def _merge(low: _Words, high: _Words, out: npt.NDArray[Any]) -> None:
    """Of each byte of [byte, tile, ...] two: the low nibbles of both, and the high nibbles of both. out: [byte, tile, 2, ...]."""
    even, odd = out[:, :, 0], out[:, :, 1]
    np.bitwise_and(high, _word(0x0F), out=even)
    even <<= np.uint32(4)
    even |= low & _word(0x0F)
    np.right_shift(low, np.uint32(4), out=odd)
    odd &= _word(0x0F)
    odd |= high & _word(0xF0)


def _merge_three(both: _Words, out: npt.NDArray[Any]) -> None:
    """Two bits of each code of tiles 0 and 1, of tiles 2 and 3, and the signs of all."""
    first, second = both
    apart = both >> np.uint32(1)
    apart ^= both
    apart &= _word(0x44)  # the upper two bits of a code of three are its sign
    if apart.max(initial=0):
        raise ValueError("codes of more than 3 bits; 3 bits hold -4 to 3")
    bits = (second & _word(0x33)) << np.uint32(2)
    bits |= first & _word(0x33)
    _merge(bits[:, 0::2], bits[:, 1::2], out[:, :2])
    signs = second >> np.uint32(1) & _word(0x22)
    signs |= first >> np.uint32(2) & _word(0x11)
    tiles = signs[:, 1::2] << np.uint32(2)
    tiles |= signs[:, 0::2]
    _merge(tiles[:, :1], tiles[:, 1:], out[:, 2:])


def _exchange(words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Byte q of words[i] becomes byte i of the result's [q]: pairs of bytes first, then halves of words."""
    half = np.empty_like(words)
    for i in (0, 2):
        np.bitwise_and(words[i + 1], np.uint32(0x00FF00FF), out=half[i])
        half[i] <<= np.uint32(8)
        half[i] |= words[i] & np.uint32(0x00FF00FF)
        np.right_shift(words[i], np.uint32(8), out=half[i + 1])
        half[i + 1] &= np.uint32(0x00FF00FF)
        half[i + 1] |= words[i + 1] & np.uint32(0xFF00FF00)
    for q in (0, 1):
        np.left_shift(half[q + 2], np.uint32(16), out=words[q])
        words[q] |= half[q] & np.uint32(0xFFFF)
        np.right_shift(half[q], np.uint32(16), out=words[q + 2])
        words[q + 2] |= half[q + 2] & np.uint32(0xFFFF0000)
    return words


@functools.lru_cache(maxsize=4)
def _order(bits: int, rows: int, blocks: int) -> npt.NDArray[np.intp]:
    """Of words [q, word, odd output, block, lane % 4, block row] -> [block row, block], then bits 4: [lane, word], bits 3: [word, lane]."""
    axes = (5, 3, 0, 2, 4, 1) if bits == 4 else (5, 3, 1, 0, 2, 4)
    shape = (4, bits, 2, blocks, 4, rows)
    return np.arange(np.prod(shape), dtype=np.intp).reshape(shape).transpose(axes).reshape(-1)


def _word(byte: int) -> np.uint32:
    """The same byte four times."""
    return np.uint32(byte * 0x01010101)
