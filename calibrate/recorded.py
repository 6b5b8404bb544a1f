"""What the full-precision model saw and said on its sampling trajectories: the examples that end-to-end methods learn from.

One safetensors file a clip, written whole: `latents` [steps, C, F, H, W], before each step, and `outputs` [steps, branches, C, F, H, W].
Any (clip, step, branch) can be read alone, so memory holds a batch and nothing else.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.leftovers import TRAJECTORIES
from vditc.calibrate.methods.base import TrainingJob
from vditc.conditioning import Conditioning
from vditc.safetensors_file import read_header, write_tensors
from vditc.sampling import Feeds, joined_feeds, sample
from vditc.schedule import Schedule

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Examples:
    """A batch of B examples."""

    feeds: Feeds  # what the model takes
    outputs: npt.NDArray[np.float32]  # [B, C, F, H, W], of the full-precision model
    steps: npt.NDArray[np.int64]  # [B], index in the schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """Trajectories of all clips of a conditioning, in a folder."""

    folder: Path
    conditioning: Conditioning
    specs: tuple[InputSpec, ...]
    scheduler: Schedule
    guided: bool

    def __len__(self) -> int:
        return len(self.conditioning) * len(self.scheduler.timesteps) * self.branches

    @property
    def branches(self) -> int:
        """Forward passes of a clip at each step: with the prompt, and without it where the model is guided."""
        return 2 if self.guided else 1

    def read(self, indices: npt.NDArray[np.int64]) -> Examples:
        """Some of the `len(self)` examples."""
        rows, outputs, found = [], [], []
        for index in indices.tolist():
            rest, branch = divmod(index, self.branches)
            clip, step = divmod(rest, len(self.scheduler.timesteps))
            entries, _ = read_header(self.folder / _file(clip))
            latents, said = (np.array(entries[name].read()[step], np.float32) for name in ("latents", "outputs"))
            feeds = self.conditioning.clips([clip], self.specs).feeds(self.scheduler, step, latents[None], guided=self.guided)
            rows.append({s.name: feeds[s.name][branch : branch + 1] if s.dims[0] == "batch" else feeds[s.name] for s in self.specs})
            outputs.append(said[branch])
            found.append(step)
        return Examples(joined_feeds(self.specs, rows), np.stack(outputs), np.array(found, np.int64))


def record(job: TrainingJob) -> Recorded:
    """Sample every clip once, shared by ranks; clips that are there from an earlier run with the same inputs are kept."""
    specs, guided = job.adapter.inputs(job.source), job.guidance_scale != 1.0
    conditioning, scheduler = job.conditioning, job.scheduler
    folder = job.work / TRAJECTORIES / job.run[:16]
    folder.mkdir(parents=True, exist_ok=True)
    missing = [clip for clip in job.ranks.share(len(conditioning)) if not (folder / _file(clip)).exists()]
    steps = len(scheduler.timesteps)
    with job.ranks.together():
        if missing:
            model = FullPrecision(job.adapter, job.source, job.device, job.memory)
        with job.progress.task("record trajectories", len(missing) * steps) as advance:
            for clip in missing:
                chosen, outputs = conditioning.clips([clip], specs), list[Array]()
                latents = [chosen.start(scheduler)[0]]

                def denoise(feeds: Feeds, step: int, outputs: list[Array] = outputs) -> Array:
                    outputs.append(model(feeds, step))
                    return outputs[-1]

                def after(_step: int, x: Array, latents: list[Array] = latents) -> None:
                    latents.append(x[0])
                    advance()

                sample(denoise, scheduler, chosen, job.guidance_scale, after)
                write_tensors(folder / _file(clip), {"latents": np.stack(latents[:-1]), "outputs": np.stack(outputs)})
    return Recorded(folder=folder, conditioning=conditioning, specs=specs, scheduler=scheduler, guided=guided)


def _file(clip: int) -> str:
    return f"clip-{clip:05}.safetensors"
