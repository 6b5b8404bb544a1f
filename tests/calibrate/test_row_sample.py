from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vditc.calibrate.row_sample import RowSample, row_keys

WIDTH = 3


def rows(seed: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32) * np.float32(1e6)


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 12), st.randoms())
def test_order_and_sharding_do_not_matter(counts: list[int], size: int, shuffle: object) -> None:
    parts = [(row_keys((i,), n), rows(i, n)) for i, n in enumerate(counts)]
    whole = RowSample(size, WIDTH)
    for keys, values in parts:
        whole.offer(keys, values)
    mixed = list(parts)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    halves = RowSample(size, WIDTH), RowSample(size, WIDTH)
    for number, (keys, values) in enumerate(mixed):
        halves[number % 2].offer(keys, values)
    halves[0].merge(halves[1])
    np.testing.assert_array_equal(halves[0].read(), whole.read())
    assert len(whole.read()) == min(size, sum(counts))


def test_kept_rows_are_those_of_the_smallest_keys() -> None:
    sample = RowSample(2, WIDTH)
    assert sample.bar == np.inf
    sample.offer(np.array([0.5, 0.1, 0.9]), rows(0, 3))
    assert sample.bar == 0.5
    np.testing.assert_allclose(sample.read(), rows(0, 3)[[1, 0]], rtol=1e-3)  # float16


def test_every_row_is_as_likely() -> None:
    chosen = np.zeros(10)
    for seed in range(400):
        sample = RowSample(3, 1)
        sample.offer(row_keys((seed, 0), 5), np.arange(5, dtype=np.float32)[:, None])
        sample.offer(row_keys((seed, 1), 5), np.arange(5, 10, dtype=np.float32)[:, None])
        chosen[np.rint(sample.read()[:, 0]).astype(int)] += 1
    assert chosen.sum() == 1200 and np.abs(chosen - 120).max() < 40  # 4.4 standard deviations


def test_rows_of_zeros_and_of_huge_values_are_kept_as_they_are() -> None:
    sample = RowSample(2, WIDTH)
    values = np.array([[0, 0, 0], [1e30, -1, 1e30]], np.float32)
    sample.offer(np.array([0.1, 0.2]), values)
    np.testing.assert_allclose(sample.read(), np.array([[0, 0, 0], [1e30, 0, 1e30]]), rtol=1e-3)


def test_it_comes_back_from_its_state() -> None:
    sample = RowSample(4, WIDTH)
    sample.offer(row_keys((0,), 9), rows(0, 9))
    back = RowSample.restored(4, sample.state())
    np.testing.assert_array_equal(back.read(), sample.read())
    assert back.bar == sample.bar


def test_rows_are_chosen_before_they_are_had() -> None:
    sample = RowSample(2, WIDTH)
    assert sorted(sample.chosen(np.array([0.9, 0.3, 0.5, 0.1]))) == [1, 3]
    sample.offer(np.array([0.3, 0.1]), rows(0, 2))
    assert list(sample.chosen(np.array([0.2, 0.3, 0.4]))) == [0]
    assert len(sample.chosen(np.array([0.4]))) == 0
    sample.put(np.empty(0), np.empty((0, WIDTH), np.float16), np.empty(0, np.float32))
    np.testing.assert_allclose(sample.read(), rows(0, 2)[::-1], rtol=1e-3)
