"""How a change of the model's prediction shows in the clip: in its pictures, in its motion, in what the prompt does. No other network.

All are relative L2 errors against the full-precision model on the same inputs, of what the prediction says of the finished clip.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.schedule import Schedule

Array = npt.NDArray[Any]
METRICS = ("output", "visual", "motion", "text")


def clip_metrics(scheduler: Schedule, step: int, latents: Array, exact: Array, changed: Array, guidance_scale: float) -> dict[str, float]:
    """Of latents [C, F, H, W] before a step, and of predictions [branches, C, F, H, W], with the prompt and, if guided, without.

    output: squared error of the predictions. visual: error of the predicted clip's frames, mean over the frames. motion: error of the
    differences between neighbouring frames, 0 for a single frame. text: error of the guidance's direction, which no unguided model has.
    """
    was, now = (scheduler.finished(step, latents, _guided(said, guidance_scale)) for said in (exact, changed))
    frames = [_error(a, b) for a, b in zip(np.moveaxis(was, 1, 0), np.moveaxis(now, 1, 0), strict=True)]
    found = {
        "output": _error(exact, changed) ** 2,
        "visual": float(np.mean(frames)),
        "motion": _error(np.diff(was, axis=1), np.diff(now, axis=1)),
    }
    return found if len(exact) == 1 else found | {"text": _error(exact[0] - exact[1], changed[0] - changed[1])}


def _guided(said: Array, scale: float) -> Array:
    return said[0] if len(said) == 1 else np.asarray(said[1] + np.float32(scale) * (said[0] - said[1]))


def _error(was: Array, now: Array) -> float:
    norm = float(np.linalg.norm(was.astype(np.float64)))
    return float(np.linalg.norm(now.astype(np.float64) - was)) / norm if norm else 0.0
