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

import numpy as np
import numpy.typing as npt

LAYOUT = 1  # the version of what this file describes; an attribute of every node that reads it
BLOCK = 32  # outputs and inputs of a block
BITS = (8, 4, 3)

_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint32]
_Codes = npt.NDArray[np.int8]


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
    panel = packed_bytes(BLOCK, k, bits)
    for i, row in enumerate(range(0, n, BLOCK)):
        rows = codes[row : row + BLOCK]
        if rows.shape != (BLOCK, k + -k % BLOCK):
            rows = np.pad(rows, ((0, BLOCK - len(rows)), (0, -k % BLOCK)))
        out[i * panel : (i + 1) * panel] = _PACK[bits](_lanes(np.ascontiguousarray(rows))).reshape(-1).view(np.uint8)
    return out.view(np.int8)


def unpack(packed: _Codes, n: int, k: int, bits: int, *, unsigned: bool = False) -> _Codes:
    """The inverse: int8 [packed_bytes] -> codes int8 [n, k]. ValueError for another number of bytes."""
    _check(bits, unsigned)
    if packed.shape != (packed_bytes(n, k, bits),):
        raise ValueError(f"{packed.size} bytes; {bits}-bit codes [{n}, {k}] take {packed_bytes(n, k, bits)}")
    out = np.empty((n, k), np.int8)
    panel = packed_bytes(BLOCK, k, bits)
    for i, row in enumerate(range(0, n, BLOCK)):
        words = np.ascontiguousarray(packed[i * panel : (i + 1) * panel]).view(np.uint32)
        rows = _rows(_UNPACK[bits](words.reshape(-1, BLOCK * bits)))
        out[row : row + BLOCK] = (rows & np.int8(15) if unsigned else rows)[: n - row, :k]
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


def _lanes(rows: _Codes) -> _Words:
    """Codes [32, K] -> words [2 j + h, K / 32, lane]."""
    words = rows.view(np.uint32).reshape(4, 8, -1, 2, 4)  # tile, lane / 4, block, register, lane % 4
    return np.ascontiguousarray(words.transpose(0, 3, 2, 1, 4)).reshape(8, -1, 32)


def _rows(lanes: _Words) -> _Codes:
    """The inverse of `_lanes`."""
    words = lanes.reshape(4, 2, -1, 8, 4).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(words).reshape(BLOCK, -1).view(np.int8)


def _pack8(lanes: _Words) -> _Words:
    return np.ascontiguousarray(lanes.reshape(2, 4, -1, 32).transpose(2, 0, 3, 1))


def _unpack8(words: _Words) -> _Words:
    return np.ascontiguousarray(words.reshape(-1, 2, 32, 4).transpose(1, 3, 0, 2)).reshape(8, -1, 32)


def _pack4(lanes: _Words) -> _Words:
    pairs = lanes & _bytes(15)
    return np.ascontiguousarray((pairs[0::2] | pairs[1::2] << _FOUR).transpose(1, 2, 0))


def _unpack4(words: _Words) -> _Words:
    tiles = np.ascontiguousarray(words.reshape(-1, 32, 4).transpose(2, 0, 1))
    return _signed(np.stack([tiles & _bytes(15), tiles >> _FOUR & _bytes(15)], axis=1).reshape(8, -1, 32), 4)


def _pack3(lanes: _Words) -> _Words:
    out = np.zeros((3, *lanes.shape[1:]), np.uint32)
    for i, word in enumerate(lanes):  # 2 j + h
        out[i // 4] |= (word & _bytes(3)) << np.uint32(2 * (i % 4))
        out[2] |= (word >> np.uint32(2) & _bytes(1)) << np.uint32(i)
    return np.ascontiguousarray(out.transpose(1, 0, 2))


def _unpack3(words: _Words) -> _Words:
    planes = np.ascontiguousarray(words.reshape(-1, 3, 32).transpose(1, 0, 2))
    lanes = np.empty((8, *planes.shape[1:]), np.uint32)
    for i in range(8):
        lanes[i] = planes[i // 4] >> np.uint32(2 * (i % 4)) & _bytes(3)
        lanes[i] |= (planes[2] >> np.uint32(i) & _bytes(1)) << np.uint32(2)
    return _signed(lanes, 3)


def _bytes(mask: int) -> np.uint32:
    """The same byte four times."""
    return np.uint32(mask * 0x01010101)


def _signed(words: _Words, bits: int) -> _Words:
    """Every byte of `bits` bits as an int8."""
    sign = np.uint8(1 << bits - 1)
    values: _Words = ((words.view(np.uint8) ^ sign) - sign).view(np.uint32)
    return values


_FOUR = np.uint32(4)
_PACK = {8: _pack8, 4: _pack4, 3: _pack3}
_UNPACK = {8: _unpack8, 4: _unpack4, 3: _unpack3}
