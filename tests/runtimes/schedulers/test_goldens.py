"""The stored walks: what a host without Python has to do is in the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scheduler_goldens import STEPS, TERMS, packed
from tolerances import SAMPLER

from vditc.runtimes.schedulers.registry import scheduler_of
from vditc.safetensors_file import read_header

FILE = Path(__file__).parents[1] / "data" / "schedulers.safetensors"


def test_rows_alone_lead_from_latents_to_latents() -> None:
    entries, metadata = read_header(FILE)
    walks = json.loads(metadata["vditc"])
    assert len(walks) == 16
    for name in walks:
        rows, noise, said, latents = (np.array(entries[f"{name}/{what}"].read()) for what in ("rows", "noise", "predictions", "latents"))
        x, last, memory = latents[0].astype(np.float64), np.zeros(()), [np.zeros(())] * TERMS
        for i in range(STEPS):
            _, of_x, of_p, added, corrects, *terms = rows[i]
            memory = [of_x * x + of_p * said[i], *memory[:-1]]
            if corrects:
                x = sum((w * m for w, m in zip(terms[:TERMS], [last, *memory], strict=False)), np.zeros(()))
            last = x
            x = sum((w * m for w, m in zip(terms[TERMS:], [x, *memory], strict=False)), added * noise[i])
            assert float(np.abs(x - latents[i + 1]).max()) <= SAMPLER * max(1.0, float(np.abs(latents[i + 1]).max())), (name, i)


def test_the_file_holds_what_walks_are_today() -> None:
    entries, metadata = read_header(FILE)
    for name, about in json.loads(metadata["vditc"]).items():
        walk = scheduler_of({"_class_name": about["class"], **about["config"]}, about["steps"])
        assert {**walk.about, "start": walk.start} == about
        # numpy's logarithms of float32 are a unit in the last place apart on CPUs with other vectors.
        np.testing.assert_allclose(np.array(entries[f"{name}/timesteps"].read()), walk.timesteps, rtol=2.4e-7, atol=1e-7)
        np.testing.assert_allclose(np.array(entries[f"{name}/rows"].read()), [packed(row) for row in walk.rows], rtol=2e-6, atol=1e-9)
