"""A uniform sample of a stream of rows: those with the smallest random keys, so that order and sharding do not matter."""

from __future__ import annotations

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
        self.keys = np.empty(0, np.float64)
        self.rows = np.empty((0, width), np.float16)
        self.scale = np.empty(0, np.float32)

    @property
    def bar(self) -> float:
        """Only rows with a key below this can still come in."""
        return float(self.keys[-1]) if len(self.keys) == self.size else np.inf

    def offer(self, keys: npt.NDArray[np.float64], rows: Array) -> None:
        """Take in rows float32 [n, K] with their keys [n], uniform in [0, 1)."""
        scale = np.maximum(np.abs(rows).max(-1, initial=0), np.finfo(np.float32).tiny).astype(np.float32)
        self._keep(keys, (rows / scale[:, None]).astype(np.float16), scale)

    def merge(self, other: RowSample) -> None:
        """Take in another sample of other rows."""
        self._keep(other.keys, other.rows, other.scale)

    def read(self) -> npt.NDArray[np.float32]:
        """float32 [at most size, K], in the order of their keys."""
        return self.rows.astype(np.float32) * self.scale[:, None]

    def _keep(self, keys: Array, rows: Array, scale: Array) -> None:
        keys = np.concatenate([self.keys, keys])
        order = np.argsort(keys, kind="stable")[: self.size]
        self.keys = keys[order]
        self.rows = np.concatenate([self.rows, rows])[order]
        self.scale = np.concatenate([self.scale, scale])[order]

    def state(self) -> dict[str, Array]:
        """keys, rows and scale."""
        return {part: getattr(self, part) for part in PARTS}

    @classmethod
    def restored(cls, size: int, state: dict[str, Array]) -> RowSample:
        """Read what `state` gave."""
        sample = cls(size, state["rows"].shape[1])
        sample.keys, sample.rows, sample.scale = (state[part] for part in PARTS)
        return sample


def row_keys(seed: tuple[int, ...], count: int) -> npt.NDArray[np.float64]:
    """Keys of `count` rows; the same seed, one for each clip and step, gives the same keys on every machine."""
    return np.random.default_rng(seed).random(count)
