"""How the weights of `QLinear` lie in memory: blocks in the order in which the lanes of a warp read them.

Codes [N, K], N outputs, K inputs, are cut into blocks of 32 x 32, those at the edges filled up with zeros; block rows follow each other,
in a row the blocks along K. In a block the 32 lanes of a warp hold what `mma.sync.m16n8k32` reads as its second operand (PTX ISA, "Matrix
Fragments for mma.m16n8k32"): of the four tiles j of 8 outputs, lane l has output 8 j + l / 4 and inputs 4 (l % 4) + b (first register)
and 4 (l % 4) + b + 16 (second register), b = 0 ... 3 being bytes, the lowest first.

    bits 8   [2 groups][32 lanes][4 words]   word 2 j + h of a lane: register h of tile j
    bits 4   [32 lanes][4 words]             word j: register 0 in the low nibbles, register 1 in the high ones
    bits 3   [3 words][32 lanes]             words 0, 1: two bits of each code, tiles 2 w and 2 w + 1; word 2: the sign bits

Three bits take exactly three: of byte b of word w < 2, bits 2 f and 2 f + 1 are the low bits of tile 2 w + f / 2, register f % 2;
of byte b of word 2, bit 2 j + h is the sign (weight -4) of tile j, register h. Codes are two's complement, or of four bits unsigned.
Words are little endian.

Codes of tokens [..., K] of four bits and fewer may lie two in a byte (`pack_tokens`): of four such bytes the low nibbles meet the first
register of the weights' block, the high ones the second.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

LAYOUT = 1  # the version of what this file describes; an attribute of every node that reads it
BLOCK = 32  # outputs and inputs of a block
BITS = (8, 4, 3)

_Bytes = npt.NDArray[np.uint8]
_Codes = npt.NDArray[np.int8]
_LANES = np.dtype(np.complex128)  # sixteen bytes that are copied as one; no arithmetic is done with it
_Panel = npt.NDArray[Any]
_PANEL = 1 << 20  # codes


def code_range(bits: int, *, unsigned: bool = False) -> tuple[int, int]:
    """The least and the greatest code of `bits` bits in two's complement, or from 0 on."""
    return (0, (1 << bits) - 1) if unsigned else (-(1 << bits - 1), (1 << bits - 1) - 1)


def packed_bytes(n: int, k: int, bits: int) -> int:
    """Bytes of packed codes [n, k]."""
    return -(-n // BLOCK) * -(-k // BLOCK) * BLOCK * BLOCK * bits // 8


def pack(codes: _Codes, bits: int, *, unsigned: bool = False) -> _Codes:
    """Codes int8 [N, K] -> int8 [packed_bytes]. ValueError for bits that there are not and for codes that do not fit in them."""
    _check(bits, unsigned)
    low, high = code_range(bits, unsigned=unsigned)
    if codes.size and (int(codes.min()) < low or int(codes.max()) > high):
        raise ValueError(f"codes from {codes.min()} to {codes.max()}; {bits} bits hold {low} to {high}")
    n, k = codes.shape
    out = np.empty(packed_bytes(n, k, bits), np.uint8)
    whole = k + -k % BLOCK
    for row, rows, begin, end in _panels(n, k, bits):
        part = codes[row : row + rows]
        if part.shape != (rows, whole):
            part = np.pad(part, ((0, rows - len(part)), (0, whole - k)))
        _PACK[bits](np.ascontiguousarray(part).view(_LANES).reshape(-1, 4, 8, whole // BLOCK, 2), out[begin:end])
    return out.view(np.int8)


def unpack(packed: _Codes, n: int, k: int, bits: int, *, unsigned: bool = False) -> _Codes:
    """The inverse: int8 [packed_bytes] -> codes int8 [n, k]. ValueError for another number of bytes."""
    _check(bits, unsigned)
    if packed.shape != (packed_bytes(n, k, bits),):
        raise ValueError(f"{packed.size} bytes; {bits}-bit codes [{n}, {k}] take {packed_bytes(n, k, bits)}")
    out = np.empty((n, k), np.int8)
    whole = k + -k % BLOCK
    stored = np.ascontiguousarray(packed).view(np.uint8)
    for row, rows, begin, end in _panels(n, k, bits):
        fits = row + rows <= n and whole == k
        part = out[row : row + rows] if fits else np.empty((rows, whole), np.int8)
        _UNPACK[bits](stored[begin:end], part.view(_LANES).reshape(-1, 4, 8, whole // BLOCK, 2), unsigned)
        if not fits:
            out[row : row + rows] = part[: n - row, :k]
    return out


def pack_tokens(codes: _Codes) -> _Codes:
    """Codes int8 [..., K] of 4 bits or fewer -> int8 [..., K / 2]: in a block of 32 channels byte i has i low and i + 16 high.

    ValueError for K that is no multiple of 32 and for codes that do not fit.
    """
    low, high = code_range(4)
    if codes.shape[-1] % BLOCK:
        raise ValueError(f"{codes.shape[-1]} channels; wanted a multiple of {BLOCK}")
    if codes.size and (int(codes.min()) < low or int(codes.max()) > high):
        raise ValueError(f"codes from {codes.min()} to {codes.max()}; 4 bits hold {low} to {high}")
    halves = codes.reshape(*codes.shape[:-1], -1, 2, BLOCK // 2).view(np.uint8)
    pairs: _Bytes = halves[..., 0, :] & np.uint8(15) | halves[..., 1, :] << np.uint8(4)
    return pairs.reshape(*codes.shape[:-1], codes.shape[-1] // 2).view(np.int8)


def unpack_tokens(packed: _Codes) -> _Codes:
    """The inverse: int8 [..., K / 2] -> codes int8 [..., K]."""
    pairs = packed.reshape(*packed.shape[:-1], -1, BLOCK // 2)
    both: _Codes = np.stack([pairs << np.int8(4) >> np.int8(4), pairs >> np.int8(4)], axis=-2)
    return both.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def _check(bits: int, unsigned: bool) -> None:
    if bits not in BITS or (unsigned and bits != 4):
        raise ValueError(f"{bits} bits{', unsigned' * unsigned}; there are {', '.join(map(str, BITS))}, and 4 unsigned")


def _panels(n: int, k: int, bits: int) -> Iterator[tuple[int, int, int, int]]:
    """First row and rows of each panel, a multiple of 32 that stays in a core's cache, and where its packed bytes begin and end."""
    size = packed_bytes(BLOCK, k, bits)
    blocks, at_once = -(-n // BLOCK), max(1, _PANEL // (BLOCK * max(k, 1)))
    for i in range(0, blocks, at_once):
        count = min(at_once, blocks - i)
        yield i * BLOCK, count * BLOCK, i * size, (i + count) * size


# A panel is seen as [block rows, tile, lane / 4, block, register], elements of 16 bytes: what four lanes read. Bytes of codes of four and
# three bits are put together in planes [block rows, lane / 4, block], of which there is one for each tile and register.


def _planes(panel: _Panel) -> _Panel:
    """[2 j + h, block rows, lane / 4, block]."""
    out = np.empty((8, panel.shape[0], *panel.shape[2:4]), _LANES)
    for i in range(8):
        out[i] = panel[:, i // 2, :, :, i % 2]
    return out


def _from_planes(planes: _Panel, panel: _Panel) -> None:
    """The inverse of `_planes`."""
    for i in range(8):
        panel[:, i // 2, :, :, i % 2] = planes[i]


def _order(*shape: int, axes: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Where each word of the transposed array is in the array of this shape."""
    return np.arange(np.prod(shape), dtype=np.intp).reshape(shape).transpose(axes).reshape(-1)


def _inverse(order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    out = np.empty_like(order)
    out[order] = np.arange(len(order), dtype=np.intp)
    return out


@functools.lru_cache(maxsize=4)
def _order8(rows: int, blocks: int, back: bool) -> npt.NDArray[np.intp]:
    """Of words [rows, 2 groups, 2 tiles, lane / 4, block, register, lane % 4] -> [rows, block, group, lane, tile, register]."""
    order = _order(rows, 2, 2, 8, blocks, 2, 4, axes=(0, 4, 1, 3, 6, 2, 5))
    return _inverse(order) if back else order


@functools.lru_cache(maxsize=4)
def _order4(rows: int, blocks: int, back: bool) -> npt.NDArray[np.intp]:
    """Of words [tile, rows, lane / 4, block, lane % 4] -> [rows, block, lane, tile]."""
    order = _order(4, rows, 8, blocks, 4, axes=(1, 3, 2, 4, 0))
    return _inverse(order) if back else order


def _pack8(panel: _Panel, out: _Bytes) -> None:
    np.take(panel.view(np.uint32).reshape(-1), _order8(panel.shape[0], panel.shape[3], False), out=out.view(np.uint32), mode="clip")


def _unpack8(packed: _Bytes, panel: _Panel, unsigned: bool) -> None:
    words = panel.reshape(-1).view(np.uint32)
    np.take(packed.view(np.uint32), _order8(panel.shape[0], panel.shape[3], True), out=words, mode="clip")


def _pack4(panel: _Panel, out: _Bytes) -> None:
    planes = _planes(panel).view(np.uint64)
    planes &= _bytes(15)
    pairs = planes[1::2] << _FOUR
    pairs |= planes[0::2]
    np.take(pairs.reshape(-1).view(np.uint32), _order4(panel.shape[0], panel.shape[3], False), out=out.view(np.uint32), mode="clip")


def _unpack4(packed: _Bytes, panel: _Panel, unsigned: bool) -> None:
    pairs = np.empty((4, panel.shape[0], 8, panel.shape[3]), _LANES)
    words = pairs.reshape(-1).view(np.uint32)
    np.take(packed.view(np.uint32), _order4(panel.shape[0], panel.shape[3], True), out=words, mode="clip")
    planes = np.empty((8, *pairs.shape[1:]), _LANES)
    wide, stored = planes.view(np.uint64), pairs.view(np.uint64)
    np.bitwise_and(stored, _bytes(15), out=wide[0::2])
    np.right_shift(stored, _FOUR, out=wide[1::2])
    wide[1::2] &= _bytes(15)
    if not unsigned:
        _sign(planes, 4)
    _from_planes(planes, panel)


def _pack3(panel: _Panel, out: _Bytes) -> None:
    planes = _planes(panel).view(np.uint64)
    words = np.empty((3, *planes.shape[1:]), np.uint64)
    low, sign = np.empty_like(words[0]), np.empty_like(words[0])
    for i, plane in enumerate(planes):  # 2 j + h
        np.bitwise_and(plane, _bytes(3), out=low)
        np.bitwise_and(plane, _bytes(4), out=sign)
        first = i % 4 == 0
        np.left_shift(low, np.uint64(2 * (i % 4)), out=words[i // 4] if first else low)
        if not first:
            words[i // 4] |= low
        shifted = words[2] if i == 0 else sign
        (np.right_shift if i < 2 else np.left_shift)(sign, np.uint64(abs(i - 2)), out=shifted)
        if i:
            words[2] |= sign
    lying = out.view(_LANES).reshape(panel.shape[0], panel.shape[3], 3, 8)
    for i, word in enumerate(words.view(_LANES)):  # [rows, lane / 4, block]
        for group in range(8):
            lying[:, :, i, group] = word[:, group]


def _unpack3(packed: _Bytes, panel: _Panel, unsigned: bool) -> None:
    lying = packed.view(_LANES).reshape(panel.shape[0], panel.shape[3], 3, 8)
    words = np.empty((3, panel.shape[0], 8, panel.shape[3]), _LANES)
    for i in range(3):
        for group in range(8):
            words[i, :, group] = lying[:, :, i, group]
    stored = words.view(np.uint64)
    planes = np.empty((8, *words.shape[1:]), _LANES)
    wide, sign = planes.view(np.uint64), np.empty_like(stored[0])
    for i in range(8):
        np.right_shift(stored[i // 4], np.uint64(2 * (i % 4)), out=wide[i])
        wide[i] &= _bytes(3)
        (np.left_shift if i < 2 else np.right_shift)(stored[2], np.uint64(abs(i - 2)), out=sign)
        sign &= _bytes(4)
        wide[i] |= sign
    _sign(planes, 3)
    _from_planes(planes, panel)


def _bytes(mask: int) -> np.uint64:
    """The same byte eight times."""
    return np.uint64(mask * 0x0101010101010101)


def _sign(planes: _Panel, bits: int) -> None:
    """Every byte of `bits` bits becomes an int8, in place."""
    values, sign = planes.view(np.uint8), np.uint8(1 << bits - 1)
    values ^= sign
    values -= sign


_FOUR = np.uint64(4)
_PACK = {8: _pack8, 4: _pack4, 3: _pack3}
_UNPACK = {8: _unpack8, 4: _unpack4, 3: _unpack3}
