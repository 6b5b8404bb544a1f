"""A model and the clips that are sampled from it: what calibration, data sets and sensitivity are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec, ModelAdapter
from vditc.conditioning import Conditioning
from vditc.model_dir import ModelDir
from vditc.sampling import Clips, Denoiser, sample
from vditc.schedule import Schedule

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledModel:
    """Which model, which clips, and how they are sampled."""

    source: ModelDir
    adapter: ModelAdapter
    conditioning: Conditioning
    scheduler: Schedule
    guidance_scale: float

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
        return {"model": self.source.digest, "schedule": self.scheduler.to_json(), "guidance_scale": self.guidance_scale}

    def clip(self, index: int) -> Clips:
        """One clip of the conditioning."""
        return self.conditioning.clips([index], self.specs)

    def sample(
        self,
        denoise: Denoiser,
        index: int,
        on_step: Callable[[int, Array], None] | None = None,
        *,
        begin: int = 0,
        latents: Array | None = None,
    ) -> npt.NDArray[np.float32]:
        """One clip of the conditioning, [1, C, F, H, W]; see `vditc.sampling.sample`."""
        return sample(denoise, self.scheduler, self.clip(index), self.guidance_scale, on_step, begin=begin, latents=latents)
