"""Observers: maxima and samples over a stream, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vditc.calibrate.methods.base import InputStatistics
from vditc.calibrate.observers import Observers
from vditc.calibrate.row_sample import row_keys
from vditc.calibrate.shared_inputs import SharedInputs
from vditc.calibrate.trajectories import Seen, watched
from vditc.errors import InputError, VditcError


def channels(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, np.float32)


def watching(*layers: str, width: int = 3, steps: int = 2, rows: int = 0) -> Observers:
    """Observers of layers with inputs of their own."""
    observers = Observers(dict.fromkeys(layers, width), steps, rows)
    assert all(observers.reads([layer]) == [layer] for layer in layers)
    return observers


def test_update_keeps_maxima_per_step_and_channel() -> None:
    observers = watching("a")
    observers.update("a", 0, channels(1, 5, 2))
    observers.update("a", 1, channels(4, 0, 0))
    observers.update("a", 0, channels(3, 1, 1))
    seen = observers.statistics("a")
    np.testing.assert_array_equal(seen.channel_absmax, [[3, 5, 2], [4, 0, 0]])
    np.testing.assert_array_equal(seen.absmax, [5, 4])
    np.testing.assert_array_equal(seen.channels, [4, 5, 2])


def test_layers_that_read_one_tensor_share_what_was_seen() -> None:
    observers = Observers({"q": 3, "k": 3, "v": 3, "out": 3}, 1)
    for _ in range(2):
        assert observers.reads(["q", "k", "v"]) == ["q"] and observers.reads(["out"]) == ["out"]
        observers.update("q", 0, channels(1, 2, 3))
        observers.update("out", 0, channels(9, 9, 9))
    assert observers.groups() == [("q", "k", "v"), ("out",)]
    assert observers.statistics("v").channel_absmax is observers.statistics("q").channel_absmax
    observers.check()


LAYERS = [f"blocks.0.{name}" for name in ("q", "k", "v")]
# Which numbers q, k and v read, one row for each clip and step; None: it does not run.
PASSES = [(1, 1, 1), (2, 2, 2), (3, 4, 4), (5, 5, None), (6, 6, 6), (7, 8, 9)]


def passes(chosen: list[int], rows: int = 5, into: Observers | None = None) -> Observers:
    """What is seen by watching a block with these passes of `PASSES`."""
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.ModuleDict({n[9:]: torch.nn.Linear(4, 2) for n in LAYERS})])})
    observers = into or Observers(dict.fromkeys(LAYERS, 4), 2, rows, bounds=True)

    class Denoiser:
        def __init__(self) -> None:
            self.model = model

        def __call__(self, feeds: Any, _step: int) -> Any:
            for layer, seed in zip(LAYERS, feeds["seeds"], strict=True):
                if seed is not None:
                    model.get_submodule(layer)(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)))

    with watched(Denoiser(), Seen(observers, None)) as watch:  # type: ignore[arg-type]
        for number in chosen:
            watch.clip = number // 2
            watch({"seeds": PASSES[number]}, number % 2)
    return observers


def seen_alone(layer: str, chosen: list[int]) -> InputStatistics:
    """Of a layer that shares nothing."""
    place, alone = LAYERS.index(layer), Observers({layer: 4}, 2, 5, bounds=True)
    for number in chosen:
        if (seed := PASSES[number][place]) is None:
            continue
        x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)).numpy().reshape(-1, 4)
        assert alone.reads([layer]) == [layer]
        alone.update(layer, number % 2, np.abs(x).max(0), np.stack([x.min(0), x.max(0)]))
        alone.sample(layer).offer(row_keys((number // 2, number % 2), 6), x)
    return alone.statistics(layer)


@pytest.mark.parametrize(
    ("chosen", "groups"),
    [
        ([0, 1, 4], [("q", "k", "v")]),
        ([0, 1, 2], [("q",), ("k", "v")]),
        ([2, 0, 1], [("q",), ("k", "v")]),
        ([0, 3], [("q", "k"), ("v",)]),
        ([0, 1, 3, 2], [("q",), ("k",), ("v",)]),
        ([0, 5, 4], [("q",), ("k",), ("v",)]),
    ],
)
def test_who_shares_at_some_steps_only_shares_nothing(chosen: list[int], groups: list[tuple[str, ...]]) -> None:
    """Each layer has what it read, all of it and nothing else; however passes are shared out, or a run is taken up again."""
    wanted = [tuple(f"blocks.0.{n}" for n in group) for group in groups]
    whole, first, resumed = passes(chosen), passes(chosen[:2]), Observers(dict.fromkeys(LAYERS, 4), 2, 5, bounds=True)
    resumed.restore(*first.state())
    first.merge(passes(chosen[2:]))
    for observers in (whole, first, passes(chosen[2:], into=resumed)):
        assert observers.groups() == wanted
        for layer in LAYERS:
            found, alone = observers.statistics(layer), seen_alone(layer, chosen)
            np.testing.assert_array_equal(found.channel_absmax, alone.channel_absmax)
            np.testing.assert_array_equal(found.bounds, alone.bounds)
            np.testing.assert_array_equal(found.rows, alone.rows)


def test_merging_halves_equals_one_pass(rng: np.random.Generator) -> None:
    stream = [(layer, step, rng.random(4, np.float32)) for _ in range(3) for layer in "ab" for step in range(2)]
    whole, first, second = (watching("a", "b", width=4, rows=5) for _ in range(3))
    for number, (layer, step, row) in enumerate(stream):
        for observers in (whole, first if number < 5 else second):
            observers.update(layer, step, row)
            observers.sample(layer).offer(row_keys((number,), 4), np.outer(row, row))
    first.merge(second)
    arrays, leader = first.state()
    wanted, wanted_leader = whole.state()
    assert arrays.keys() == wanted.keys() and len(arrays) == 8 and leader == wanted_leader
    for key, array in wanted.items():
        np.testing.assert_array_equal(arrays[key], array)


def test_signed_bounds_merge_and_come_back(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((6, 3)).astype(np.float32)
    whole, first, second = (Observers({"a": 3, "b": 3}, 2, bounds=True) for _ in range(3))
    for observers, chosen in ((whole, rows), (first, rows[:3]), (second, rows[3:])):
        assert observers.reads(["a", "b"]) == ["a"]
        for row in chosen:
            for step in range(2):
                observers.update("a", step, np.abs(row), np.stack([row - step, row + step]))
    first.merge(second)
    back = Observers({"a": 3, "b": 3}, 2, bounds=True)
    back.restore(*first.state())
    wanted = np.stack([[rows.min(0), rows.min(0) - 1], [rows.max(0), rows.max(0) + 1]])
    for observers in (whole, back):
        np.testing.assert_array_equal(observers.statistics("b").bounds, wanted)
    arrays, leader = first.state()
    with pytest.raises(KeyError):
        Observers({"a": 3, "b": 3}, 2, bounds=True).restore({k: a for k, a in arrays.items() if "bounds" not in k}, leader)


def test_state_comes_back_and_goes_on(rng: np.random.Generator) -> None:
    observers = watching("blocks.0.to_q", width=2, steps=1, rows=3)
    observers.update("blocks.0.to_q", 0, channels(1, 2))
    observers.sample("blocks.0.to_q").offer(row_keys((1,), 7), rng.standard_normal((7, 2)).astype(np.float32))
    back = Observers({"blocks.0.to_q": 2}, 1, 3)
    back.restore(*observers.state())
    np.testing.assert_array_equal(back.statistics("blocks.0.to_q").rows, observers.statistics("blocks.0.to_q").rows)
    back.update("blocks.0.to_q", 0, channels(3, 1))
    np.testing.assert_array_equal(back.statistics("blocks.0.to_q").channels, [3, 2])
    np.testing.assert_array_equal(observers.statistics("blocks.0.to_q").channels, [1, 2])  # not shared
    arrays, leader = observers.state()
    fresh = Observers({"blocks.0.to_q": 2}, 1, 3)
    with pytest.raises(KeyError):
        fresh.restore({k: a for k, a in arrays.items() if not k.endswith("scale")}, leader)
    assert not fresh.leader and not fresh.seen  # half a state is none


def test_a_step_that_never_ran_is_named() -> None:
    observers = watching("a", width=1)
    observers.update("a", 0, channels(0))
    with pytest.raises(VditcError, match=r"layer a, step 1: found no input of 1 of 1 layers: a;"):
        observers.check()
    with pytest.raises(VditcError, match=r"layer b, step 0: found no input of 2 of 2 layers: b, c;"):
        Observers({"b": 1, "c": 1}, 2).check()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_named(value: float) -> None:
    observers = watching("a", width=2)
    observers.update("a", 0, channels(1, 1))
    with pytest.raises(InputError, match=r"layer a, step 1: found an input that is not finite, first in channel 1"):
        observers.update("a", 1, channels(1, value))


def test_one_tensor_by_its_address_or_its_numbers() -> None:
    x = torch.arange(1.0, 13).reshape(2, 3, 2)
    again, other = torch.cat([x[:1], x[1:]]), x + 1
    shared = SharedInputs()
    reads = [("blocks.0.mlp", x), ("blocks.0.q", again), ("blocks.0.k", again), ("blocks.0.out", other), ("blocks.0.gate", again)]
    assert [shared.reads_as(layer, y) for layer, y in reads] == [None, "blocks.0.mlp", "blocks.0.q", None, "blocks.0.q"]
    # Not the same: other blocks, layers of none, numbers that are nothing but zeros, and equal numbers further apart.
    assert shared.reads_as("blocks.1.q", again) is None and shared.reads_as("head", again) is None
    zeros = [torch.zeros(2, 3, 2) for _ in range(2)]
    assert [shared.reads_as(f"blocks.2.{i}", y) for i, y in enumerate((*zeros, x, other, x.clone()))] == [None] * 5
    assert shared.reads_as("blocks.2.5", other.clone()[:, :1]) is None
