"""QVGen's branch fades by halves and is gone before the training ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vditc.calibrate.rank_decay import RankDecay, decomposed, redecomposed


def test_ranks_halve_and_the_fading_half_follows_a_cosine() -> None:
    decay = RankDecay(rank=8, iterations=100, tail=0.2)
    assert decay.ranks == [8, 4, 2, 1] and decay.stage == 20
    np.testing.assert_array_equal(decay.gamma(0), [1] * 8)
    np.testing.assert_allclose(decay.gamma(10), [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5], atol=1e-6)
    np.testing.assert_array_equal(decay.gamma(20), [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(decay.gamma(70), [0.5] + [0] * 7, atol=1e-6)  # the last rank fades too
    assert not decay.gamma(80).any() and not decay.gamma(99).any()
    assert [i for i in range(100) if decay.begins(i)] == [20, 40, 60, 80]
    assert [decay.kept(i) for i in (20, 40, 60, 80)] == [4, 2, 1, 0]


@pytest.mark.parametrize("rank", [1, 5, 32])
def test_nothing_is_left_at_the_end(rank: int) -> None:
    for iterations in (10, 99, 1000):
        assert not RankDecay(rank, iterations).gamma(iterations).any()


def test_no_branch_is_a_plan_too() -> None:
    decay = RankDecay(0, 10)
    assert decay.ranks == [] and not any(decay.begins(i) for i in range(10))


def test_the_best_approximation_of_a_rank(rng: np.random.Generator) -> None:
    matrix = torch.from_numpy(rng.standard_normal((6, 10)))
    up, down = decomposed(matrix, 3, 5)
    assert up.shape == (6, 5) and down.shape == (5, 10) and not up[:, 3:].any() and not down[3:].any()
    lost = torch.linalg.svdvals(matrix)[3:]
    np.testing.assert_allclose(torch.linalg.norm(matrix - (up @ down).double()), torch.linalg.norm(lost), rtol=1e-5)
    np.testing.assert_allclose(torch.linalg.norm(up, dim=0)[:3], torch.linalg.norm(down, dim=1)[:3], rtol=1e-5)  # sqrt(S) on either side
    whole = decomposed(matrix, 9, 9)  # more ranks than there are
    np.testing.assert_allclose((whole[0] @ whole[1]).numpy(), matrix.numpy(), atol=1e-5)


def test_a_product_is_decomposed_by_its_factors(rng: np.random.Generator) -> None:
    """And its ranks beyond the cut are gone."""
    up, down = (torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in ((40, 4), (4, 30)))
    wanted = decomposed(up @ down, 2, 4)
    found = redecomposed(up, down, 2)
    assert [tuple(f.shape) for f in found] == [(40, 4), (4, 30)] and not found[0][:, 2:].any() and not found[1][2:].any()
    np.testing.assert_allclose((found[0] @ found[1]).numpy(), (wanted[0] @ wanted[1]).numpy(), atol=1e-4)
