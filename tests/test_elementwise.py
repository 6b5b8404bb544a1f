from __future__ import annotations

import os

import numpy as np
import pytest

from vditc import elementwise
from vditc.elementwise import BLOCK, Weighted, combine, guide, in_blocks


def test_a_weighted_sum_rounds_each_product_and_each_sum(rng: np.random.Generator) -> None:
    a, b, c = rng.standard_normal((3, 100), np.float32)
    out, scratch = np.empty(100, np.float32), np.empty(BLOCK, np.float32)
    combine(out, Weighted((1.0, -0.3, 0.0, 7.0), (a, b, np.full(100, np.nan, np.float32))), scratch)
    np.testing.assert_array_equal(out, a + b * np.float32(-0.3))
    combine(a, Weighted((0.5, 1.0), (a, c)), scratch)  # in place
    assert np.isfinite(a).all()
    combine(out, Weighted((0.0,), (a,)), scratch)
    assert (out == 0).all()


def test_in_place_is_as_elsewhere(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((2, 100), np.float32)
    wanted, scratch = a * np.float32(0.5) + b, np.empty(BLOCK, np.float32)
    combine(a, Weighted((0.5, 1.0), (a, b)), scratch)
    np.testing.assert_array_equal(a, wanted)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 4 * BLOCK + 1, 9 * BLOCK - 5])
@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_cover_everything_once(monkeypatch: pytest.MonkeyPatch, size: int, workers: int) -> None:
    monkeypatch.setattr(elementwise, "cores", lambda: workers)
    elementwise._pool.cache_clear()
    seen = np.zeros(size, np.int32)

    def count(at: slice, scratch: np.ndarray) -> None:
        seen[at] += 1
        assert len(scratch) >= len(seen[at])

    in_blocks(size, count)
    elementwise._pool.cache_clear()
    assert (seen == 1).all()


def test_an_error_in_a_block_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "cores", lambda: 2)

    def fail(at: slice, _scratch: np.ndarray) -> None:
        raise ValueError(at.start)

    with pytest.raises(ValueError, match="0"):
        in_blocks(8 * BLOCK, fail)


def test_guidance_is_that_of_the_formula(rng: np.random.Generator) -> None:
    text, empty = rng.standard_normal((2, 2, 3 * BLOCK), np.float32)
    wanted = empty + np.float32(4.5) * (text - empty)
    np.testing.assert_array_equal(guide(np.empty_like(text), text, empty, 4.5), wanted)
    np.testing.assert_array_equal(guide(text, text, empty, 4.5), wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "cores", lambda: 2)
    in_blocks(8 * BLOCK, lambda _at, _scratch: None)
    child = os.fork()
    if child == 0:
        in_blocks(8 * BLOCK, lambda _at, _scratch: None)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
