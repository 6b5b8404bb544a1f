"""LoRAs through the stages: what is quantized and exported is the fused weight, and a bundle knows its LoRAs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from command import vditc

from vditc.calibration import Calibration
from vditc.errors import InputError
from vditc.lora import Lora, fuse
from vditc.model_dir import ModelDir
from vditc.pipeline import compile as job_module
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.job import Job
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe
from vditc.safetensors_file import write_tensors
from vditc.target import Target

QUANTIZED, KEPT = "blocks.1.ffn.net.2", "proj_out"


@pytest.fixture
def lora(tiny: ModelDir, tmp_path: Path, rng: np.random.Generator) -> Path:
    """A LoRA of a layer that the recipe w4a16 quantizes, and of one that it keeps."""
    tensors = {}
    for layer in (QUANTIZED, KEPT):
        n, k = tiny.weights[f"{layer}.weight"].shape
        tensors[f"transformer.{layer}.lora_A.weight"] = rng.standard_normal((4, k), np.float32)
        tensors[f"transformer.{layer}.lora_B.weight"] = rng.standard_normal((n, 4), np.float32)
    write_tensors(tmp_path / "style.safetensors", tensors)
    return tmp_path / "style.safetensors"


def test_stages_quantize_and_export_the_fused_weights(tiny: ModelDir, tiny_dir: Path, lora: Path, tmp_path: Path) -> None:
    calibrated, model = tmp_path / "calibration.safetensors", tmp_path / "model.onnx"
    options = ("--lora", f"{lora}:0.5", "--lora", str(lora))
    (tmp_path / "prompts.txt").write_text("a 7 moving left\n")
    assert (
        vditc(
            "calibrate", str(tiny_dir), "--recipe", "w4a16", "-o", str(calibrated), *options, "--prompts", str(tmp_path / "prompts.txt")
        ).code
        == 0
    )
    found, fused = Calibration.load(calibrated), fuse(tiny, [Lora.open(lora, 0.5), Lora.open(lora)])
    assert found.model_digest == fused.digest
    layer, weight = found.layers[QUANTIZED].weight.read(), fused.weights[f"{QUANTIZED}.weight"].read().astype(np.float32)
    group = layer.spec.group_size
    assert group is not None
    half = np.repeat(layer.scale.astype(np.float32), group, 1) * 0.5
    assert np.all(np.abs(layer.codes * 2 * half - weight) <= half * 1.01), "the codes are those of the fused weight"
    assert not np.all(np.abs(layer.codes * 2 * half - tiny.weights[f"{QUANTIZED}.weight"].read()) <= half * 1.01)

    refused = vditc("export", str(tiny_dir), "--calibration", str(calibrated), "-o", str(model))
    assert refused.code == 2 and "or give the --lora options that it was calibrated with" in refused.stderr and not model.exists()
    assert vditc("export", str(tiny_dir), "--calibration", str(calibrated), "-o", str(model), *options).code == 0
    stored = ir.load(model).graph.initializers[f"{KEPT}.weight"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), fused.weights[f"{KEPT}.weight"].read().T)


@pytest.fixture
def job(tiny_dir: Path, tmp_path: Path, lora: Path) -> Job:
    recipe = dataclasses.replace(Recipe.load("w4a16"), gate=Gate())
    prompts = ("a 7 moving left",)
    return Job(
        model_dir=tiny_dir,
        recipe=recipe,
        targets=(Target.load("cpu"),),
        out=tmp_path / "a.bundle",
        prompts=prompts,
        clips=1,
        loras=(f"{lora}:0.5",),
    )


class Killed(BaseException):
    """Stands for a signal."""


def test_a_bundle_records_its_loras_and_is_resumed_with_them_only(job: Job, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(**_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "export_model", stop)
        with pytest.raises(Killed):
            compile_bundle(job, SILENT)
    other = Path(shutil.copy(lora, lora.with_name("renamed.safetensors")))
    for loras in ((), (f"{lora}:0.6",), (f"{lora}:0.5", str(lora))):
        with pytest.raises(InputError, match="of another job"):
            compile_bundle(dataclasses.replace(job, loras=loras, resume=True), SILENT)
    bundle = compile_bundle(dataclasses.replace(job, loras=(f"{other}:0.5",), resume=True), SILENT)
    (said,) = bundle.manifest.model["loras"]
    digest = Lora.open(lora).digest
    assert said == {"name": "renamed.safetensors", "sha256": digest, "digest": digest, "scale": 0.5}
    refused = vditc("eval", str(job.out), "--against", str(job.model_dir))
    assert refused.code == 2 and "and its --lora options" in refused.stderr
    evaluated = vditc(
        "eval", str(job.out), "--against", str(job.model_dir), "--lora", f"{lora}:0.5", "--count", "1", "--prompts", prompts(lora)
    )
    assert evaluated.code == 0, evaluated


def prompts(beside: Path) -> str:
    """A file of one prompt."""
    path = beside.with_name("prompts.txt")
    path.write_text("a 7 moving left\n")
    return str(path)


def test_a_lora_of_another_model_leaves_nothing(job: Job, tmp_path: Path) -> None:
    write_tensors(tmp_path / "other.safetensors", {"transformer.blocks.40.attn1.to_q.diff": np.ones((2, 2), np.float32)})
    run = vditc(
        "compile",
        str(job.model_dir),
        "--recipe",
        "w4a16",
        "--target",
        "cpu",
        "-o",
        str(job.out),
        "--lora",
        str(tmp_path / "other.safetensors"),
    )
    assert run.code == 2 and run.stderr.count("\n") == 1
    assert "other.safetensors: found 1 of 1 modules that the model lacks, first blocks.40.attn1.to_q" in run.stderr
    assert not job.out.exists() and not job.out.with_name("a.bundle.partial").exists()
