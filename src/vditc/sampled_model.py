"""A model and the clips that are sampled from it: what calibration, data sets and sensitivity are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec, ModelAdapter
from vditc.conditioning import Conditioning
from vditc.files import array_digest
from vditc.model_dir import ModelDir
from vditc.sampling import Clips, Denoiser, sample
from vditc.schedule import DescribedScheduler, Schedule, Scheduler

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledModel:
    """Which model, which clips, and how they are sampled.

    `scheduler` is a table over the noise levels and times of `solver`, which walks in its place where one is given: calibration needs
    the clip that a prediction tells of, and trajectories that can be begun anywhere; verification the way that users will go.
    """

    source: ModelDir
    adapter: ModelAdapter
    conditioning: Conditioning
    scheduler: Schedule
    guidance_scale: float
    solver: DescribedScheduler | None = None
    # [clips, C, F, H, W], of a schedule that is a part of another: the latents before its first step. None: they begin as noise.
    starts: npt.NDArray[np.float32] | None = None

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """What the model takes."""
        return self.adapter.inputs(self.source)

    @property
    def steps(self) -> int:
        """Of a clip."""
        return len(self.scheduler.timesteps)

    @property
    def guided(self) -> bool:
        """Whether the branch without a prompt runs as well."""
        return self.guidance_scale != 1.0

    def check(self) -> None:
        """InputError when the model is not sampled, there is no clip, or the clips do not fit the model's inputs."""
        self.adapter.check_sampled()
        self.conditioning.check(self.specs)

    def facts(self) -> dict[str, Any]:
        """What every clip depends on, beside its own conditioning and noise: plain data."""
        more: dict[str, Any] = {} if self.solver is None else {"solver": dict(self.solver.about)}
        if self.starts is not None:
            more["starts"] = array_digest(self.starts)
        return {"model": self.source.digest, "schedule": self.scheduler.to_json(), "guidance_scale": self.guidance_scale, **more}

    def clip(self, index: int) -> Clips:
        """One clip of the conditioning."""
        clip = self.conditioning.clips([index], self.specs)
        return clip if self.starts is None else dataclasses.replace(clip, noise=self.starts[index : index + 1])

    def sample(
        self,
        denoise: Denoiser,
        index: int,
        on_step: Callable[[int, Array], None] | None = None,
        *,
        begin: int = 0,
        latents: Array | None = None,
        **more: Any,
    ) -> npt.NDArray[np.float32]:
        """One clip of the conditioning, [1, C, F, H, W]; see `vditc.sampling.sample`, and for `more` as well."""
        walked: Scheduler = self.scheduler if self.solver is None else self.solver
        return sample(denoise, walked, self.clip(index), self.guidance_scale, on_step, begin=begin, latents=latents, **more)
