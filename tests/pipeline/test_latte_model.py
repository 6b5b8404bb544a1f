"""The second bundled model: separate spatial and temporal attention, readable clips, and the main job."""

from __future__ import annotations

from pathlib import Path

import pytest

import vditc
from vditc import metrics
from vditc.calibrate.stage import uncalibrated
from vditc.digits import Caption
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.job import Job
from vditc.pipeline.opened import OpenedModel
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.reference import ReferenceModel
from vditc.sampling import sample
from vditc.target import Target

MODEL = Path(vditc.__path__[0]) / "assets" / "digits_latte"
CLIPS = 2
SEED = 5


@pytest.mark.parametrize("recipe", [None, "w8a8"])
def test_clips_show_what_the_prompt_says(recipe: str | None) -> None:
    opened = OpenedModel.open(MODEL)
    source, adapter, parts, sampling = opened.source, opened.adapter, opened.parts, opened.sampling
    given = opened.prompted(CLIPS, SEED)
    known = uncalibrated(source=source, adapter=adapter, recipe=Recipe.load(recipe))() if recipe else None
    clips = given.clips(range(CLIPS), adapter.inputs(source))
    latents = sample(ReferenceModel(adapter, source, known), opened.schedule(), clips, sampling.guidance_scale)
    assert parts.codec is not None
    read = metrics.evaluate(parts.codec.decode(latents), [Caption.parse(p) for p in given.prompts])
    assert read.digit_accuracy == 1.0 and read.motion_accuracy == 1.0


def test_model_is_small_and_factorised() -> None:
    source = ModelDir.open(MODEL)
    assert source.model_class == "LatteTransformer3DModel"
    assert sum(p.stat().st_size for p in MODEL.rglob("*") if p.is_file()) <= 6_000_000
    roles = list(adapter_for(source).layer_roles(source).values())
    blocks = source.config["num_layers"]
    for part in "q", "k", "v", "out":
        assert roles.count(f"temporal_attn.{part}") == roles.count(f"self_attn.{part}") == roles.count(f"cross_attn.{part}") == blocks
    s = source.sampling
    assert s is not None and s.semantics == "digits" and s.extra_channels is None
    assert (s.height // source.config["patch_size"]) * (s.width // source.config["patch_size"]) == 64


@pytest.mark.demo
def test_compiles_for_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "latte.bundle"
    job = Job(model_dir=MODEL, recipe=Recipe.load("w8a8"), targets=(Target.load("cpu"),), out=out, clips=2)
    m = compile_bundle(job, SILENT).manifest
    assert m.quality is not None and m.gate["failed"] == [] and m.quality["full_precision"]["digit_accuracy"] == 1.0
    assert sum(layer["role"].startswith("temporal_attn.") for layer in m.layers.values()) == 16
