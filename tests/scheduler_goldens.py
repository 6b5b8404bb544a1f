"""Writes what samplers of other hosts are checked against: python tests/scheduler_goldens.py tests/runtimes/data/schedulers.safetensors

For each walk of `diffusers_walks.PUBLISHED`, in 6 steps, tensors NAME/timesteps, NAME/sigmas, NAME/rows, NAME/noise (added by a step),
NAME/predictions and NAME/latents, which stand before the first and after each step; all float32 but the rows, float64. A row is
[seen, converted x 2, noise, corrects, corrected x 5, following x 5] as `vditc.runtimes.schedulers.walk.Row` names them, with zeros where it
is shorter. The latents are diffusers' own. The metadata key `vditc` holds each walk's class, configuration and start as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers_walks import PUBLISHED, SHAPE, Theirs

from vditc.runtimes.schedulers.registry import scheduler_of
from vditc.runtimes.schedulers.walk import Row
from vditc.safetensors_file import write_tensors

STEPS, TERMS = 6, 5


def packed(row: Row) -> list[float]:
    """One row of numbers."""
    corrected, following = ([*terms, *(0.0 for _ in range(TERMS - len(terms)))] for terms in (row.corrected or (), row.following))
    return [row.seen, *row.converted, row.noise, float(row.corrected is not None), *corrected, *following]


def goldens() -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Tensors by name, and what each walk was made of."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    about: dict[str, Any] = {}
    for name, config in PUBLISHED.items():
        theirs, ours, random = Theirs(config, STEPS), scheduler_of(config, STEPS), np.random.default_rng(0)
        x = torch.from_numpy(random.standard_normal(SHAPE).astype(np.float32)) * theirs.start
        said, latents = random.standard_normal((STEPS, *SHAPE)).astype(np.float32), [x.numpy()]
        added = np.stack([ours.drawn(i, SHAPE) if row.noise else np.zeros(SHAPE, np.float32) for i, row in enumerate(ours.rows)])
        for i in range(STEPS):
            theirs.shown(i, x)
            x = theirs.step(said[i], i, x, added[i])
            latents.append(x.numpy())
        key = name.replace(" ", "-")
        values = {"timesteps": ours.timesteps, "sigmas": ours.sigmas, "rows": np.array([packed(row) for row in ours.rows])}
        values |= {"noise": added, "predictions": said, "latents": np.stack(latents).astype(np.float32)}
        tensors |= {f"{key}/{what}": np.ascontiguousarray(value) for what, value in values.items()}
        about[key] = {**ours.about, "start": ours.start}
    return tensors, about


if __name__ == "__main__":
    arrays, info = goldens()
    write_tensors(Path(sys.argv[1]), arrays, {"vditc": json.dumps(info, sort_keys=True)})
