"""The schedule that a graph's per-step tables were made for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

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
        return cls(tuple(json.loads(about).get("timesteps", ())) if about else (), str(where))

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

    def _bad(self, found: str, wanted: str) -> InputError:
        return InputError(
            found=found,
            wanted=wanted,
            where=self.where,
            fix="sample with the schedule of the calibration, all of its steps, or compile for another one",
        )
