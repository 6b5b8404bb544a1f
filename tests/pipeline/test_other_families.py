"""Models with other inputs than Wan's, from saved conditionings to a bundle that samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from family_case import cases, save
from sampled_case import FLOW, sampled_case

from vditc.errors import InputError
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.job import Job
from vditc.pipeline.use import sample_bundle
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe
from vditc.safetensors_file import read_header
from vditc.target import Target

V_PREDICTION = {"beta_schedule": "scaled_linear", "clip_sample": False, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


@pytest.mark.demo
@pytest.mark.parametrize(
    ("name", "scheduler", "guidance", "given"),
    [
        ("hunyuan-video", FLOW, 1.0, False),  # a mask, a pooled text, guidance as an input
        ("cogvideox-5b", diffusers.CogVideoXDDIMScheduler(**V_PREDICTION), 6.0, False),  # no flow, the text in front of the time
        ("wan-i2v", FLOW, 5.0, False),  # image tokens, and constant channels that differ from clip to clip
        ("wan2.2-ti2v", FLOW, 5.0, True),  # a given first frame, and a time for every frame
    ],
)
def test_from_conditionings_to_a_bundle_that_samples(name: str, scheduler: Any, guidance: float, given: bool, tmp_path: Path) -> None:
    more: dict[str, Any] = {}
    if given:
        more = {"known": np.full((2, 8, 3, 8, 8), 0.25, np.float32), "known_frames": (0,)}
    path, conditioning = sampled_case(name, scheduler, guidance, tmp_path, **more)
    recipe = dataclasses.replace(Recipe.load("w8a8"), gate=Gate())
    job = Job(model_dir=path, recipe=recipe, targets=(Target.load("cpu"),), out=tmp_path / "out.bundle", conditioning=conditioning, clips=1)
    bundle = compile_bundle(job, SILENT)
    quality = bundle.manifest.quality
    assert quality is not None and quality["clips"] == 2 and 0 < quality["step_error"][-1] < 0.2
    sample_bundle(bundle, tmp_path / "latents.safetensors", "", conditioning, None, "cpu", SILENT)
    latents = read_header(tmp_path / "latents.safetensors")[0]["latents"].read()
    assert latents.shape[0] == 2 and np.isfinite(latents).all() and not np.array_equal(latents[0], latents[1])
    assert (latents[:, :, 0] == 0.25).all() == given


def test_a_model_with_sound_is_exported_but_not_sampled(tmp_path: Path) -> None:
    source = save(next(case for case in cases() if case.name == "ltx-2"), tmp_path / "model")
    job = Job(model_dir=source.path, recipe=Recipe.load("w8a8"), targets=(Target.load("cpu"),), out=tmp_path / "out.bundle")
    with pytest.raises(InputError, match="predicts velocity and audio; wanted a model that predicts the video alone"):
        compile_bundle(job, SILENT)
