"""Streaming statistics of linear inputs: maxima and a sample of rows, so no activation is ever stored and order does not matter."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.calibrate.methods.base import InputStatistics
from vditc.calibrate.row_sample import PARTS, RowSample
from vditc.errors import InputError, VditcError

Array = npt.NDArray[Any]
NEVER = -1.0  # below every absolute value: not seen
CHANNELS, BOUNDS, ROWS = ".channel_absmax", ".channel_bounds", ".rows."  # keys of the state: layer name and one of these


class Observers:
    """Greatest absolute input per step and channel of every watched layer, signed bounds if wanted, and a uniform sample of its rows.

    Holds `4 steps K + rows (2 K + 12)` bytes for every tensor that layers read, and `8 steps K` for bounds: layers that always read the
    very same tensor share one entry, that of the first of them. Updates and merges are exact and commutative.
    """

    def __init__(self, widths: Mapping[str, int], steps: int, rows: int = 0, *, bounds: bool = False) -> None:
        """`widths`: layer name -> input channels K. `rows`: how many to keep of each input. `bounds`: whether `update` is given them."""
        self.widths, self.steps, self.rows, self.with_bounds = dict(widths), steps, rows, bounds
        self.leader: dict[str, str] = {}  # layer -> first layer that has always read the same tensor
        self.seen: dict[str, npt.NDArray[np.float32]] = {}  # leader -> [steps, K]
        self.bounds: dict[str, npt.NDArray[np.float32]] = {}  # leader -> [2, steps, K]: lowest, highest
        self.samples: dict[str, RowSample] = {}

    def reads(self, layers: Sequence[str]) -> list[str]:
        """Tell that one tensor is read by these layers and no others; returns those whose entries are to be given it.

        Whoever shared an entry so far and does not now has had the same history: it goes on with a copy.
        """
        now = set(layers)
        known = dict.fromkeys(self.leader[layer] for layer in layers if layer in self.leader)
        fresh = [layer for layer in dict.fromkeys(layers) if layer not in self.leader]
        for leader in known:
            for part in (self._of(leader, now, there=True), self._of(leader, now, there=False)):
                if part and part[0] != leader:
                    self._copy(leader, part[0])
                    self.leader |= dict.fromkeys(part, part[0])
        self.leader |= dict.fromkeys(fresh, next(iter(fresh), ""))
        return list(dict.fromkeys(self.leader[layer] for layer in layers))

    def _of(self, leader: str, layers: Container[str], *, there: bool) -> list[str]:
        return [layer for layer, other in self.leader.items() if other == leader and (layer in layers) == there]

    def _copy(self, old: str, new: str) -> None:
        """`new` has an entry of its own, as `old` has it."""
        if old in self.seen:
            self.seen[new] = self.seen[old].copy()
        if old in self.bounds:
            self.bounds[new] = self.bounds[old].copy()
        if old in self.samples:
            self.samples[new] = RowSample.restored(self.rows, self.samples[old].state())

    def update(self, layer: str, step: int, channel_absmax: Array, bounds: Array | None = None) -> None:
        """Take in one input of `layer` at `step`, already reduced over batch rows and tokens to absolute maxima [K].

        `bounds` [2, K], lowest and highest, where they were asked for. InputError when the maxima are not finite.
        """
        if not np.isfinite(channel_absmax).all():
            raise InputError(
                found=f"an input that is not finite, first in channel {int((~np.isfinite(channel_absmax)).argmax())}",
                wanted="finite numbers",
                where=f"layer {layer}, step {step}",
                fix="check that the model samples well in full precision, and that weights, schedule and conditionings belong together",
            )
        if layer not in self.seen:
            self.seen[layer] = np.full((self.steps, self.widths[layer]), NEVER, np.float32)
        row = self.seen[layer][step]
        np.maximum(row, channel_absmax, out=row)
        if self.with_bounds:
            if layer not in self.bounds:
                never = np.array([np.inf, -np.inf], np.float32)[:, None, None]
                self.bounds[layer] = np.tile(never, (1, self.steps, self.widths[layer]))
            assert bounds is not None
            lowest, highest = self.bounds[layer][:, step]
            np.minimum(lowest, bounds[0], out=lowest)
            np.maximum(highest, bounds[1], out=highest)

    def sample(self, layer: str) -> RowSample:
        """The rows kept of a layer's input, to offer more to."""
        return self.samples.setdefault(layer, RowSample(self.rows, self.widths[layer]))

    def merge(self, other: Observers) -> None:
        """Take in all that `other`, of the same layers and steps, has seen of other clips."""
        both = {layer: (self.leader.get(layer), other.leader.get(layer)) for layer in self.leader | other.leader}
        first: dict[tuple[str | None, str | None], str] = {}  # of those that share in both
        for layer, key in both.items():
            first.setdefault(key, layer)
        for (own, _), layer in first.items():
            if own is not None and own != layer:
                self._copy(own, layer)
        self.leader = {layer: first[key] for layer, key in both.items()}
        for (_, leader), layer in first.items():
            if leader is None:
                continue
            for step, row in enumerate(other.seen[leader]):
                self.update(layer, step, row, other.bounds[leader][:, step] if self.with_bounds else None)
            if leader in other.samples:
                self.sample(layer).merge(other.samples[leader])

    def groups(self) -> list[tuple[str, ...]]:
        """Layers that read one tensor, in the order in which they ran."""
        found: dict[str, list[str]] = {}
        for layer, leader in self.leader.items():
            found.setdefault(leader, []).append(layer)
        return [tuple(group) for group in found.values()]

    def statistics(self, layer: str) -> InputStatistics:
        """What was seen of a layer's input."""
        leader = self.leader[layer]
        return InputStatistics(self.seen[leader], self.samples.get(leader), self.bounds.get(leader))

    def check(self) -> None:
        """VditcError, naming them, when layers never ran at some step."""
        never = {name: self.statistics(name).absmax < 0 if name in self.leader else np.ones(self.steps, bool) for name in self.widths}
        if missing := {name: steps for name, steps in never.items() if steps.any()}:
            first = next(iter(missing))
            raise VditcError(
                found=f"no input of {len(missing)} of {len(self.widths)} layers: {', '.join(missing)}",
                wanted="every layer that the recipe quantizes to run at every step",
                where=f"layer {first}, step {int(missing[first].argmax())}",
                fix="give these layers a rule with keep, or conditionings that make the model use them",
            )

    def state(self) -> tuple[dict[str, Array], dict[str, str]]:
        """`{layer}.channel_absmax` [steps, K], `.channel_bounds` [2, steps, K] and `.rows.*` of every leader; and the leaders."""
        arrays: dict[str, Array] = {name + CHANNELS: seen for name, seen in self.seen.items()}
        arrays |= {name + BOUNDS: bounds for name, bounds in self.bounds.items()}
        for name, sample in self.samples.items():
            arrays |= {f"{name}{ROWS}{part}": array for part, array in sample.state().items()}
        return arrays, dict(self.leader)

    def restore(self, arrays: Mapping[str, Array], leader: Mapping[str, str]) -> None:
        """Read what `state` gave; KeyError, and nothing changed, when an array is missing."""
        leaders = list(dict.fromkeys(leader.values()))
        seen = {name: np.array(arrays[name + CHANNELS], np.float32) for name in leaders}
        bounds = {name: np.array(arrays[name + BOUNDS], np.float32) for name in leaders if self.with_bounds}
        samples = {
            name: RowSample.restored(self.rows, {part: np.array(arrays[f"{name}{ROWS}{part}"]) for part in PARTS})
            for name in leaders
            if self.rows
        }
        self.leader, self.seen, self.bounds, self.samples = dict(leader), seen, bounds, samples
