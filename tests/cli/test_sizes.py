"""Sizes as people give them: refused in frames and pixels before any work, and shown by `inspect` and `models`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from command import Run, vditc
from lowered_graphs import save_product
from tiny_export import SCHEMES, calibration, export

from vditc.axis import Sizes
from vditc.conditioning import TEXT, Conditioning
from vditc.export.adapters.registry import adapters
from vditc.export.adapters.wan import Wan
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.progress import SILENT
from vditc.runtimes.graph_inputs import graph_sizes
from vditc.target import Target, builtin_targets


@pytest.fixture
def model(tiny_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model behind the VAE that Wan has."""
    copy = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    vae = {"_class_name": "AutoencoderKLWan", "temperal_downsample": [False, True, True]}
    (copy / "vae" / "config.json").write_text(json.dumps(vae))
    return copy


def compile_refused(model: Path, tmp_path: Path, *options: str) -> Run:
    out = tmp_path / "out.bundle"
    (tmp_path / "prompts.txt").write_text("a 7 moving left\n")
    prompts = [] if "--conditioning" in options else ["--prompts", str(tmp_path / "prompts.txt")]
    run = vditc("compile", str(model), "--recipe", "w8a8", "--target", "cpu", "-o", str(out), *prompts, *options)
    assert run.code == 2 and run.stderr.count("\n") == 1, run
    assert not out.exists() and not out.with_name("out.bundle.partial").exists()
    return run


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("height=485px", "--profile: found height 485 pixels; wanted a multiple of 16 pixels (VAE stride 8 x patch 2), nearest 480 or 496"),
        ("frames=80f", "found frames 80 frames; wanted 4n + 1, nearest 77 or 81"),
        ("frames=33", "found frames of 33 steps, which are 129 frames; wanted 1 to 125 frames, nearest 125"),
        ("1080p", "presets 480p81, 720p81"),
    ],
)
def test_a_profile_that_the_model_does_not_take(model: Path, tmp_path: Path, profile: str, words: str) -> None:
    assert words in compile_refused(model, tmp_path, "--profile", profile).stderr


def test_a_clip_of_sampling_json(model: Path, tmp_path: Path) -> None:
    file = model / "sampling.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "height": 9}))
    words = "sampling.json: found height of 9 steps, which are 72 pixels; wanted a multiple of 16 pixels"
    assert words in compile_refused(model, tmp_path).stderr
    out = tmp_path / "calibration.safetensors"
    run = vditc("calibrate", str(model), "--recipe", "w8a8", "-o", str(out))
    assert run.code == 2 and words in run.stderr and not out.exists()


def test_saved_conditionings(model: Path, tmp_path: Path) -> None:
    text = np.zeros((1, 8, 16), np.float32)
    own = Conditioning(prompts=("x",), inputs={TEXT: text}, empty={TEXT: text}, seeds=(1,), latent_shape=(4, 33, 8, 8))
    own.save(tmp_path / "own.safetensors")
    run = compile_refused(model, tmp_path, "--conditioning", str(tmp_path / "own.safetensors"))
    assert "own.safetensors: found frames of 33 steps, which are 129 frames; wanted 1 to 125 frames" in run.stderr


@pytest.fixture(scope="module")
def lowered(tiny: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's lowered graph, away from its model directory."""
    folder = tmp_path_factory.mktemp("lowered")
    model = export(tiny, calibration(tiny, SCHEMES["fp16"]), folder / "model.onnx")
    lower(model=model, target=Target.load("rtx-ada"), out=folder / "lowered.onnx", progress=SILENT)
    return folder / "lowered.onnx"


def test_a_graph_knows_its_sizes(tiny: ModelDir, lowered: Path, tmp_path: Path) -> None:
    sizes = Wan().sizes(tiny)
    assert graph_sizes(lowered) == graph_sizes(lowered.with_name("model.onnx")) == sizes
    assert "480p81" in sizes.presets and sizes.axes["height"].stride == 2
    bare = ir.load(save_product(tmp_path / "bare.onnx", "fp16"))
    names = tuple(dict.fromkeys(str(d) for v in bare.graph.inputs for d in v.shape or () if not isinstance(d, int)))
    assert names and graph_sizes(tmp_path / "bare.onnx") == Sizes.unknown(names)


def test_build_checks_sizes_without_the_model(lowered: Path, tmp_path: Path) -> None:
    def build(profile: str) -> Run:
        return vditc("build", str(lowered), "--target", "rtx-ada", "--profile", profile, "-o", str(tmp_path / "engine"))

    for profile, words in (
        (
            "batch=1,frames=2,height=18px,width=16px,text_tokens=8",
            "height 18 pixels; wanted a multiple of 4 pixels (VAE stride 2 x patch 2)",
        ),
        ("480p81,batch=1,text_tokens=8", "found preset 480p81 of frames 81 frames; wanted 1 to 32 frames, nearest 32"),
        ("batch=1,frames=2f,height=16px", "found no sizes for width, text_tokens"),
    ):
        run = build(profile)
        assert run.code == 2 and words in run.stderr, run
    assert not (tmp_path / "engine").exists()


LONG = "frames=32,height=128,width=128"  # 32 x 64 x 64 tokens


def test_attention_over_more_tokens_than_float16_counts(model: Path, lowered: Path, tmp_path: Path) -> None:
    """Where nothing else is possible compile refuses before any work; build refuses the graph; one in bfloat16 is not refused for that."""
    words = "found attention over {} tokens in fp16; wanted at most 65504 on target {}:"
    narrow = tmp_path / "narrow.toml"  # no bfloat16 at all
    narrow.write_text(builtin_targets()["h100"].read_text().replace('"h100"', '"narrow"').replace('["fp16", "bf16"]', '["fp16"]'))
    run = compile_refused(model, tmp_path, "--target", str(narrow), "--profile", LONG)
    assert words.format(131072, "narrow") in run.stderr and "--attention" not in run.stderr
    for target in ("h100", "h100-bf16"):  # bfloat16 in attention, and everywhere
        run = compile_refused(model, tmp_path, "--target", target, "--profile", LONG, "--clips", "0")  # stopped by another error
        assert "found 0 clips" in run.stderr
    canonical, wide, attention = str(lowered.with_name("model.onnx")), tmp_path / "wide.onnx", tmp_path / "attention.onnx"
    assert vditc("lower", canonical, "--target", "h100-bf16", "-o", str(wide)).code == 0
    assert vditc("lower", canonical, "--target", "h100", "--attention", "bf16", "-o", str(attention)).code == 0
    cases = ((lowered, "rtx-ada", 2), (lowered, "h100", 2), (lowered, "h100-bf16", 2), (wide, "h100-bf16", 0), (attention, "h100", 0))
    for graph, target, code in cases:
        options = ("--target", target, "--profile", f"batch=1,text_tokens=8,{LONG}", "-o", str(tmp_path / "engine"))
        run = vditc("build", str(graph), *options)  # where it is not refused, a script for the device
        assert run.code == code, run
        assert (words.format(131072, target) in run.stderr) == (code == 2)
        assert ("lower with --attention bf16, or lower for --target" in run.stderr) == (code == 2)
        assert (tmp_path / "engine").exists() == (code == 0)
        shutil.rmtree(tmp_path / "engine", ignore_errors=True)
    for refused, why in (
        (("--target", "h100", "--attention", "fp32"), "found attention in fp32; wanted fp16 or bf16"),
        (("--target", "cpu", "--attention", "bf16"), "found attention in bf16; wanted fp32"),
        (("--target", "h100", "--attention", "bf16", "--passes", "fold-constants"), "found --passes with --attention"),
    ):
        run = vditc("lower", canonical, *refused, "-o", str(tmp_path / "refused.onnx"))
        assert run.code == 2 and why in run.stderr, run


def test_build_takes_frames_and_pixels(lowered: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    profile = "custom,batch=1,frames=1f:2f:3f,height=16px,width=24px,text_tokens=8"
    run = vditc("build", str(lowered), "--target", "rtx-ada", "--profile", profile, "-o", str(tmp_path / "engine"))
    assert run.code == 0, run
    asked = json.loads((tmp_path / "engine.work" / "request.json").read_text())["shapes"]["hidden_states"]
    assert asked == [[1, 4, frames, 8, 12] for frames in (1, 2, 3)]


def test_inspect_of_a_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(vditc("inspect", str(model), "--json").stdout)
    assert (facts["family"], facts["model"]) == ("wan", "WanTransformer3DModel")
    assert facts["axes"]["height"]["takes"] == "a multiple of 16 pixels (VAE stride 8 x patch 2)"
    default = facts["clips"]["default"]
    assert default["sizes"] == {"batch": "2", "frames": "5f", "height": "64px", "width": "64px", "text_tokens": "512"}
    assert default["tokens"] == 2 * 4 * 4
    fp16, w8a8, w4a16 = (default["memory"][r] for r in ("fp16", "w8a8", "w4a16"))
    assert fp16["weights"] > w8a8["weights"] > w4a16["weights"] > 0
    assert facts["clips"]["480p81"]["tokens"] == 21 * 30 * 52
    from vditc.cli.app import console

    monkeypatch.setattr(console, "width", 120)
    shown = vditc("inspect", str(model)).stdout
    assert "frames=81f" in shown and "4n + 1 frames, at most 125" in shown


def test_every_family_is_listed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(vditc("models", "--json").stdout)
    assert {row["class"] for row in found} == set(adapters())
    for row in found:
        if "missing" not in row:
            assert row["blocks"] and all(row["blocks"].values()), row
            assert {"batch", "height", "width"} <= row["axes"].keys(), row
        assert row["presets"], row
    from vditc.cli.app import console

    monkeypatch.setattr(console, "width", 120)
    shown = vditc("models").stdout
    assert "WanTransformer3DModel" in shown and "480p81: 81x480x832" in shown and "frames: 4n + 1 <= 4093" in shown
    assert "SanaWMTransformer3DModel: its linear attention" in shown
    assert max(map(len, shown.splitlines())) <= 120
