"""Models of two experts while they are compiled or judged: who walks which steps, and both sampling clips one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vditc.errors import InputError
from vditc.model_dir import PARTS, ModelDir
from vditc.pipeline.quality import Trajectories, sample_clips
from vditc.progress import Progress
from vditc.runtimes.reference import ReferenceModel
from vditc.sampled_model import SampledModel
from vditc.sampling import Denoiser
from vditc.schedule import Schedule

FULL_PRECISION = "sample the full-precision model"  # the title of that work


class Walker(NamedTuple):
    """A transformer that samples its part of the schedule: `sampled` says which part, `key` what its predictions depend on."""

    sampled: SampledModel
    open: Callable[[], Denoiser]  # called only when a clip is missing
    key: dict[str, Any]


def full_precision(sampled: SampledModel, device: str) -> Walker:
    """The model as it is, in PyTorch."""

    def opened() -> Denoiser:
        return ReferenceModel(sampled.adapter, sampled.source, None, device=device)

    return Walker(sampled, opened, {"model": sampled.source.digest, "precision": "full"})


def own_steps(source: ModelDir, schedule: Schedule) -> tuple[range, range]:
    """The steps of `transformer` and of `transformer_2`: those from the boundary's training timestep on, and those below it.

    As diffusers' Wan pipelines switch. InputError where the model has no boundary, or one of its experts no step.
    """
    index = source.path / "model_index.json"
    alone = " or ".join(f"--part {part}" for part in PARTS)
    if source.boundary_ratio is None:
        raise InputError(
            found="no boundary_ratio",
            wanted="the share of the training timesteps below which transformer_2 runs",
            where=str(index),
            fix=f"write it, or compile one transformer: {alone}",
        )
    count, boundary = len(schedule.timesteps), int(source.expert(schedule.timesteps.tolist())["boundary_step"])
    if not 0 < boundary < count:
        idle, first = PARTS[0 if boundary == 0 else 1], float(schedule.timesteps[0])
        raise InputError(
            found=f"{count} steps from timestep {first:g} to {float(schedule.timesteps[-1]):g}, none of them of {idle}",
            wanted="steps of both experts",
            where=f"{index}, boundary_ratio {source.boundary_ratio:g}",
            fix=f"choose other --steps, correct the scheduler's shift, or compile the other one alone: {alone}",
        )
    return range(boundary), range(boundary, count)


def sample_experts(walkers: Sequence[Walker], folder: Path, progress: Progress, title: str) -> list[Trajectories]:
    """Every clip by each in turn, beginning where the one before has left it; one model is in memory at a time. See `sample_clips`."""
    found: list[Trajectories] = []
    for sampled, open_model, key in walkers:
        if found:
            sampled = dataclasses.replace(sampled, starts=found[-1].latents[:, -1])
        name = title if len(walkers) == 1 else f"{title}: {sampled.source.part}"
        found.append(sample_clips(open_model, sampled, folder, key, progress, name))
    return found


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """Of all steps. Changes from one expert's last step to the next one's first are unknown, and left out."""
    latents, changes = (np.concatenate([getattr(part, name) for part in parts], 1) for name in ("latents", "changes"))
    return Trajectories(latents, changes, parts[0].skipped)
