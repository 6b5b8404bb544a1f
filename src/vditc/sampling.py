"""The denoising loop, in numpy: any denoiser, any scheduler, both guidance branches in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vditc.schedule import Scheduler

Array = npt.NDArray[Any]


class Denoiser(Protocol):
    """Predicts the velocity. `step` is the index in the schedule, the key of per-step tables."""

    def __call__(self, latents: Array, timestep: Array, text: Array, step: int) -> Array:
        """latents [B, C, F, H, W], timestep float32 [B], text [B, tokens, dim] -> velocity [B, C, F, H, W]."""
        ...


def noise(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Standard normal float32 noise of one clip, the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def with_channels(latents: Array, channels: Array | None) -> Array:
    """Append constant channels [E, F, H, W] to latents [B, C, F, H, W]: [B, C + E, F, H, W]."""
    if channels is None:
        return latents
    return np.concatenate([latents, np.broadcast_to(channels, (len(latents), *channels.shape))], 1)


def sample(
    denoise: Denoiser,
    scheduler: Scheduler,
    latents: Array,
    text: Array,
    empty: Array,
    guidance_scale: float,
    on_step: Callable[[int, Array], None] | None = None,
    channels: Array | None = None,
) -> npt.NDArray[np.float32]:
    """Denoise `latents` [B, C, F, H, W] under prompts `text` and the empty prompt [B, tokens, dim].

    Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): v = v_empty + scale * (v_text - v_empty); both branches run
    as one batch of 2B, prompts first. At scale 1 only the prompts run. `on_step(index, latents after the step)`.
    `channels` [E, F, H, W]: constant channels that the model sees behind the latents' own.
    """
    guided = guidance_scale != 1.0
    batch = np.concatenate([text, empty]) if guided else text
    for index, timestep in enumerate(scheduler.timesteps):
        both = np.concatenate([latents, latents]) if guided else latents
        velocity = denoise(with_channels(both, channels), np.full(len(both), timestep, np.float32), batch, index)
        if guided:
            with_text, without = np.split(velocity, 2)
            velocity = without + np.float32(guidance_scale) * (with_text - without)
        latents = scheduler.step(velocity, index, latents)
        if on_step:
            on_step(index, latents)
    return np.asarray(latents, np.float32)
