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

from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.leftovers import TRAJECTORIES
from vditc.calibrate.methods.base import TrainingJob
from vditc.safetensors_file import read_header, write_tensors
from vditc.sampled_model import SampledModel
from vditc.sampling import Feeds, joined_feeds

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
    sampled: SampledModel

    def __len__(self) -> int:
        return len(self.sampled.conditioning) * self.sampled.steps * self.branches

    @property
    def branches(self) -> int:
        """Forward passes of a clip at each step: with the prompt, and without it where the model is guided."""
        return 2 if self.sampled.guided else 1

    def read(self, indices: npt.NDArray[np.int64]) -> Examples:
        """Some of the `len(self)` examples."""
        rows, outputs, found, specs, scheduler = [], [], [], self.sampled.specs, self.sampled.scheduler
        for index in indices.tolist():
            rest, branch = divmod(index, self.branches)
            clip, step = divmod(rest, self.sampled.steps)
            entries, _ = read_header(self.folder / _file(clip))
            latents, said = (np.array(entries[name].read()[step], np.float32) for name in ("latents", "outputs"))
            feeds = self.sampled.clip(clip).feeds(scheduler, step, latents[None], guided=self.sampled.guided)
            rows.append({s.name: feeds[s.name][branch : branch + 1] if s.dims[0] == "batch" else feeds[s.name] for s in specs})
            outputs.append(said[branch])
            found.append(step)
        return Examples(joined_feeds(specs, rows), np.stack(outputs), np.array(found, np.int64))


def record(job: TrainingJob) -> Recorded:
    """Sample every clip once, shared by ranks; clips that are there from an earlier run with the same inputs are kept."""
    sampled = job.sampled
    folder = job.work / TRAJECTORIES / job.run[:16]
    folder.mkdir(parents=True, exist_ok=True)
    missing = [clip for clip in job.ranks.share(len(sampled.conditioning)) if not (folder / _file(clip)).exists()]
    with job.ranks.together():
        if missing:
            model = FullPrecision(sampled.adapter, sampled.source, job.device, job.memory)
        with job.progress.task("record trajectories", len(missing) * sampled.steps) as advance:
            for clip in missing:
                outputs = list[Array]()
                latents = [sampled.clip(clip).start(sampled.scheduler)[0]]

                def denoise(feeds: Feeds, step: int, outputs: list[Array] = outputs) -> Array:
                    outputs.append(model(feeds, step))
                    return outputs[-1]

                def after(_step: int, x: Array, latents: list[Array] = latents) -> None:
                    latents.append(x[0])
                    advance()

                sampled.sample(denoise, clip, after)
                write_tensors(folder / _file(clip), {"latents": np.stack(latents[:-1]), "outputs": np.stack(outputs)})
    return Recorded(folder=folder, sampled=sampled)


def _file(clip: int) -> str:
    return f"clip-{clip:05}.safetensors"
