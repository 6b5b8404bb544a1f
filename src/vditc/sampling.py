"""The denoising loop, in numpy: any denoiser, any scheduler, any inputs, both guidance branches in one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.schedule import Scheduler

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]  # graph input -> value


class Denoiser(Protocol):
    """Predicts what the schedule is made for: a velocity, or noise. `step` is the index in the schedule, the key of per-step tables."""

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """`feeds` by the names of the graph's inputs, without `step` -> prediction [B, C, F, H, W]."""
        ...


def noise(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Standard normal float32 noise of one clip, the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
    """B clips that are sampled together: where they start, and what the model is told of them beside the time."""

    specs: tuple[InputSpec, ...]  # what the model takes, the latents first
    noise: Array  # [B, C, F, H, W]
    prompted: Feeds  # inputs that no step changes: [B, ...], or without a batch axis where the spec has none
    unprompted: Feeds  # the same of the unconditional branch
    channels: Array | None = None  # [B, E, F, H, W], constant, behind the latents' own
    known: Array | None = None  # [B, C, F, H, W]: latents of frames that are given, as an image that a clip starts with
    known_frames: tuple[int, ...] = ()

    def with_known(self, latents: Array) -> Array:
        """`latents` [B, C, F, H, W] with the given frames put in."""
        if self.known is None:
            return latents
        latents = latents.copy()
        frames = list(self.known_frames)
        latents[:, :, frames] = self.known[:, :, frames]
        return latents

    def start(self, scheduler: Scheduler) -> Array:
        """Latents before the first step."""
        return self.with_known(np.asarray(self.noise * np.float32(scheduler.start), np.float32))

    def feeds(self, scheduler: Scheduler, index: int, latents: Array, *, guided: bool) -> dict[str, Array]:
        """What the denoiser takes at a step: the branch with the prompts, then, if `guided`, the one without.

        Where a model takes a time for every frame, that of given frames is 0.
        """
        seen, timestep = scheduler.shown(index, latents), float(scheduler.timesteps[index])
        if self.channels is not None:
            seen = np.concatenate([seen, self.channels], 1)
        found = {self.specs[0].name: np.concatenate([seen, seen]) if guided else seen}
        batch, frames = len(found[self.specs[0].name]), latents.shape[2]
        for spec in self.specs[1:]:
            if spec.fill == "timestep":
                found[spec.name] = np.full(spec.shape({"batch": batch, "frames": frames}), timestep, spec.dtype)
                if spec.dims[1:] == ("frames",):
                    found[spec.name][:, list(self.known_frames)] = 0
            elif guided and spec.dims[0] == "batch":
                found[spec.name] = np.concatenate([self.prompted[spec.name], self.unprompted[spec.name]])
            else:
                found[spec.name] = self.prompted[spec.name]
        return found


def joined_feeds(specs: Sequence[InputSpec], parts: Sequence[Feeds]) -> dict[str, Array]:
    """What the denoiser takes for several batches as one; inputs without a batch axis are those of the first."""
    first = parts[0]
    return {s.name: np.concatenate([p[s.name] for p in parts]) if s.dims[0] == "batch" else first[s.name] for s in specs}


def sample(
    denoise: Denoiser,
    scheduler: Scheduler,
    clips: Clips,
    guidance_scale: float,
    on_step: Callable[[int, Array], None] | None = None,
    *,
    begin: int = 0,
    latents: Array | None = None,
) -> npt.NDArray[np.float32]:
    """Denoise `clips`; returns their latents [B, C, F, H, W].

    Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): v = v_empty + scale * (v_text - v_empty); both branches run
    as one batch of 2B, prompts first. At scale 1 only the prompts run. `on_step(index, latents after the step)`.
    `begin` and `latents`, those after step `begin - 1`, go on with clips that were begun.
    """
    guided, latents = guidance_scale != 1.0, clips.start(scheduler) if latents is None else latents
    for index in range(begin, len(scheduler.timesteps)):
        predicted = denoise(clips.feeds(scheduler, index, latents, guided=guided), index)
        if guided:
            with_text, without = np.split(predicted, 2)
            predicted = without + np.float32(guidance_scale) * (with_text - without)
        latents = clips.with_known(scheduler.step(predicted, index, latents))
        if on_step:
            on_step(index, latents)
    return np.asarray(latents, np.float32)
