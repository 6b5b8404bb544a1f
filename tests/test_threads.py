"""Order, look-ahead and errors of work in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from vditc.threads import ahead, for_each


def test_results_come_in_order_and_one_is_made_ahead() -> None:
    begun = [threading.Event() for _ in range(4)]

    def job(index: int) -> Callable[[], int]:
        def run() -> int:
            begun[index].set()
            return index

        return run

    results = ahead(job(i) for i in range(4))
    for index in range(4):
        assert next(results) == index
        if index < 3:
            assert begun[index + 1].wait(10), "the next is made while this one is used"
        if index < 2:
            assert not begun[index + 2].is_set(), "but no more than that one"
    assert list(results) == []


def test_an_error_comes_where_its_result_would() -> None:
    def fail() -> int:
        raise KeyError("second")

    results = ahead([lambda: 1, fail, lambda: 3])
    assert next(results) == 1
    with pytest.raises(KeyError, match="second"):
        next(results)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_every_item_is_done_once(count: int) -> None:
    done: list[int] = []
    for_each(done.append, range(count))
    assert sorted(done) == list(range(count))


def test_the_first_error_is_raised() -> None:
    def fail(item: int) -> None:
        if item:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 1"):
        for_each(fail, [0, 1, 0, 0])
