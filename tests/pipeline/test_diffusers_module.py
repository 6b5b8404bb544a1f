"""A bundle in place of a diffusers pipeline's transformer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tolerances
import torch
from family_case import Case, cases, save
from sampled_case import FLOW, sampled_case

import vditc
from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.errors import InputError, VditcError
from vditc.export.adapters.registry import adapter_for, adapters
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.denoisers import open_denoiser
from vditc.pipeline.job import Job
from vditc.pipeline.schedules import bundle_schedule
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe
from vditc.runtimes.graph_inputs import model_inputs
from vditc.sampling import sample
from vditc.target import Target

# Inputs of which forward gives the class a part: it never sees the rest, which comes back as zeros.
SEEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pose_hidden_states": lambda x: x[:, :, 1:],
    "face_pixel_values": lambda x: x.flatten(2, 3)[:, :, 7:],
}


def drop_ins() -> list[Case]:
    """Cases of families that predict the video alone, through a class of diffusers."""
    known = adapters()
    return [c for c in cases() if (a := known[c.config["_class_name"]]).in_pipelines and len(a.outputs) == 1]


@pytest.mark.parametrize("case", drop_ins(), ids=str)
def test_a_call_of_the_class_goes_back_to_what_the_graph_takes(case: Case, tmp_path: Path) -> None:
    """From what `forward` calls diffusers' class with come its feeds again, and from its prediction what the class returned."""
    source = save(case, tmp_path)
    adapter, random = adapter_for(source), np.random.default_rng(0)
    feeds = {s.name: torch.from_numpy(s.example({**case.shapes[0], "batch": 1}, random)) for s in adapter.inputs(source)}
    model, calls = adapter.load(source), []
    plain = model.forward

    def noted(**kwargs: Any) -> Any:
        returned = plain(**kwargs)
        calls.append((kwargs, returned[0] if isinstance(returned, tuple) else returned))
        return returned

    model.forward = noted
    with torch.no_grad():
        prediction = adapter.forward(model, feeds)
    ((call, returned),) = calls
    call = {n: v for n, v in call.items() if v is not None and n != "return_dict" and n not in adapter.made_inside}
    found = adapter.fed_by(call, source.config)
    assert set(found) == set(feeds)
    for name, value in feeds.items():
        seen = SEEN.get(name, torch.clone)
        torch.testing.assert_close(seen(torch.as_tensor(found[name])), seen(value), rtol=1e-6, atol=0)  # LTX's seconds are float32
    assert torch.equal(adapter.handed_back(prediction, call), returned)


def made(name: str, scheduler: Any, guidance: float, folder: Path, recipe: str = "w8a8") -> tuple[Path, Conditioning]:
    """A bundle of a family's small model, and conditionings for it."""
    path, conditioning = sampled_case(name, scheduler, guidance, folder)
    job = Job(
        model_dir=path,
        recipe=dataclasses.replace(Recipe.load(recipe), gate=Gate()),
        targets=(Target.load("cpu"),),
        out=folder / "out.bundle",
        conditioning=conditioning,
        clips=1,
    )
    compile_bundle(job, SILENT)
    return folder / "out.bundle", Conditioning.load(conditioning)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Conditioning]:
    """With static scales of activations: its graph has a table of steps."""
    return made("wan", FLOW, 5.0, tmp_path_factory.mktemp("wan"), "w8a8-static")


def wan_pipeline(transformer: Any) -> Any:
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return quiet(diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=FLOW, transformer=transformer))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(path: Path, given: Conditioning) -> Any:
    """The first clip by vditc's own loop."""
    bundle = Bundle.open(path)
    with open_denoiser(bundle, "onnxruntime") as denoise:
        clips = given.clips([0], model_inputs(bundle.file("model.onnx")))
        return sample(denoise, bundle_schedule(bundle), clips, bundle.manifest.sampling["guidance_scale"])


def arguments(path: Path, given: Conditioning, scale: float) -> tuple[dict[str, Any], torch.Tensor]:
    """What a pipeline is called with for the first clip, and its noise."""
    clips = given.clips([0], model_inputs(path / "model.onnx"))
    told = {
        "prompt_embeds": torch.from_numpy(clips.prompted["encoder_hidden_states"]),
        "negative_prompt_embeds": torch.from_numpy(clips.unprompted["encoder_hidden_states"]),
        "num_inference_steps": 2,
        "guidance_scale": scale,
        "output_type": "latent",
        "height": 64,
        "width": 64,
        "num_frames": 9,
    }
    return told, torch.from_numpy(clips.noise)


def test_wan_pipeline(wan: tuple[Path, Conditioning]) -> None:
    told, noise = arguments(*wan, 5.0)
    with vditc.load(wan[0]) as transformer:
        latents = wan_pipeline(transformer)(**told, latents=noise).frames
    assert transformer.backend == "onnxruntime"  # no GPU, so no engine
    assert tolerances.relative_l2(latents.numpy(), sampled(*wan)) < tolerances.PIPELINE


def test_cogvideox_pipeline_from_a_directory(tmp_path: Path) -> None:
    """The class has other axes, and the pipeline both branches in one batch; from_pretrained takes the module for the checkpoint's."""
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    path, given = made("cogvideox-5b", scheduler, 6.0, tmp_path)
    blocks = {"down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4}
    vae = diffusers.AutoencoderKLCogVideoX(
        **blocks, block_out_channels=[8] * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4
    )
    vae.save_pretrained(tmp_path / "model" / "vae")
    index = {"_class_name": "CogVideoXPipeline", "_diffusers_version": diffusers.__version__}
    parts = {"vae": "AutoencoderKLCogVideoX", "scheduler": "CogVideoXDDIMScheduler", "transformer": "CogVideoXTransformer3DModel"}
    index |= {name: ["diffusers", kind] for name, kind in parts.items()}
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    told, noise = arguments(path, given, 6.0)
    absent = {"text_encoder": None, "tokenizer": None}
    with vditc.load(path) as transformer:
        pipe = quiet(diffusers.CogVideoXPipeline.from_pretrained(tmp_path / "model", **absent, transformer=transformer))
        assert pipe.transformer is transformer
        latents = pipe(**told, latents=noise.transpose(1, 2)).frames
    assert tolerances.relative_l2(latents.transpose(1, 2).numpy(), sampled(path, given)) < tolerances.PIPELINE


def test_another_schedule_is_refused(wan: tuple[Path, Conditioning]) -> None:
    told, noise = arguments(*wan, 5.0)
    refusal = r"timestep 751.*wanted one of 1000, 8\.9.*the schedule of the calibration"
    with vditc.load(wan[0]) as transformer, pytest.raises(InputError, match=refusal):
        wan_pipeline(transformer)(**{**told, "num_inference_steps": 3}, latents=noise)


def test_calls_that_the_graph_has_no_form_of(wan: tuple[Path, Conditioning]) -> None:
    clips = wan[1].clips([0], model_inputs(wan[0] / "model.onnx"))
    call = {
        "hidden_states": torch.from_numpy(clips.noise),
        "timestep": torch.tensor([1000]),
        "encoder_hidden_states": torch.from_numpy(clips.prompted["encoder_hidden_states"]),
    }
    with vditc.load(wan[0], dtype=torch.bfloat16) as transformer:
        assert transformer.dtype is torch.bfloat16 and transformer.config.patch_size == [1, 2, 2]
        plain = transformer(**call)
        assert torch.equal(plain.sample, transformer(*call.values(), return_dict=False, attention_kwargs={"scale": 1.0})[0])
        half = transformer(**{**call, "hidden_states": call["hidden_states"].bfloat16()}).sample
        assert half.dtype is torch.bfloat16 and 0 < tolerances.relative_l2(half.float().numpy(), plain.sample.numpy()) < 0.05
        with pytest.raises(InputError, match=r"found attention_kwargs = \{'scale': 0.5\}"):
            transformer(**call, attention_kwargs={"scale": 0.5})
        with pytest.raises(InputError, match="found arguments encoder_hidden_states_image"):
            transformer(**call, encoder_hidden_states_image=call["encoder_hidden_states"])
        with pytest.raises(InputError, match="found no encoder_hidden_states"):
            transformer(**{**call, "encoder_hidden_states": None})
    with pytest.raises(VditcError, match="found a transformer that was closed"):
        transformer(**call)


def test_a_gpu_without_an_engine_is_no_reason_to_be_slow(wan: tuple[Path, Conditioning], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vditc.pipeline.denoisers.compute_capability", lambda: "sm_90")
    with pytest.raises(InputError, match=r"found engines for no GPU; wanted an engine for this machine's sm_90.*the backend onnxruntime"):
        vditc.load(wan[0])
