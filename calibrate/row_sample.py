"""A uniform sample of a stream of rows: those with the smallest random keys, so that order and sharding do not matter."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PARTS = ("keys", "rows", "scale")  # of a sample's state


class RowSample:
    """At most `size` rows [K] of all that were offered, stored as float16 times a scale for each row.

    Efraimidis & Spirakis, "Weighted random sampling with a reservoir" (2006), with equal weights. Samples of disjoint streams merge
    into the sample of both.
    """

    def __init__(self, size: int, width: int) -> None:
        self.size = size
        self.keys = np.empty(0, np.float64)  # in no order, like what belongs to them
        self.rows = np.empty((0, width), np.float16)
        self.scale = np.empty(0, np.float32)

    @property
    def bar(self) -> float:
        """Only rows with a key below this can still come in."""
        return float(self.keys.max()) if len(self.keys) == self.size else np.inf

    def chosen(self, keys: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """Which of offered rows with these keys would stay: only they need to be had."""
        below = np.flatnonzero(keys < self.bar)
        return below if len(below) <= self.size else below[_least(keys[below], self.size)]

    def offer(self, keys: npt.NDArray[np.float64], rows: Array) -> None:
        """Take in rows float32 [n, K] with their keys [n], uniform in [0, 1)."""
        scale = np.maximum(np.abs(rows).max(-1, initial=0), np.finfo(np.float32).tiny).astype(np.float32)
        self.put(keys, (rows / scale[:, None]).astype(np.float16), scale)

    def merge(self, other: RowSample) -> None:
        """Take in another sample of other rows."""
        self.put(other.keys, other.rows, other.scale)

    def read(self) -> npt.NDArray[np.float32]:
        """float32 [at most size, K], in the order of their keys."""
        order = np.argsort(self.keys, kind="stable")
        return np.asarray(self.rows[order].astype(np.float32) * self.scale[order, None])

    def put(self, keys: npt.NDArray[np.float64], rows: Array, scale: Array) -> None:
        """Take in rows float16 [n, K] that were divided by their scale float32 [n].

        Rows that go leave their places to those that come: nothing else is moved.
        """
        if not len(keys):
            return
        own = len(self.keys)
        best = _least(np.concatenate([self.keys, keys]), self.size)
        coming = np.sort(best[best >= own]) - own
        if own < self.size:
            grown = min(self.size, own + len(keys)) - own
            for name, array in (("keys", keys), ("rows", rows), ("scale", scale)):
                setattr(self, name, np.concatenate([getattr(self, name), np.empty((grown, *array.shape[1:]), getattr(self, name).dtype)]))
        free = np.ones(len(self.keys), bool)
        free[best[best < own]] = False
        self.keys[free], self.rows[free], self.scale[free] = keys[coming], rows[coming], scale[coming]

    def state(self) -> dict[str, Array]:
        """keys, rows and scale, in the order of the keys."""
        order = np.argsort(self.keys, kind="stable")
        return {part: getattr(self, part)[order] for part in PARTS}

    @classmethod
    def restored(cls, size: int, state: dict[str, Array]) -> RowSample:
        """Read what `state` gave."""
        sample = cls(size, state["rows"].shape[1])
        sample.keys, sample.rows, sample.scale = (np.array(state[part]) for part in PARTS)
        return sample


def _least(keys: Array, count: int) -> npt.NDArray[np.intp]:
    """Where the `count` smallest keys are, in any order."""
    return np.argpartition(keys, count - 1)[:count] if count < len(keys) else np.arange(len(keys))


@functools.lru_cache(maxsize=8)  # all layers of a step read equally many rows
def row_keys(seed: tuple[int, ...], count: int) -> npt.NDArray[np.float64]:
    """Keys of `count` rows; the same seed, one for each clip and step, gives the same keys on every machine. Read only."""
    keys = np.random.default_rng(seed).random(count)
    keys.flags.writeable = False
    return keys
