"""Sampling schedules as tables, in numpy: a diffusion step is linear in the latents and in what the model predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
TABLES = ("timesteps", "seen", "kept", "added", "signal", "noise")  # of a schedule, each [steps]


class Scheduler(Protocol):
    """What the sampling loop needs. One object serves one trajectory at a time; `step` is called with index 0, 1, …"""

    @property
    def timesteps(self) -> npt.NDArray[np.float32]:
        """What the denoiser is told at each step, [steps]."""
        ...

    @property
    def start(self) -> float:
        """Standard deviation of the noise that latents start as."""
        ...

    def shown(self, index: int, latents: Array) -> Array:
        """What the denoiser sees of the latents at step `index`."""
        ...

    def step(self, prediction: Array, index: int, latents: Array) -> Array:
        """Latents after step `index`. A scheduler may use the array again two steps later: copy what is kept."""
        ...


Moves = Callable[[int, Array, Array], Callable[[slice, Array, Array], None]]


@runtime_checkable
class BlockScheduler(Scheduler, Protocol):
    """One whose steps can be taken block by block, in place."""

    @property
    def scales(self) -> bool:
        """Whether what the denoiser sees of latents is at some step not they themselves."""
        ...

    def moves(self, index: int, latents: Array, out: Array) -> Callable[[slice, Array, Array], None]:
        """See `vditc.runtimes.schedulers.walk.Walk.moves`."""
        ...


class DescribedScheduler(Scheduler, Protocol):
    """One that can say what it was made of."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Plain data: two schedulers with the same walk alike."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """At step i the model sees seen[i] * x and the time timesteps[i]; then x becomes kept[i] * x + added[i] * prediction.

    Flow matching: kept = 1, added = sigma(i + 1) - sigma(i). DDIM of a model that predicts the noise or v: both follow from the
    signal's share of the variance before and after the step (Song et al., arXiv 2010.02502, eq. 12 with eta = 0). On its way from noise to
    a clip x0, x is at step i as signal[i] * x0 + noise[i] * standard normal noise.
    """

    scheduler: str  # the diffusers class that it was read from
    timesteps: npt.NDArray[np.float32]  # all arrays are [steps]
    seen: npt.NDArray[np.float32]
    kept: npt.NDArray[np.float32]
    added: npt.NDArray[np.float32]
    signal: npt.NDArray[np.float32]
    noise: npt.NDArray[np.float32]
    start: float = 1.0
    first: int = 0  # index of its first step in the schedule that it is a part of
    behind: tuple[float, float] = (1.0, 0.0)  # signal and noise after the last step

    def part(self, steps: range) -> Self:
        """Some consecutive steps alone, walked from the latents that the steps before them made."""
        cut = slice(steps.start, steps.stop)
        tables = {name: getattr(self, name)[cut] for name in TABLES}
        start = 1.0 if steps.start else self.start
        return dataclasses.replace(self, **tables, start=start, first=self.first + steps.start, behind=self._after(steps.stop - 1))

    @classmethod
    def flow(cls, sigmas: Array) -> Self:
        """Euler steps of flow matching over noise levels [steps + 1] that fall from 1 to 0, with times of 1000 sigma."""
        levels = np.asarray(sigmas, np.float32)
        ones = np.ones(len(levels) - 1, np.float32)
        at = levels[:-1]
        return cls(
            scheduler="flow", timesteps=at * np.float32(1000), seen=ones, kept=ones, added=levels[1:] - at, signal=ones - at, noise=at
        )

    def shown(self, index: int, latents: Array) -> Array:
        """float32."""
        return np.asarray(latents * self.seen[index], np.float32)

    def step(self, prediction: Array, index: int, latents: Array) -> Array:
        """Latents after step `index`, float32."""
        return np.asarray(self.kept[index] * latents + self.added[index] * prediction, np.float32)

    def finished(self, index: int, latents: Array, prediction: Array) -> Array:
        """The clip x0 that the prediction at step `index` tells of, float32.

        x0 and the noise are linear in latents and prediction, and a step re-mixes them for the next level: that determines both.
        """
        signal, noise = self._after(index)
        ratio = noise / float(self.noise[index])
        share = signal - ratio * float(self.signal[index])
        return np.asarray(((self.kept[index] - ratio) * latents + self.added[index] * prediction) / share, np.float32)

    def _after(self, index: int) -> tuple[float, float]:
        """Signal and noise in the latents after a step."""
        last = index + 1 == len(self.timesteps)
        return self.behind if last else (float(self.signal[index + 1]), float(self.noise[index + 1]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment] # arrays have none

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        tables = {name: getattr(self, name).tolist() for name in TABLES}
        part = {} if (self.first, self.behind) == (0, (1.0, 0.0)) else {"first": self.first, "behind": list(self.behind)}
        return {"scheduler": self.scheduler, "start": self.start, **tables, **part}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        tables = {name: np.array(data[name], np.float32) for name in TABLES}
        signal, noise = data.get("behind", (1.0, 0.0))
        first, behind = int(data.get("first", 0)), (float(signal), float(noise))
        return cls(scheduler=data["scheduler"], start=float(data["start"]), **tables, first=first, behind=behind)


def step_groups(steps: int, count: int) -> list[range]:
    """Steps in `count` groups of consecutive ones, as equal as can be; fewer groups where there are fewer steps."""
    ends = np.linspace(0, steps, min(steps, count) + 1).round().astype(int).tolist()
    return [range(a, b) for a, b in pairwise(ends)]
