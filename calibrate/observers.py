"""Streaming statistics of linear inputs: maxima only, so no activation is ever stored and the order of updates does not matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.calibrate.methods.base import InputStatistics
from vditc.errors import VditcError

Array = npt.NDArray[Any]
NEVER = -1.0  # below every absolute value: not seen
STEPS, CHANNELS = ".absmax", ".channel_absmax"  # keys of the state: layer name and one of these


class Observers:
    """Greatest absolute input per step and per channel of every watched layer.

    Holds `4 * (steps + K)` bytes a layer. Updates and merges are maxima: exact, commutative, and idempotent.
    """

    def __init__(self, widths: Mapping[str, int], steps: int) -> None:
        """`widths`: layer name -> input channels K."""
        self.layers = {name: InputStatistics(_unseen(steps), _unseen(width)) for name, width in widths.items()}

    def update(self, layer: str, step: int, channel_absmax: Array) -> None:
        """Take in one input of `layer` at `step`, already reduced over batch rows and tokens to absolute maxima [K]."""
        seen = self.layers[layer]
        seen.absmax[step] = np.maximum(seen.absmax[step], channel_absmax.max())
        np.maximum(seen.channel_absmax, channel_absmax, out=seen.channel_absmax)

    def merge(self, other: Observers) -> None:
        """Take in all that `other`, of the same layers and steps, has seen."""
        for name, theirs in other.layers.items():
            ours = self.layers[name]
            np.maximum(ours.absmax, theirs.absmax, out=ours.absmax)
            np.maximum(ours.channel_absmax, theirs.channel_absmax, out=ours.channel_absmax)

    def check(self) -> None:
        """VditcError when a layer was never run at some step, or got an input that is not finite."""
        for name, seen in self.layers.items():
            for found, wrong in (("no input", seen.absmax < 0), ("an input that is not finite", ~np.isfinite(seen.absmax))):
                if wrong.any():
                    raise VditcError(
                        found=found,
                        wanted="finite inputs at every step",
                        where=f"layer {name}, step {int(wrong.argmax())}",
                        fix="sample the full-precision model first: check that its weights and its schedule belong together",
                    )

    def state(self) -> dict[str, npt.NDArray[np.float32]]:
        """`{layer}.absmax` [steps] and `{layer}.channel_absmax` [K] of every layer."""
        arrays: dict[str, npt.NDArray[np.float32]] = {}
        for name, seen in self.layers.items():
            arrays |= {name + STEPS: seen.absmax, name + CHANNELS: seen.channel_absmax}
        return arrays

    @classmethod
    def restored(cls, state: Mapping[str, Array]) -> Observers:
        """Read what `state` gave; KeyError when an array is missing."""
        observers = cls({}, 0)
        for key in filter(lambda k: k.endswith(STEPS), state):
            name = key.removesuffix(STEPS)
            observers.layers[name] = InputStatistics(np.array(state[key], np.float32), np.array(state[name + CHANNELS], np.float32))
        return observers


def _unseen(size: int) -> npt.NDArray[np.float32]:
    return np.full(size, NEVER, np.float32)
