"""Observers: maxima over a stream, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vditc.calibrate.observers import Observers
from vditc.errors import VditcError


def channels(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, np.float32)


def test_update_keeps_maxima_per_step_and_per_channel() -> None:
    observers = Observers({"a": 3}, steps=2)
    observers.update("a", 0, channels(1, 5, 2))
    observers.update("a", 1, channels(4, 0, 0))
    observers.update("a", 0, channels(3, 1, 1))  # less than the 5 of step 0
    np.testing.assert_array_equal(observers.layers["a"].absmax, [5, 4])
    np.testing.assert_array_equal(observers.layers["a"].channel_absmax, [4, 5, 2])


def test_merging_halves_equals_one_pass(rng: np.random.Generator) -> None:
    stream = [(layer, step, rng.random(4, np.float32)) for _ in range(3) for layer in "ab" for step in range(2)]
    whole, first, second = (Observers({"a": 4, "b": 4}, steps=2) for _ in range(3))
    for number, item in enumerate(stream):
        whole.update(*item)
        (first if number < 5 else second).update(*item)
    first.merge(second)
    assert first.state().keys() == whole.state().keys() and len(whole.state()) == 4
    for key, array in whole.state().items():
        np.testing.assert_array_equal(first.state()[key], array)


def test_state_comes_back_and_goes_on(rng: np.random.Generator) -> None:
    observers = Observers({"blocks.0.to_q": 2}, steps=1)
    observers.update("blocks.0.to_q", 0, channels(1, 2))
    back = Observers.restored(observers.state())
    back.update("blocks.0.to_q", 0, channels(3, 1))
    np.testing.assert_array_equal(back.layers["blocks.0.to_q"].channel_absmax, [3, 2])
    np.testing.assert_array_equal(observers.layers["blocks.0.to_q"].channel_absmax, [1, 2])  # not shared


def test_a_step_that_never_ran_is_named() -> None:
    observers = Observers({"a": 1}, steps=2)
    observers.update("a", 0, channels(0))
    with pytest.raises(VditcError, match=r"layer a, step 1: found no input"):
        observers.check()


def test_an_input_that_is_not_finite_is_named() -> None:
    observers = Observers({"a": 2}, steps=2)
    observers.update("a", 0, channels(1, 1))
    observers.update("a", 1, channels(1, np.nan))
    observers.update("a", 1, channels(1, 1))  # does not hide it
    with pytest.raises(VditcError, match=r"layer a, step 1: found an input that is not finite"):
        observers.check()
