"""Pipelines whose text encoder is not exported: bundles made from conditionings have the VAE, and decode to frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from sampled_case import FLOW, sampled_case
from tiny_vaes import tiny_cosmos_vae, tiny_hunyuan_video15_vae, tiny_magvit_vae

import vditc
from vditc.checkpoint import read_json
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.job import Job
from vditc.pipeline.parts import PartChoice, PipelineParts
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.parts.video_decoder import to_uint8
from vditc.target import Target

EDM = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5)
# case -> text encoder, VAE, scheduler
CASES: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "hunyuan-video-1.5-t2v": ("Qwen2_5_VLForConditionalGeneration", tiny_hunyuan_video15_vae, FLOW),
    "easyanimate": ("Qwen2VLForConditionalGeneration", tiny_magvit_vae, FLOW),
    "cosmos-1-text2world": ("T5EncoderModel", tiny_cosmos_vae, EDM),
}


def _saved(name: str, folder: Path) -> tuple[Path, Path, Any]:
    """A model directory with a text encoder's config, conditionings for it, and its VAE."""
    encoder, make, scheduler = CASES[name]
    path, conditioning = sampled_case(name, scheduler, 3.0, folder)
    (path / "text_encoder").mkdir()
    (path / "text_encoder" / "config.json").write_text(json.dumps({"architectures": [encoder]}))
    model = make()
    model.save_pretrained(path / "vae")
    return path, conditioning, model


@pytest.mark.parametrize("name", CASES)
def test_the_vae_is_a_part_without_the_text_encoder(name: str, tmp_path: Path) -> None:
    path, _, model = _saved(name, tmp_path)
    parts = PipelineParts.open(path, read_json(path / "transformer" / "config.json"), PartChoice())
    assert parts.conditioner is None and not parts.encoders and "run the bundle with --conditioning" in parts.notes[0]
    assert len(parts.notes) == 1 and parts.vae is not None and parts.vae.model_class == type(model).__name__


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_bundle_of_conditionings_decodes_to_frames(name: str, tmp_path: Path) -> None:
    path, conditioning, model = _saved(name, tmp_path)
    recipe = Recipe.load("fp16")
    job = Job(model_dir=path, recipe=recipe, targets=(Target.load("cpu"),), out=tmp_path / "x.bundle", conditioning=conditioning, clips=1)
    bundle = compile_bundle(job, SILENT)
    assert set(bundle.manifest.components) == {"vae"}
    with vditc.Sampler(bundle.path) as sampler:
        made = sampler(conditioning=conditioning)
        latents = torch.from_numpy(made.latents[:1])
        frames = made.frames(0)
    config = model.config
    if name.startswith("cosmos"):
        mean, std = (torch.tensor(v).view(1, 4, -1, 1, 1)[:, :, : latents.shape[2]] for v in (config.latents_mean, config.latents_std))
        z = latents * std / EDM.config.sigma_data + mean
    else:
        z = latents / config.scaling_factor
    with torch.no_grad():
        want = to_uint8(model.decode(z).sample.numpy())
    assert frames.shape == want.shape and len(frames) > latents.shape[2]
    assert np.abs(frames.astype(int) - want).max() <= 1
