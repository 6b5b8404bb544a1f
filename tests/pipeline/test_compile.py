"""The whole job on the tiny model: what a bundle holds, that equal jobs give equal bytes, and that a killed job goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from plans import same_engine

from vditc.bundle import Bundle
from vditc.conditioning import TEXT, Conditioning
from vditc.device.package import DevicePackage
from vditc.errors import InputError, PrecisionError, QualityError
from vditc.graph_passes.element_types import element_types
from vditc.pipeline import compile as job_module
from vditc.pipeline.compile import compile_bundle, prepare
from vditc.pipeline.job import Job
from vditc.pipeline.use import sample_bundle
from vditc.progress import SILENT
from vditc.quirk import Quirk
from vditc.recipe import Gate, Recipe
from vditc.target import Target

PROMPTS = ("a 7 moving left", "a 2 moving up")


@pytest.fixture
def job(tiny_dir: Path, tmp_path: Path) -> Job:
    """w8a8-static (it samples trajectories and has step tables) for the CPU; the tiny model's noise meets no gate."""
    recipe = dataclasses.replace(Recipe.load("w8a8-static"), gate=Gate())
    return Job(model_dir=tiny_dir, recipe=recipe, targets=(Target.load("cpu"),), out=tmp_path / "tiny.bundle", prompts=PROMPTS, clips=2)


def contents(bundle: Path) -> dict[str, bytes]:
    """Every file but the times."""
    files = {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    return {n: data for n, data in files.items() if n != "report/run.json"}


@pytest.fixture(scope="module")
def whole(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An uninterrupted run."""
    recipe = dataclasses.replace(Recipe.load("w8a8-static"), gate=Gate())
    out = tmp_path_factory.mktemp("whole") / "tiny.bundle"
    compile_bundle(Job(model_dir=tiny_dir, recipe=recipe, targets=(Target.load("cpu"),), out=out, prompts=PROMPTS, clips=2), SILENT)
    return contents(out)


def test_bundle_is_complete(job: Job) -> None:
    bundle = compile_bundle(job, SILENT)
    m = Bundle.open(job.out).manifest
    assert m == bundle.manifest
    assert len(m.layers) == 20 and len(m.kept) == 7
    assert {layer["weight"] for layer in m.layers.values()} == {"int8 per_channel"}
    assert all(kept["reason"] for kept in m.kept.values())
    codes, channels, kept = 393_216, 2_816, 141_312  # of the tiny model: quantized weights, their output channels, other weights
    assert m.mean_bits == pytest.approx((8 * codes + 32 * channels + 16 * kept) / (codes + kept), abs=1e-4)
    assert m.targets["cpu"]["engine"]["status"] == "portable"
    assert [i["name"] for i in m.inputs] == ["hidden_states", "timestep", "encoder_hidden_states", "step"]
    assert [i["name"] for i in m.targets["cpu"]["inputs"]] == ["hidden_states", "encoder_hidden_states", "step"]
    (tables,) = (p["figures"] for p in m.targets["cpu"]["graph"]["passes"] if p["figures"])
    assert tables["steps"] == 3 and tables["tables_bytes"] < tables["weights_bytes"]
    memory = m.targets["cpu"]["memory"]  # 2 x 4 x 4 tokens
    assert memory["tokens"] == 32 and memory["total"] == memory["weights"] + memory["activations"]
    assert m.targets["cpu"]["graph"]["error"] <= job_module.LOWERED_TOLERANCE
    assert m.quality is not None and len(m.quality["step_error"]) == 3 and len(m.quality["layer_error"]) == 20
    assert 0 < max(m.quality["layer_error"].values()) < 0.2
    for name in (
        "calibration.safetensors",
        "model.onnx",
        "model.onnx.data",
        "model.refit.json",
        "lowered/cpu.onnx",
        "components/scheduler/scheduler_config.json",
    ):
        assert name in m.files
    text = np.zeros((1, 8, 16), np.float32)
    for frames, backend, words in (
        (33, "onnxruntime", "found frames of 33 frames; wanted 1 to 32 frames"),  # more than the model has positions for
        (3, "cpu", "found frames of 3 frames; wanted 1 to 2 frames, which the engine serves"),
    ):
        clip = Conditioning(prompts=("x",), inputs={TEXT: text}, empty={TEXT: text}, seeds=(1,), latent_shape=(4, frames, 8, 8))
        clip.save(file := job.out.with_name("clip.safetensors"))
        with pytest.raises(InputError, match=words):
            sample_bundle(bundle, job.out.with_name("latents.safetensors"), "", file, None, backend, SILENT)


def test_a_target_in_bfloat16(job: Job) -> None:
    """ONNX Runtime cannot run its graph on a CPU; the same passes in float32 are compared."""
    bundle = compile_bundle(dataclasses.replace(job, targets=(Target.load("h100-bf16"),)), SILENT)
    about = bundle.manifest.targets["h100-bf16"]
    assert about["compute"] == "bf16" and about["engine"]["status"] == "to build on the device"
    assert about["graph"]["error"] <= job_module.LOWERED_TOLERANCE
    assert "lowered/h100-bf16.onnx" in bundle.manifest.files and not [f for f in bundle.manifest.files if "fp32" in f]
    assert DevicePackage.read(job.out / "engines/h100-bf16").target == "h100-bf16"


class Notes:
    """Remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def task(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Callable[[], None]]:
        return SILENT.task(title, total, done)

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("known", ["before", "after lowering"])
def test_attention_in_bfloat16_where_float16_does_not_count(job: Job, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    """Of the profile's tokens, or of the lowered graph if that alone shows how many keys there are; both are said."""
    h100 = Target.load("h100")
    own = Quirk(name="own", says="nine keys", source="https://example.org", fp16_keys=9 if known == "before" else 60_000)
    target = dataclasses.replace(h100, quirks=tuple(own if q.fp16_keys else q for q in h100.quirks))
    if known != "before":
        found = iter((70_000, 0))
        monkeypatch.setattr(job_module, "float16_keys", lambda lowered, sizes: next(found, 0))
    bundle = compile_bundle(dataclasses.replace(job, targets=(target, Target.load("cpu"))), notes := Notes())
    about = bundle.manifest.targets["h100"]
    assert (about["compute"], about["attention"]) == ("fp16", "bf16")
    assert bundle.manifest.targets["cpu"]["attention"] == "fp32"
    assert [n for n in notes.said if "attention" in n] == ["h100 computes attention in bf16: nine keys"]
    graph = ir.load(job.out / about["lowered"]).graph
    types = element_types(graph).of
    assert {types[n.outputs[0]] for n in graph if n.op_type == "Softmax"} == {ir.DataType.BFLOAT16}
    assert about["graph"]["error"] <= job_module.LOWERED_TOLERANCE


def test_attention_that_has_more_keys_than_tokens(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even bfloat16 helps, which is known only of the lowered graph: the finished work stays."""
    monkeypatch.setattr(job_module, "float16_keys", lambda lowered, sizes: 70_000 if sizes["frames"] == 2 else 0)
    with pytest.raises(PrecisionError, match="found attention over 70000 tokens in fp16; wanted at most 65504 on target h100: "):
        compile_bundle(dataclasses.replace(job, targets=(Target.load("h100"),)), SILENT)
    assert (job.out.with_name("tiny.bundle.partial") / "model.onnx").exists()


def test_equal_jobs_give_equal_bytes(job: Job, whole: dict[str, bytes]) -> None:
    compile_bundle(job, SILENT)
    assert contents(job.out) == whole


def test_the_time_path_can_stay(job: Job) -> None:
    kept = dataclasses.replace(job, keep_time_path=True)
    assert prepare(kept).digest != prepare(job).digest  # neither resumes the other
    inputs = compile_bundle(kept, SILENT).manifest.targets["cpu"]["inputs"]
    assert [i["name"] for i in inputs] == ["hidden_states", "timestep", "encoder_hidden_states", "step"]


@pytest.mark.demo
def test_equal_builds_give_equal_plans(job: Job, tmp_path: Path) -> None:
    """But for a few bytes: on a loaded machine TensorRT-RTX numbers size expressions in one of two orders (docs/roadmap.md)."""
    pytest.importorskip("tensorrt_rtx")
    target, profile = (
        (Target.load("rtx-ada"),),
        "height=8:8:16,width=8:8:16",
    )  # with more free sizes there is more that may be ordered anyhow
    found = []
    for name in ("one.bundle", "two.bundle"):
        compile_bundle(dataclasses.replace(job, targets=target, profile=profile, out=tmp_path / name, clips=1), SILENT)
        found.append(contents(tmp_path / name))
    plans = [files.pop("engines/rtx-ada/model.plan") for files in found]
    assert same_engine(*plans)
    manifests = [json.loads(files.pop("manifest.json")) for files in found]
    for manifest in manifests:
        del manifest["files"]["engines/rtx-ada/model.plan"]["sha256"]
    assert manifests[0] == manifests[1]
    assert found[0] == found[1]


class Killed(BaseException):
    """Stands for a signal: nothing but a test catches it."""


@pytest.mark.demo
@pytest.mark.parametrize("stage", ["calibrate", "export_model", "lower", "_lowered_error", "verify_clips", "write_manifest"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_job_resumes_to_the_same_bytes(
    job: Job, whole: dict[str, bytes], stage: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = getattr(job_module, stage)

    def killed(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            real(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(job_module, stage, killed)
        with pytest.raises(Killed):
            compile_bundle(job, SILENT)
    assert not job.out.exists()
    with pytest.raises(InputError, match="left by an interrupted run"):
        compile_bundle(job, SILENT)
    compile_bundle(dataclasses.replace(job, resume=True), SILENT)
    assert contents(job.out) == whole
    assert not job.out.with_name("tiny.bundle.partial").exists()


@pytest.mark.demo
def test_real_kill_in_the_middle_of_calibration(job: Job, tiny_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    vditc = str(Path(sys.executable).with_name("vditc"))
    command = [vditc, "compile", str(tiny_dir), "--recipe", "w8a8-static", "--target", "cpu", "-o", str(job.out)]
    command += ["--prompts", str(prompts), "--clips", "2", "--no-gate", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = job.out.with_name("tiny.bundle.partial")
    deadline = time.monotonic() + 120
    while not list(partial.glob(".work/*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the job ended before it could be killed"
    assert not job.out.exists() and partial.exists()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert Bundle.open(job.out).manifest.recipe["name"] == "w8a8-static"


def test_below_the_gate(job: Job) -> None:
    strict = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, gate=Gate(min_psnr_db=200.0)))
    with pytest.raises(QualityError, match=r"min_psnr_db .* wanted min_psnr_db 200; .*--no-gate"):
        compile_bundle(strict, SILENT)
    assert not job.out.exists()
    bundle = compile_bundle(dataclasses.replace(strict, gate=False, resume=True), SILENT)
    assert bundle.manifest.gate["failed"] == ["min_psnr_db"] and not bundle.manifest.gate["enforced"]


def test_changed_options_are_not_resumed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(**_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "export_model", stop)
        with pytest.raises(Killed):
            compile_bundle(job, SILENT)
    with pytest.raises(InputError, match="of another job"):
        compile_bundle(dataclasses.replace(job, steps=4, resume=True), SILENT)


def test_targets_are_checked(job: Job) -> None:
    with pytest.raises(InputError, match="at least one, each once"):
        compile_bundle(dataclasses.replace(job, targets=job.targets * 2), SILENT)
