"""How good a bundle's clips are: sampled from the same noise by the full-precision and by the quantized model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc import metrics
from vditc.conditioning import Conditioning
from vditc.digits import Caption
from vditc.errors import QualityError
from vditc.files import array_digest, data_digest
from vditc.pipeline.components import Components
from vditc.progress import Progress
from vditc.recipe import Gate
from vditc.safetensors_file import read_header, write_tensors
from vditc.sampled_model import SampledModel
from vditc.sampling import Denoiser
from vditc.step_cache import Changes, Skips, StepCache

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Latents of every clip after every step, float32 [clips, steps, C, F, H, W]."""

    latents: npt.NDArray[np.float32]
    changes: npt.NDArray[np.float64]  # [clips, steps - 1, 1 + branches]: relative, of the latents shown and of each branch's prediction
    skipped: float = 0.0  # share of the model's runs that a step cache left out

    def clips(self, parts: Components) -> npt.NDArray[np.float32]:
        """Finished clips: pixels [clips, F, H, W] in [-1, 1] where the codec is known, else latents [clips, C * F, H, W]."""
        last = self.latents[:, -1]
        if parts.codec is not None:
            return parts.codec.decode(last)
        return last.reshape(len(last), -1, *last.shape[-2:])


def sample_clips(
    open_model: Callable[[], Denoiser],
    sampled: SampledModel,
    folder: Path,
    key: dict[str, Any],
    progress: Progress,
    title: str,
    cache: tuple[StepCache, float] | None = None,
) -> Trajectories:
    """Sample every clip, one at a time; finished clips are kept in `folder` under `key`, so that a killed run goes on.

    `open_model` is called only when a clip is missing. `cache`: leaves out steps, at a threshold.
    """
    model: Denoiser | None = None
    conditioning, steps, clips, changes, skipped = sampled.conditioning, sampled.steps, [], [], []
    walked = {"solver": None if sampled.solver is None else dict(sampled.solver.about)}
    if cache is not None:
        walked |= {"cache": {**cache[0].to_json(), "threshold": cache[1]}}
    with progress.task(title, len(conditioning) * steps) as advance:
        for index in range(len(conditioning)):
            starts = {} if sampled.starts is None else {"start": array_digest(sampled.starts[index])}
            clip_key = data_digest(
                {
                    **key,
                    **walked,
                    **starts,
                    "clip": conditioning.digest(index),
                    "schedule": sampled.scheduler.to_json(),
                    "guidance": sampled.guidance_scale,
                }
            )
            file = folder / f"{clip_key[:24]}.safetensors"
            if not file.exists():
                model = model or open_model()
                path: list[Array] = []

                def keep(_: int, latents: Array, path: list[Array] = path) -> None:
                    path.append(latents[0].copy())
                    advance()

                watch, skips = Changes(), None if cache is None else Skips(*cache, steps)
                sampled.sample(model, index, keep, cache=skips, on_prediction=watch, reuse=True)
                left_out = 0.0 if skips is None else skips.skipped / skips.asked
                write_tensors(file, {"latents": np.stack(path), "changes": watch.found, "skipped": np.array(left_out)})
            else:
                for _ in range(steps):
                    advance()
            found = {name: np.array(entry.read()) for name, entry in read_header(file)[0].items()}
            clips.append(found["latents"])
            changes.append(found["changes"])
            skipped.append(float(found["skipped"]))
    return Trajectories(np.stack(clips), np.stack(changes), float(np.mean(skipped)))


def compare(
    reference: Trajectories, candidate: Trajectories, conditioning: Conditioning, parts: Components, semantics: str | None
) -> dict[str, Any]:
    """Quality numbers of the candidate, plain data; digit and motion accuracy only where clips can be read."""
    captions = [Caption.parse(p) for p in conditioning.prompts] if semantics == "digits" else None
    clean, ours = reference.clips(parts), candidate.clips(parts)
    if parts.codec is None:  # latents have no fixed range: scale both by the reference's
        low, high = float(clean.min()), float(clean.max())
        clean, ours = ((x - low) / (high - low) * 2 - 1 for x in (clean, ours))
    scores = metrics.evaluate(ours, captions, references=clean)
    base = metrics.evaluate(clean, captions)
    difference = np.linalg.norm((candidate.latents - reference.latents).reshape(*reference.latents.shape[:2], -1), axis=-1)
    size = np.linalg.norm(reference.latents.reshape(*reference.latents.shape[:2], -1), axis=-1)
    return {
        "clips": len(conditioning),
        "prompts": list(conditioning.prompts),
        "space": "pixels" if parts.codec else "latents",
        "full_precision": base.to_json(),
        "quantized": scores.to_json(),
        "step_error": [round(float(e), 6) for e in (difference / size).mean(0)],
    }


def check_gate(gate: Gate, quality: dict[str, Any]) -> dict[str, Any]:
    """The gate's thresholds, what was measured, and the names of those that failed."""
    ours, base = quality["quantized"], quality["full_precision"]
    measured = {
        "min_psnr_db": ours["psnr_db"],
        "max_digit_accuracy_drop": _drop(base, ours, "digit_accuracy"),
        "max_motion_accuracy_drop": _drop(base, ours, "motion_accuracy"),
    }
    report: dict[str, Any] = {"thresholds": {}, "measured": {}, "failed": []}
    for name, value in measured.items():
        threshold = getattr(gate, name)
        if threshold is None or value is None:
            continue
        report["thresholds"][name], report["measured"][name] = threshold, value
        # Shares are compared with a margin far below one clip, for 1 - 0.98 is a little more than 0.02.
        if value < threshold if name.startswith("min_") else value > threshold + 1e-9:
            report["failed"].append(name)
    return report


def _drop(base: dict[str, Any], ours: dict[str, Any], name: str) -> float | None:
    return None if base[name] is None or ours[name] is None else base[name] - ours[name]


def refuse(gate: dict[str, Any], where: str, fix: str) -> None:
    """QualityError when the gate failed."""
    if gate["failed"]:
        found = ", ".join(f"{n} {gate['measured'][n]:.4g}" for n in gate["failed"])
        wanted = ", ".join(f"{n} {gate['thresholds'][n]:.4g}" for n in gate["failed"])
        raise QualityError(found=found, wanted=wanted, where=where, fix=fix)
