"""The quality of a compiled model: its clips against the full-precision model's, and what each layer's quantization costs its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vditc.calibration import Calibration
from vditc.pipeline.components import Components
from vditc.pipeline.experts import FULL_PRECISION, Walker, full_precision, joined, sample_experts
from vditc.pipeline.quality import Trajectories, compare
from vditc.progress import Progress
from vditc.runtimes.reference import layer_errors
from vditc.safetensors_file import write_tensors
from vditc.sampled_model import SampledModel
from vditc.step_cache import StepCache


def verify_clips(
    walkers: Sequence[Walker],
    calibrations: Sequence[Calibration],
    parts: Components,
    semantics: str | None,
    *,
    references: Path,
    work: Path,
    out: Path,
    title: str,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """`quality`: numbers of the clips that `walkers`, a transformer or two experts, sample together: one each, alike but for `layer_error`.

    `step_cache`: fitted to the trajectories of a transformer that walks alone; None for others, or too few steps.
    `references` and `work` keep finished clips of the full-precision model and of the walkers; `out` is written for the report.
    """
    own = sample_experts([full_precision(w.sampled, device) for w in walkers], references, progress, FULL_PRECISION)
    reference, candidate = joined(own), joined(sample_experts(walkers, work, progress, title))
    quality = compare(reference, candidate, walkers[0].sampled.conditioning, parts, semantics)
    starts = [None, *(before.latents[:, -1] for before in own[:-1])]
    begun = [dataclasses.replace(w.sampled, starts=latents) for w, latents in zip(walkers, starts, strict=True)]
    errors = [_layer_errors(*each, device) for each in zip(begun, calibrations, own, strict=True)]
    write_tensors(out, {"full_precision": reference.clips(parts), "quantized": candidate.clips(parts)})
    cache = StepCache.fit(candidate.changes) if len(walkers) == 1 else None
    found = [{**quality, "layer_error": layers} for layers in errors]
    return {"quality": found, "step_cache": None if cache is None else cache.to_json()}


def _layer_errors(sampled: SampledModel, calibration: Calibration, reference: Trajectories, device: str) -> dict[str, float]:
    """Relative output error of each layer on the full-precision inputs of the first, middle and last step of clip 0."""
    steps, feeds, clip = sampled.steps, [], sampled.clip(0)
    for index in sorted({0, steps // 2, steps - 1}):
        before = clip.start(sampled.scheduler) if index == 0 else reference.latents[:1, index - 1]
        feeds.append((clip.feeds(sampled.scheduler, index, before, guided=False), index))
    found = layer_errors(sampled.adapter, sampled.source, calibration, feeds, device=device)
    return {name: round(error, 6) for name, error in found.items()}
