"""Packed weights: every code where the description says, and nothing lost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vditc.plugins.packing import BITS, BLOCK, code_range, pack, pack_tokens, packed_bytes, unpack, unpack_tokens
from vditc.plugins.packing_pairs import pack_pairs

KINDS = (*((bits, False) for bits in BITS), (4, True))


def random_codes(seed: int, n: int, k: int, bits: int, unsigned: bool = False) -> npt.NDArray[np.int8]:
    low, high = code_range(bits, unsigned=unsigned)
    return np.random.default_rng(seed).integers(low, high + 1, (n, k), dtype=np.int8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 100), st.integers(1, 100), st.sampled_from(KINDS))
def test_unpacking_gives_the_codes_back(seed: int, n: int, k: int, kind: tuple[int, bool]) -> None:
    bits, unsigned = kind
    codes = random_codes(seed, n, k, bits, unsigned)
    packed = pack(codes, bits, unsigned=unsigned)
    assert packed.shape == (packed_bytes(n, k, bits),) and packed.dtype == np.int8
    np.testing.assert_array_equal(unpack(packed, n, k, bits, unsigned=unsigned), codes)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 3]))
def test_pairs_of_onnx_are_packed_as_their_codes_are(seed: int, rows: int, columns: int, bits: int) -> None:
    codes = random_codes(seed, BLOCK * rows, BLOCK * columns, bits)
    np.testing.assert_array_equal(pack_pairs(pairs_of(codes), bits), pack(codes, bits))


def pairs_of(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """[N, K] -> as ONNX has them."""
    across = np.ascontiguousarray(codes.T).view(np.uint8)
    return (across[:, 0::2] & 15 | across[:, 1::2] << 4).astype(np.uint8)


def test_panels_of_every_height() -> None:
    """Many block rows at once, the last ones fewer, edges filled up."""
    for bits, unsigned in KINDS:
        codes = random_codes(bits, 5000, 300, bits, unsigned)
        packed = pack(codes, bits, unsigned=unsigned)
        np.testing.assert_array_equal(unpack(packed, 5000, 300, bits, unsigned=unsigned), codes)
        block = packed_bytes(BLOCK, 300, bits)
        for row in (0, 3200, 4992):  # what a row of blocks is by itself
            part = pack(codes[row : row + BLOCK], bits, unsigned=unsigned)
            np.testing.assert_array_equal(packed[row // BLOCK * block :][:block], part)


def test_pairs_that_cannot_be_packed_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"codes \[32, 48\]; wanted multiples of 32"):
        pack_pairs(np.zeros((32, 24), np.uint8), 4)
    with pytest.raises(ValueError, match="8 bits of codes two a byte; wanted 4 or 3"):
        pack_pairs(np.zeros((32, 16), np.uint8), 8)


@pytest.mark.parametrize("code", [-5, 4, 7, -8])
@pytest.mark.parametrize("at", [(0, 0), (1, 16), (31, 47), (63, 95)])
def test_pairs_that_do_not_fit_in_three_bits_are_an_error(code: int, at: tuple[int, int]) -> None:
    codes = random_codes(0, 64, 96, 3)
    codes[at] = code
    with pytest.raises(ValueError, match="codes of more than 3 bits; 3 bits hold -4 to 3"):
        pack_pairs(pairs_of(codes), 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), max_size=3), st.integers(1, 5))
def test_tokens_come_back(seed: int, leading: list[int], blocks: int) -> None:
    codes = np.random.default_rng(seed).integers(-8, 8, (*leading, 32 * blocks), dtype=np.int8)
    packed = pack_tokens(codes)
    assert packed.shape == (*leading, 16 * blocks) and packed.dtype == np.int8
    np.testing.assert_array_equal(unpack_tokens(packed), codes)


def test_tokens_and_weights_of_a_lane_are_of_the_same_channels() -> None:
    """A lane's word of packed tokens: low nibbles are the channels of register 0 of its weights, high ones those of register 1."""
    channels = np.arange(BLOCK, dtype=np.int8)
    tokens = [pack_tokens((channels >> s & 3)[None])[0].view(np.uint32) for s in (0, 2, 4)]  # a channel's number, two bits at a time
    weights = [pack(np.broadcast_to(channels >> s & 3, (BLOCK, BLOCK)), 4).view(np.uint32).reshape(32, 4) for s in (0, 2, 4)]
    for lane in range(32):
        assert all(t[lane % 4] == w[lane, tile] for t, w in zip(tokens, weights, strict=True) for tile in range(4))


def test_tokens_that_cannot_be_packed_are_errors() -> None:
    with pytest.raises(ValueError, match="48 channels; wanted a multiple of 32"):
        pack_tokens(np.zeros((2, 48), np.int8))
    with pytest.raises(ValueError, match="codes from 0 to 8; 4 bits hold -8 to 7"):
        pack_tokens(np.arange(32, dtype=np.int8)[None] // 31 * 8)


def operand(packed: npt.NDArray[np.int8], block: int, bits: int, lane: int, tile: int, register: int, byte: int, unsigned: bool) -> int:
    """One code, read as a warp's lane does: the fragment map of PTX and the bits of the module's docstring, written a second time."""
    words = packed[block * BLOCK * BLOCK * bits // 8 :].view(np.uint32)
    match bits:
        case 8:
            group, word = divmod(2 * tile + register, 4)
            field = int(words[(group * 32 + lane) * 4 + word]) >> 8 * byte & 0xFF
        case 4:
            field = int(words[lane * 4 + tile]) >> 8 * byte + 4 * register & 0xF
        case _:
            low = int(words[tile // 2 * 32 + lane]) >> 8 * byte + 2 * (2 * (tile % 2) + register) & 3
            field = low | (int(words[2 * 32 + lane]) >> 8 * byte + 2 * tile + register & 1) << 2
    return field - (1 << bits if field >> bits - 1 and not unsigned else 0)


@pytest.mark.parametrize(("bits", "unsigned"), KINDS)
def test_every_lane_finds_its_codes(bits: int, unsigned: bool) -> None:
    codes = random_codes(bits, 2 * BLOCK, 3 * BLOCK, bits, unsigned)
    packed = pack(codes, bits, unsigned=unsigned)
    found = np.zeros_like(codes)
    for block in range(6):
        row, column = divmod(block, 3)
        for lane, tile, register, byte in np.ndindex(32, 4, 2, 4):
            n = row * BLOCK + 8 * tile + lane // 4
            k = column * BLOCK + 16 * register + 4 * (lane % 4) + byte
            found[n, k] = operand(packed, block, bits, lane, tile, register, byte, unsigned)
    np.testing.assert_array_equal(found, codes)


def test_bits_are_exact() -> None:
    assert [packed_bytes(1536, 8960, bits) * 8 / (1536 * 8960) for bits in BITS] == [8, 4, 3]
    assert packed_bytes(33, 1, 4) == 2 * BLOCK * BLOCK // 2  # edges are filled up


@pytest.mark.parametrize("code", [-5, 4])
def test_codes_that_do_not_fit_are_an_error(code: int) -> None:
    with pytest.raises(ValueError, match=f"codes from .*{code}.*; 3 bits hold -4 to 3"):
        pack(np.array([[0, code]], np.int8), 3)


def test_unsigned_codes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="codes from -1 to 15; 4 bits hold 0 to 15"):
        pack(np.array([[-1, 15]], np.int8), 4, unsigned=True)
    with pytest.raises(ValueError, match="3 bits, unsigned; there are 8, 4, 3, and 4 unsigned"):
        pack(np.zeros((1, 1), np.int8), 3, unsigned=True)


def test_other_bits_and_lengths_are_errors() -> None:
    with pytest.raises(ValueError, match="5 bits; there are 8, 4, 3"):
        pack(np.zeros((1, 1), np.int8), 5)
    with pytest.raises(ValueError, match=r"7 bytes; 4-bit codes \[1, 1\] take 512"):
        unpack(np.zeros(7, np.int8), 1, 1, 4)
