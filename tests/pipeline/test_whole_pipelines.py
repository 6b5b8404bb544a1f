"""Pipeline directories become bundles that turn a prompt into a video without PyTorch; everything is compared with diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from command import vditc
from PIL import Image, ImageSequence
from safetensors.numpy import load_file
from tiny_pipeline import save_tiny_cogvideox, save_tiny_hunyuan_video, save_tiny_mochi, save_tiny_wan, tiny_clip, tiny_llama
from tolerances import PIPELINE_LATENTS, TEXT_FP8, TEXT_GRAPH, TEXT_W8

from vditc.bundle import Bundle
from vditc.device.package import DevicePackage
from vditc.export.parts.families.registry import part_for
from vditc.export.parts.part import open_part
from vditc.export.parts.stage import export_part
from vditc.pipeline.part_lowering import part_profile
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes.parts import session
from vditc.runtimes.parts.session import OrtPart
from vditc.sampling import noise

PROMPT, NEGATIVE, SEED, STEPS = "a red kite over the sea", "two dogs", 3, 4
BLOCKED = ("torch", "diffusers", "transformers", "sentencepiece")
_BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
import vditc.cli
sys.argv = ["vditc", *sys.argv[1:]]
vditc.cli.main()
"""
# name -> how it is made, frames x height x width of the clip, its latent frames, and whether latents are [B, F, C, H, W] in diffusers
CASES: dict[str, tuple[Callable[[Path], Path], str, int, bool]] = {
    "wan": (save_tiny_wan, "5x32x48", 3, False),
    "cogvideox": (save_tiny_cogvideox, "17x32x48", 5, True),
    "hunyuan": (save_tiny_hunyuan_video, "17x32x48", 5, False),
    "mochi": (save_tiny_mochi, "13x32x48", 3, False),
}


def _compile(*words: object) -> None:
    run = vditc("compile", *map(str, words))
    assert run.code == 0, run.stderr


def _without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    """`vditc WORDS` where PyTorch and its libraries cannot be imported."""
    run = subprocess.run([sys.executable, "-c", _BLOCK, *words], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run


def _by_diffusers(folder: Path, shape: list[int], *, frames_first: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Latents [1, C, F, H, W] and frames uint8 of the pipeline itself, from the same noise."""
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    start = torch.from_numpy(noise(tuple(shape), SEED)[None])
    mochi = "Mochi" in type(pipe).__name__
    pixels = pipe.vae_spatial_scale_factor if mochi else pipe.vae_scale_factor_spatial
    frames = pipe.vae_temporal_scale_factor if mochi else pipe.vae_scale_factor_temporal
    arguments: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "height": shape[2] * pixels,
        "width": shape[3] * pixels,
        "num_frames": (shape[1] - 1) * frames + 1,
        "num_inference_steps": STEPS,
        "true_cfg_scale" if "Hunyuan" in type(pipe).__name__ else "guidance_scale": 3.0,
        "latents": start.transpose(1, 2) if frames_first else start,
    }
    if frames_first:
        arguments["max_sequence_length"] = pipe.transformer.config.max_text_seq_length
    latents = pipe(**arguments, output_type="latent").frames
    images = pipe(**arguments, output_type="pil").frames[0]
    return (latents.transpose(1, 2) if frames_first else latents).numpy(), np.stack([np.asarray(image) for image in images])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_prompt_becomes_the_video_of_the_pipeline(name: str, tmp_path: Path) -> None:
    save, size, frames, frames_first = CASES[name]
    model, bundle, prompts = save(tmp_path / "model"), tmp_path / "x.bundle", tmp_path / "prompts.txt"
    prompts.write_text("a cat bakes a cake\nwaves break on a dark shore\n")
    options = ["--steps", str(STEPS), "--guidance", "3", "--size", size, "--profile", f"frames={frames}", "--clips", "1"]
    _compile(model, "--recipe", "fp16", "--target", "cpu", *options, "--prompts", prompts, "-o", bundle)
    manifest = Bundle.open(bundle).manifest
    assert {"text_encoder", "vae"} <= set(manifest.components)
    last = "tile2" if name == "hunyuan" else "next"
    assert manifest.components["vae"]["targets"]["cpu"]["graphs"][last] == {"status": "portable"}
    assert "components/tokenizer/tokenizer.json" in manifest.model["components"]

    words = ["run", str(bundle), "--prompt", PROMPT, "--negative-prompt", NEGATIVE, "--seed", str(SEED)]
    _without_torch(*words, "-o", str(tmp_path / "out.safetensors"))
    _without_torch(*words, "-o", str(tmp_path / "out.png"))
    want, images = _by_diffusers(model, list(manifest.sampling["latent_shape"]), frames_first=frames_first)
    got = load_file(tmp_path / "out.safetensors")["latents"]
    np.testing.assert_allclose(got, want, atol=PIPELINE_LATENTS)
    with Image.open(tmp_path / "out.png") as file:
        shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)])
    assert shown.shape == images.shape
    assert np.abs(shown.astype(int) - images).max() <= 2

    other = [w if w != NEGATIVE else "the city at night" for w in words]
    _without_torch(*other, "-o", str(tmp_path / "other.safetensors"))
    assert np.abs(load_file(tmp_path / "other.safetensors")["latents"] - got).max() > 10 * PIPELINE_LATENTS


@pytest.mark.slow
def test_engines_of_the_parts(tmp_path: Path) -> None:
    """Built by TensorRT-RTX, as far as a machine without a GPU goes; written down for a device that builds for itself."""
    pytest.importorskip("tensorrt_rtx")
    model, bundle, prompts = save_tiny_wan(tmp_path / "model"), tmp_path / "x.bundle", tmp_path / "prompts.txt"
    prompts.write_text("a cat bakes a cake\n")
    options = ["--steps", "2", "--size", "3x32x48", "--profile", "frames=2", "--clips", "1", "--no-gate", "--text-encoder-dtype", "w8"]
    targets = ["--target", "rtx-ada", "--target", "jetson-orin"]
    _compile(model, "--recipe", "fp16", *targets, *options, "--prompts", prompts, "-o", bundle)
    about = Bundle.open(bundle).manifest.components
    text, vae = (about[name]["targets"]["rtx-ada"] for name in ("text_encoder", "vae"))
    assert (text["compute"], vae["compute"]) == ("bf16", "fp16")
    assert about["text_encoder"]["layers"] == 14
    engines = {"text_encoder": ["model"], "vae": ["first1", "next"]}
    for name, graphs in engines.items():
        for graph in graphs:
            assert about[name]["targets"]["rtx-ada"]["graphs"][graph]["engine"]["status"] == "built"
            assert (bundle / f"components/{name}/engines/rtx-ada/{graph}/model.plan").stat().st_size > 0
            device = DevicePackage.read(bundle / f"components/{name}/engines/jetson-orin/{graph}")
            assert (device.root, device.graphs[0].lowered) == ("../../..", f"{graph}.jetson-orin.onnx")
    stored = ir.load(bundle / "components/text_encoder/model.rtx-ada.onnx").graph
    codes = [v for v in stored.initializers.values() if v.dtype is ir.DataType.INT8]
    assert len(codes) == 14 and all(v.const_value.location == "model.onnx.data" for v in codes)  # type: ignore[union-attr]
    assert all(error <= 0.05 for g in vae["graphs"].values() if (error := g["error"]) is not None)

    before = {n: (bundle / n).read_bytes() for n in Bundle.open(bundle).manifest.files if n.startswith("components/")}
    run = vditc("build", str(bundle), "--target", "jetson-orin", "--target", "rtx-blackwell", "--no-verify", "--jobs", "2")
    assert run.code == 0, run.stdout
    made = Bundle.open(bundle).manifest  # as `compile` does, and for a target that it was not asked for
    assert {n: (bundle / n).read_bytes() for n in before} == before
    for name, graphs in engines.items():
        found = made.components[name]["targets"]
        assert found["jetson-orin"] == about[name]["targets"]["jetson-orin"]
        assert {g: found["rtx-blackwell"]["graphs"][g]["engine"]["status"] for g in graphs} == dict.fromkeys(graphs, "built")


@pytest.mark.parametrize("stored", ["model", pytest.param("w8", marks=pytest.mark.slow), pytest.param("fp8", marks=pytest.mark.slow)])
def test_a_text_encoder_as_a_graph(stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_pipeline import tiny_t5

    model = tiny_t5("umt5")
    model.save_pretrained(tmp_path / "text_encoder")
    part = part_for(open_part(tmp_path, "text_encoder"))
    facts = export_part(part, tmp_path / "onnx", SILENT, stored)
    assert facts.layers == (0 if stored == "model" else 14)
    tolerance = {"model": TEXT_GRAPH, "w8": TEXT_W8, "fp8": TEXT_FP8}[stored]
    for large in (session.LARGE, 0):  # folded while loading, or left as stored until each node runs
        monkeypatch.setattr(session, "LARGE", large)
        run = OrtPart(tmp_path / "onnx" / "model.onnx")
        for tokens, hidden in ((1, 0), (9, 0), (33, 12)):
            ids = torch.randint(0, 90, (1, tokens))
            mask = torch.ones_like(ids)
            mask[:, tokens - hidden :] = 0
            with torch.no_grad():
                want = model(ids, mask)[0].numpy()[:, : tokens - hidden]
            got = run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["hidden"][:, : tokens - hidden]
            assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize(("make", "output"), [(tiny_llama, "hidden_states"), (tiny_clip, "pooler_output")])
def test_a_causal_text_encoder_as_a_graph(make: Callable[[], Any], output: str, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "text_encoder")
    part = part_for(open_part(tmp_path, "text_encoder"))
    export_part(part, tmp_path / "onnx", SILENT)
    run = OrtPart(tmp_path / "onnx" / "model.onnx")
    for tokens, hidden in ((1, 0), (9, 0), (33, 12)):
        ids = torch.randint(0, 60, (1, tokens))
        mask = torch.ones_like(ids)
        mask[:, tokens - hidden :] = 0
        with torch.no_grad():
            found = model(ids, mask, output_hidden_states=True)
        want = (found.pooler_output if output == "pooler_output" else found.hidden_states[-1]).numpy()
        (got,) = run({"input_ids": ids.numpy(), "attention_mask": mask.numpy()}).values()
        assert got.shape == want.shape and np.abs(got - want).max() <= TEXT_GRAPH * np.abs(want).max()
    ranges = part_profile(tmp_path / "onnx" / "model.onnx", Profile({"text_tokens": Range(8, 8, 8)}), None)
    assert ranges == Profile({"prompt_tokens": Range(1, part.tokens, part.tokens)})  # type: ignore[attr-defined]


def test_size_and_parts_are_checked(tmp_path: Path) -> None:
    model = save_tiny_wan(tmp_path / "model")
    (tmp_path / "p.txt").write_text("a cat\n")
    base = ["compile", model, "--recipe", "fp16", "--target", "cpu", "-o", tmp_path / "x.bundle", "--prompts", tmp_path / "p.txt"]
    for options, said in (
        (["--size", "5x31x48"], "height"),
        (["--size", "big"], "FRAMESxHEIGHTxWIDTH"),
        (["--parts", "vae"], "all or transformer"),
        (["--text-encoder-dtype", "w2"], "model or w8 or fp8"),
    ):
        run = vditc(*map(str, base), *options)
        assert run.code == 2 and said in run.stderr, run.stderr
    assert not (tmp_path / "x.bundle.partial").exists()
    assert json.loads((model / "model_index.json").read_text())["_class_name"] == "WanPipeline"
