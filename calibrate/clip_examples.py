"""Clips of a dataset at random steps of the schedule, and what the full-precision model says of them: the examples of a QAT."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from vditc.adapter import InputSpec
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.training import Batch
from vditc.dataset import Dataset
from vditc.sampling import joined_feeds
from vditc.schedule import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipExamples:
    """x = signal * clip + noise * normal of a step, shown to the teacher; prompts are left out with probability `unprompted`."""

    dataset: Dataset
    specs: tuple[InputSpec, ...]
    scheduler: Schedule
    teacher: FullPrecision
    batch_size: int
    seed: int
    unprompted: float

    def __call__(self, iteration: int, share: slice) -> Batch:
        """The same for the same seed and iteration, whichever process has which part."""
        random = np.random.default_rng((self.seed, iteration))
        steps = random.integers(0, len(self.scheduler.timesteps), self.batch_size)
        bare = random.random(self.batch_size) < self.unprompted
        noise = random.standard_normal((self.batch_size, *self.dataset.latent_shape), np.float32)
        indices = self.dataset.indices(iteration, self.batch_size, self.seed)
        rows = []
        for i in range(self.batch_size)[share]:
            step, clip = int(steps[i]), self.dataset.read(indices[i : i + 1])
            mixed = self.scheduler.signal[step] * clip.latents + self.scheduler.noise[step] * noise[i : i + 1]
            clips = clip.conditioning.clips([0], self.specs)
            if bare[i]:
                clips = dataclasses.replace(clips, prompted=clips.unprompted)
            rows.append(clips.feeds(self.scheduler, step, clips.with_known(mixed), guided=False))
        feeds = joined_feeds(self.specs, rows)
        target = self.teacher(feeds, 0)
        return Batch({n: torch.from_numpy(a) for n, a in feeds.items()}, torch.from_numpy(target), torch.from_numpy(steps[share]))
