from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vditc.hadamard import block_of, factors, paley, rotate, sylvester

WIDTHS = (72, 192, 768, 1152, 1536, 1920, 2048, 2240, 2304, 3072, 4608, 5120, 5376, 8960, 13824, 14336)  # of video transformers


@pytest.mark.parametrize("order", [4, 8, 12, 20, 24, 28, 32, 36, 44, 60, 76, 84, 108, 140])
def test_small_matrices_are_hadamard(order: int) -> None:
    matrix = paley(order)
    assert matrix is not None and matrix.shape == (order, order) and set(np.unique(matrix)) == {-1, 1}
    np.testing.assert_array_equal(matrix.astype(int) @ matrix.T, order * np.eye(order, dtype=int))


@pytest.mark.parametrize("order", [1, 2, 16, 64])
def test_sylvesters_matrices(order: int) -> None:
    matrix = sylvester(order).astype(int)
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order, dtype=int))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_of_a_video_transformer_rotates_whole_and_cheaply(width: int) -> None:
    found = factors(width)
    assert found is not None and block_of(width) == width
    a, b = found
    assert len(a) * len(b) == width and len(a) + len(b) <= max(width / 5, 40)
    for matrix in found:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=5e-6)  # float32


@pytest.mark.parametrize(("width", "block"), [(1, 1), (6, 2), (7, 1), (14, 2), (92 * 4, 92 * 4), (10, 2)])
def test_other_widths_rotate_in_blocks(width: int, block: int) -> None:
    assert block_of(width) == block


@given(st.sampled_from([12, 36, 64, 140]), st.integers(1, 3), st.integers(0, 10))
def test_rotation_is_a_product_with_one_orthonormal_matrix(block: int, blocks: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 3, block * blocks)).astype(np.float32)
    a, b = factors(block) or (np.eye(1), np.eye(1))
    q = np.kron(np.eye(blocks), np.kron(a, b))
    np.testing.assert_allclose(rotate(x, block), x @ q, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rotate(x, block), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_an_outlier_is_spread_over_its_block() -> None:
    x = np.zeros((1, 1536), np.float32)
    x[0, 5] = 1536**0.5
    np.testing.assert_allclose(np.abs(rotate(x, 1536)), 1.0, rtol=1e-5)


def test_a_block_without_a_matrix_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rotation of blocks of 6 of 12 channels"):
        rotate(np.zeros((1, 12), np.float32), 6)
