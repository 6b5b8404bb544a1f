"""The schedule that a graph's per-step tables were made for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.sampling import Feeds


@dataclasses.dataclass(frozen=True)
class StepTable:
    """`timesteps`: what the model is told at each step, as the graph's metadata say; () where they say nothing."""

    timesteps: tuple[float, ...]
    where: str

    @classmethod
    def of_metadata(cls, about: str | None, where: Path) -> StepTable:
        """From the metadata key `vditc`."""
        said = json.loads(about) if about else {}
        timesteps, expert = tuple(said.get("timesteps", ())), said.get("expert")
        if expert is None or not timesteps:
            return cls(timesteps, str(where))
        first = expert.get("first_step", 0)
        own = f"steps {first} to {first + len(timesteps) - 1} of the model"
        return cls(timesteps, f"{where}, {expert['part']} of two experts, which has {own}")

    def check(self, feeds: Feeds, step: int) -> None:
        """InputError for a step without a row, or a timestep that is fed although the graph takes none, and that the row is not for."""
        count = len(self.timesteps)
        if not count:
            return
        if not 0 <= step < count:
            raise self._bad(f"step {step}", f"0 to {count - 1}")
        fed = feeds.get("timestep")
        if fed is not None and not np.all(fed == np.array(self.timesteps[step]).astype(fed.dtype)):
            raise self._bad(f"timestep {np.ravel(fed)[0]:g} at step {step}", f"{self.timesteps[step]:g}, step {step} of {count}")

    def check_times(self, timesteps: Sequence[float]) -> None:
        """InputError for a walk through other times than the table was made for."""
        if not self.timesteps or tuple(timesteps) == self.timesteps:
            return
        if len(timesteps) != len(self.timesteps):
            raise self._bad(f"{len(timesteps)} steps", f"the {len(self.timesteps)} steps of the graph's tables")
        step = next(i for i, (a, b) in enumerate(zip(timesteps, self.timesteps, strict=True)) if a != b)
        raise self._bad(f"timestep {timesteps[step]:g} at step {step}", f"{self.timesteps[step]:g}, which the graph's tables were made for")

    def step_of(self, timestep: npt.NDArray[Any], last: int) -> int:
        """The step at which the model is told this time; of several, as times of few bits may be, the next from step `last` on.

        `timestep`: as it is fed, of every clip; where every frame has its own, given frames have 0. InputError for no step.
        """
        told = timestep.max()
        rows = np.flatnonzero(np.array(self.timesteps).astype(timestep.dtype) == told)
        if not len(rows):
            times = ", ".join(f"{t:g}" for t in self.timesteps)
            raise self._bad(f"timestep {told:g}", f"one of {times}")
        return int(next((row for row in rows if row >= last), rows[0]))

    def _bad(self, found: str, wanted: str) -> InputError:
        return InputError(
            found=found,
            wanted=wanted,
            where=self.where,
            fix="sample with the schedule of the calibration, all of its steps, or compile for another one (--steps, --keep-time-path)",
        )
