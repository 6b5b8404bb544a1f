"""Layers that a target does not compute as calibrated: the ladder, what is recorded, and that nothing happens without being asked."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_export
from command import vditc

from vditc.bundle import Bundle
from vditc.engine_facts import engine_facts
from vditc.errors import InputError, PrecisionError, VditcError
from vditc.files import whole_file
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.pipeline import build_engine as build_module
from vditc.pipeline import compile as job_module
from vditc.pipeline.compile import compile_bundle, prepare
from vditc.pipeline.fallback import Ladder
from vditc.pipeline.job import Job
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe, Rule
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.graph_precision import expected_precision
from vditc.runtimes.tensorrt_rtx import TensorRTRTX
from vditc.scheme import QuantSpec, Scheme
from vditc.target import Target

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (extra: rtx)")
RTX = Target.load("rtx-ada")
Q, K, TEXT = "blocks.0.attn1.to_q", "blocks.0.attn1.to_k", "condition_embedder.text_embedder.linear_1"
W8A8 = "W[int8 per_channel] A[int8 per_token dynamic]"
ALONE = "W[int8 per_channel] A[float]"
CHANNELS = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL)


def ladder(tmp_path: Path, tiny: ModelDir, scheme: str = "w8a8", target: Target = RTX) -> Ladder:
    known = {**tiny_export.SCHEMES, **tiny_export.FLOATS}[scheme]
    return Ladder.start(target, tiny_export.calibration(tiny, known), tmp_path / "fallback.json")


def test_rungs_of_one_layer_and_what_is_recorded(tmp_path: Path, tiny: ModelDir) -> None:
    made = ladder(tmp_path, tiny)
    assert made.passes() == () and made.recorded == []
    made.step({Q: "slow", K: "slow"})
    assert [str(p) for p in made.passes()] == [f"dequantize-layers{{layers={K}:{Q},weights=false,store=fp32}}"]
    made.step({Q: "slow still"})
    assert [str(p) for p in made.passes()] == [
        f"dequantize-layers{{layers={K},weights=false,store=fp32}}",
        f"dequantize-layers{{layers={Q},weights=true,store=fp16}}",
    ]
    wanted = [
        {"layers": [Q, K], "from": W8A8, "to": ALONE, "reason": "slow"},
        {"layers": [Q], "from": ALONE, "to": "fp16", "reason": "slow still"},
    ]
    assert made.recorded == wanted
    again = ladder(tmp_path, tiny)  # as a resumed job finds it
    assert (again.recorded, again.rungs) == (wanted, made.rungs)
    with pytest.raises(PrecisionError, match=rf"found {Q}: never; wanted a rung below"):
        made.step({Q: "never"})
    with pytest.raises(PrecisionError, match="found head: odd; wanted a layer of the calibration"):
        made.step({"head": "odd"})


def test_what_a_target_refuses_falls_before_anything_is_built(tmp_path: Path, tiny: ModelDir) -> None:
    """FP8 weights are not read before sm_89, so they do not stay codes either; INT4 blocks do."""
    fp8 = ladder(tmp_path, tiny, "fp8")
    (step,) = fp8.recorded
    assert step["to"] == "fp16" and "FP8 products exist from sm_89 on" in step["reason"] and len(step["layers"]) == 20
    assert ladder(tmp_path / "h100", tiny, "fp8", Target.load("h100")).recorded == []
    (step,) = ladder(tmp_path / "l4", tiny, "nvfp4", Target.load("l4-bf16")).recorded
    assert step["to"] == "bf16"


class Stubborn(TensorRTRTX):
    """Does not build: says that layers did not land as long as anything of theirs is codes."""

    def build(self, *, lowered: Path, target: Target, **rest: Any) -> EngineFacts:
        codes = {q.layer for q in expected_precision(lowered).quantized}
        if wrong := dict.fromkeys(sorted(codes & {Q, K}), "computes half x half"):
            raise PrecisionError(found=str(wrong), wanted="codes", where="engine", fix="none", layers=wrong)
        (rest["out"] / "model.plan").parent.mkdir(parents=True, exist_ok=True)
        (rest["out"] / "model.plan").write_bytes(b"engine")
        return EngineFacts(status="built", backend=self.name)


class Killed(BaseException):
    """Stands for a signal: nothing but a test catches it."""


class Dying(TensorRTRTX):
    """Is killed with half of an engine written."""

    def build(self, **rest: Any) -> EngineFacts:
        with whole_file(rest["out"] / "model.plan") as plan:
            plan.write_bytes(b"half")
            raise Killed


@pytest.fixture
def job(tiny_dir: Path, tmp_path: Path) -> Job:
    recipe = dataclasses.replace(Recipe.load("w8a8"), gate=Gate())
    return Job(model_dir=tiny_dir, recipe=recipe, targets=(RTX,), out=tmp_path / "b", prompts=("a 7 moving left",), clips=1, fallback=True)


def test_layers_that_do_not_land_are_lowered_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a job whose first build was killed, and that goes on."""
    for module in (job_module, build_module):
        monkeypatch.setattr(module, "backend", lambda name: Stubborn())
    streaming = dataclasses.replace(job, engine=("weight-streaming",))
    assert prepare(streaming).digest == prepare(job).digest  # a killed build may go on otherwise
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(build_module, "backend", lambda name: Dying())
        compile_bundle(streaming, SILENT)
    partial = job.out.with_name("b.partial")
    assert not job.out.exists() and (partial / "lowered/rtx-ada.onnx").is_file() and not list((partial / "engines").rglob("*.plan*"))
    with pytest.raises(InputError, match=r"left by an interrupted run; .*--resume to go on with it"):
        compile_bundle(streaming, SILENT)
    for stage in ("calibrate", "export_model"):
        monkeypatch.delattr(job_module, stage)  # a build that was killed goes on with the build
    target = compile_bundle(dataclasses.replace(streaming, resume=True), SILENT).manifest.targets["rtx-ada"]
    assert target["build"] == {"weight-streaming": "auto"}
    why = "computes half x half"
    first, second = (
        {"layers": [K, Q], "from": W8A8, "to": ALONE, "reason": why},
        {"layers": [K, Q], "from": ALONE, "to": "fp16", "reason": why},
    )
    assert target["fallback"] == [first, second]
    lowered = expected_precision(job.out / target["lowered"])
    found = {q.layer: q.activation for q in lowered.quantized}
    assert len(found) == 18 and found["blocks.0.attn1.to_v"] == "int8" and Q not in found
    assert f"{Q}/MatMul" in lowered.floating
    assert target["graph"]["error"] <= job_module.LOWERED_TOLERANCE
    (weight,) = (
        i for i in onnx.load(job.out / target["lowered"], load_external_data=False).graph.initializer if i.name == f"{Q}.weight.fp16"
    )
    assert weight.data_type == onnx.TensorProto.FLOAT16
    assert said_of(job.out, "falls back from W[int8 per_channel] A[float] to fp16") == 1
    assert said_of(job.out, "is built with weight-streaming\n") == 1
    facts = engine_facts(Bundle.open(job.out), "rtx-ada")
    assert facts["build options"] == "weight-streaming"
    assert [rung.partition(" per")[0] for rung in facts["fallback"]] == ["falls back from W[int8"] * 2


def said_of(bundle: Path, words: str) -> int:
    """How often `vditc inspect` says so of a target."""
    return vditc("inspect", str(bundle)).stdout.count(f"rtx-ada {words}")


@pytest.mark.slow
def test_without_being_asked_the_error_stays(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (job_module, build_module):
        monkeypatch.setattr(module, "backend", lambda name: Stubborn())
    with pytest.raises(PrecisionError, match="computes half x half"):
        compile_bundle(dataclasses.replace(job, fallback=False), SILENT)
    monkeypatch.undo()
    with pytest.raises(InputError, match="found options of target 'h100'"):
        prepare(dataclasses.replace(job, engine=("h100:level=3",)))
    with pytest.raises(VditcError, match=r"building for rtx-ada: found 1 MB of memory allowed; .*fewer bits"):
        prepare(dataclasses.replace(job, engine=("rtx-ada:memory=1MB",)))
    with pytest.raises(InputError, match="found rule 3 of recipe fp8"):
        compile_bundle(dataclasses.replace(job, recipe=Recipe.load("fp8"), fallback=False, force=True), SILENT)


@needs_rtx
def test_a_layer_that_really_does_not_land(job: Job) -> None:
    """INT4 weights of 16 inputs have no blocks of fewer: TensorRT-RTX stores them as float16."""
    rules = (Rule(match=("text_embed.in",), scheme=Scheme(weight=CHANNELS)), *job.recipe.rules)
    odd = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, rules=rules))
    with pytest.raises(PrecisionError, match=rf"{TEXT}: weight stored as half, wanted int4.*--fallback"):
        compile_bundle(dataclasses.replace(odd, fallback=False), SILENT)
    target = compile_bundle(dataclasses.replace(odd, resume=True), SILENT).manifest.targets["rtx-ada"]  # goes on from there
    (step,) = target["fallback"]
    assert (step["layers"], step["from"], step["to"]) == ([TEXT], "W[int4 per_channel] A[float]", "fp16")
    assert target["engine"]["layers"][TEXT] == "half x half -> half"
    assert target["engine"]["status"] == "built"
    said = json.loads((Bundle.open(odd.out).path / "engines" / "rtx-ada" / "layers.json").read_text())
    assert said["read_from"] == "plan text" and any(f"{TEXT}/MatMul" in g["nodes"] for g in said["program"]["gemms"])
