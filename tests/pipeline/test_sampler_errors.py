"""What `vditc.Sampler` refuses, and that it says so before any work."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import vditc as command
from opened_parts import Opened
from tiny_bundle import LATENTS, NEGATIVE, PROMPT, save_tiny_bundle

import vditc
from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.errors import InputError, VditcError
from vditc.pipeline import denoisers


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny pipeline."""
    return save_tiny_bundle(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """It with a second expert."""
    return save_tiny_bundle(tmp_path_factory.mktemp("two"), experts=True)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "found both or neither; wanted prompt or conditioning"),
    "no prompt": ({"prompt": []}, "found no prompt; wanted at least one"),
    "seeds": ({"prompt": [PROMPT] * 2, "seed": [1, 2, 3]}, "found 3 seeds for 2 clips; wanted one a clip"),
    "noise": (
        {"prompt": PROMPT, "noise": np.zeros((1, 4, 3, 4, 4), np.float32)},
        r"found noise \[1, 4, 3, 4, 4\]; wanted finite numbers, \[1, 4, 3",
    ),
    "size": ({"prompt": PROMPT, "size": (6, None, None)}, "found frames 6 frames; wanted .*, nearest 5 or 7"),
    "height": ({"prompt": PROMPT, "size": (5, 20, 24)}, "found height 20 pixels; wanted a multiple of 8 pixels"),
    "two sizes": ({"prompt": PROMPT, "size": (5, 16)}, "wanted FRAMESxHEIGHTxWIDTH in frames and pixels, or one of small"),
    "words": ({"prompt": PROMPT, "size": "large"}, "found --size large; wanted FRAMESxHEIGHTxWIDTH"),
    "solver": ({"prompt": PROMPT, "solver": "DDIMScheduler"}, "found DDIMScheduler over the noise levels of UniPC"),
    "guidance": ({"prompt": PROMPT, "guidance_2": 2.0}, "found --guidance-2; wanted a bundle of two experts"),
    "embedded": ({"prompt": PROMPT, "embedded_guidance": 6.0}, "found --embedded-guidance 6; wanted a model with an input"),
    "cache": ({"prompt": PROMPT, "step_cache": "lots"}, "found --step-cache lots"),
    "steps": ({"prompt": PROMPT, "steps": 0}, "found 0 steps; wanted at least 1"),
    "cached steps": ({"prompt": PROMPT, "step_cache": 0.1, "steps": 3}, "found --step-cache on 3 steps of another schedule"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(bundle: Bundle, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, words = BAD[case]
    with vditc.Sampler(bundle, keep_open=False) as opened_once:
        seen = Opened(monkeypatch)
        with pytest.raises(InputError, match=words):
            opened_once(**given)
        assert "transformer" not in seen.names  # before any work
        opened_once(PROMPT)


def test_sizes_that_an_engine_was_not_built_for(bundle: Bundle, pair: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for own in (bundle, pair):
        seen = Opened(monkeypatch)
        with vditc.Sampler(own, backend="cpu") as opened_once:
            with pytest.raises(InputError, match="found frames of 7 frames; wanted 3 to 5 frames, which the engine serves"):
                opened_once(PROMPT, size=(7, None, None))
            assert "text_encoder/model" not in seen.names  # nothing is encoded for it
            assert opened_once(PROMPT, size=(3, None, None)).latents.shape == (1, 4, 2, 4, 6)
            given = opened_once.encode(PROMPT)
            with pytest.raises(InputError, match="found frames of 7 frames; wanted 3 to 5 frames"):
                opened_once(conditioning=dataclasses.replace(given, latent_shape=(4, 4, 4, 6)))


def test_a_size_that_the_graph_has_fixed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with vditc.Sampler(bundle) as opened_once:
        axes = {n: a for n, a in opened_once._sizes.axes.items() if n != "height"}
        monkeypatch.setattr(opened_once, "_sizes", dataclasses.replace(opened_once._sizes, axes=axes))
        for size in ("7x16x24", (7, 16, 24)):
            with pytest.raises(InputError, match="wanted the clip's own height, which the graph has fixed"):
                opened_once(PROMPT, size=size)
        assert opened_once(PROMPT, size=(7, None, 24)).latents.shape == (1, 4, 4, 4, 6)


def test_conditionings_that_do_not_fit(bundle: Bundle, tmp_path: Path) -> None:
    with vditc.Sampler(bundle) as opened_once:
        given = opened_once.encode(PROMPT)
        with pytest.raises(InputError, match="found --negative-prompt with --conditioning"):
            opened_once(conditioning=given, negative_prompt=NEGATIVE)
        with pytest.raises(InputError, match="found both or neither"):
            opened_once(PROMPT, conditioning=given)
        strange = dataclasses.replace(given, inputs={**given.inputs, "strange": np.zeros((1, 2))})
        with pytest.raises(InputError, match="found inputs strange; wanted only encoder_hidden_states, timestep"):
            opened_once(conditioning=strange)
        Conditioning(prompts=("x",), seeds=(1,), latent_shape=LATENTS, inputs={}, empty={}).save(file := tmp_path / "c.safetensors")
        with pytest.raises(InputError, match="found no encoder_hidden_states"):
            opened_once(conditioning=file)


def test_what_does_not_open(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="found --backend rtx; wanted onnxruntime, cpu"):
        vditc.Sampler(bundle.path, backend="rtx")
    assert command("run", str(bundle.path), "--prompt", PROMPT, "--backend", "rtx", "-o", str(tmp_path / "x.mp4")).code == 2
    with pytest.raises(InputError, match="found a budget for weights"):
        vditc.Sampler(bundle.path, weight_budget="1GiB")
    with pytest.raises(InputError, match=r"weight_budget: found '4 lots'"):
        vditc.Sampler(bundle.path, weight_budget="4 lots")
    monkeypatch.setattr(denoisers, "compute_capability", lambda: "sm_90")
    with pytest.raises(InputError, match="wanted an engine for this machine's sm_90"):
        vditc.Sampler(bundle.path)
    broken = shutil.copytree(bundle.path, tmp_path / "broken.bundle")
    data = bytearray((broken / "model.onnx").read_bytes())
    data[data.index(np.random.default_rng(0).standard_normal(4, np.float32).tobytes())] ^= 1  # of its weights
    (broken / "model.onnx").write_bytes(data)
    with pytest.raises(InputError, match=r"found model\.onnx with sha256"):
        vditc.Sampler(broken, backend="onnxruntime")
    vditc.Sampler(broken, backend="onnxruntime", sha256=False).close()
    (broken / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"found no file model\.onnx"):
        vditc.Sampler(broken, backend="onnxruntime", sha256=False)


def test_an_engine_without_its_plugin_library(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle names a library that it does not list: said before the first call, by name."""
    about = {"library": "plugins/linux-x86_64/libvditc_plugins.so", "operators": ["vditc.QLinear"], "version": "1", "namespace": "vditc"}
    targets = {"a100": {**bundle.manifest.targets["cpu"], "backend": "tensorrt", "plugins": about}}
    with pytest.raises(InputError, match=r"found no plugins/linux-x86_64/libvditc_plugins\.so in the manifest"):
        vditc.Sampler(Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets=targets)), backend="a100")


def test_nobody_samples_with_what_is_closed_or_at_work(bundle: Bundle) -> None:
    with vditc.Sampler(bundle) as opened_once:
        with pytest.raises(VditcError, match="found a sampler that is at work"):
            opened_once(PROMPT, on_step=lambda _: opened_once(PROMPT))
        found = opened_once(PROMPT)
    for call in (lambda: opened_once(PROMPT), lambda: opened_once.encode(PROMPT), found.frames):
        with pytest.raises(VditcError, match="found a sampler that was closed; wanted an open one"):
            call()
    opened_once.close()


def test_latents_that_nobody_decodes(bundle: Bundle, tmp_path: Path) -> None:
    with vditc.Sampler(bundle) as opened_once:
        decoder = opened_once._parts.decoder
        assert decoder is not None
        decoder.plan = dataclasses.replace(decoder.plan, chunk=2)
        found = opened_once(PROMPT)
        with pytest.raises(InputError, match="found a clip whose first chunk has 3 latent frames; wanted one of 1"):
            opened_once.decode(found.latents)
        with pytest.raises(InputError, match="found a clip whose first chunk has 3 latent frames"):
            found.save(tmp_path / "x.mp4")
        assert not list(tmp_path.glob("x.*"))
    no_parts = shutil.copytree(bundle.path, tmp_path / "x.bundle")
    shutil.rmtree(no_parts / "components")
    with vditc.Sampler(Bundle(no_parts, bundle.manifest)) as opened_once:
        with pytest.raises(InputError, match="found a text encoder that vditc does not run"):
            opened_once(PROMPT)
        text = {"encoder_hidden_states": np.zeros((1, 5, 8), np.float32)}
        found = opened_once(conditioning=Conditioning(prompts=("x",), seeds=(1,), latent_shape=LATENTS, inputs=text, empty=text))
        for use in (found.frames, lambda: found.save(tmp_path / "x.mp4")):
            with pytest.raises(InputError, match="found no codec that vditc runs"):
                use()
        with pytest.raises(InputError, match=r"found -o .*x\.avi; wanted \.mp4, .* or \.safetensors"):
            found.save(tmp_path / "x.avi")
        found.save(tmp_path / "x.safetensors")
