"""A random WanTransformer3DModel small enough for every test: 2 blocks, width 128, 32 tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from vditc import digits
from vditc.codec import PixelShuffleCodec
from vditc.conditioning import TEXT, Conditioning
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.pipeline.schedules import load_schedule
from vditc.sampled_model import SampledModel
from vditc.text_encoder import PAD, WordEmbedding

SAMPLING = {"steps": 3, "guidance_scale": 2.0, "frames": 2, "height": 8, "width": 8, "semantics": None}


def save_tiny_model(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Write a whole diffusers directory; the same seed gives the same bytes."""
    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=256,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    with torch.no_grad():  # fresh tables are near zero, which would hide modulation mistakes; the head starts at zero too
        for name, parameter in model.named_parameters():
            if "scale_shift_table" in name or "bias" in name or name.startswith("proj_out"):
                parameter.normal_(0.0, 0.2)
    model.half().save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    words = (PAD, "a", "moving", *map(str, range(10)), *digits.DIRECTIONS)
    weight = np.random.default_rng(seed).standard_normal((len(words), 16)).astype(np.float32)
    WordEmbedding(words, 8, weight).save(folder / "text_encoder")
    PixelShuffleCodec(2, -0.85, 0.4).save(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}) + "\n")
    (folder / "sampling.json").write_text(json.dumps(SAMPLING) + "\n")
    return folder


def tiny_sampled(source: ModelDir, conditioning: Conditioning, **changes: Any) -> SampledModel:
    """It on these clips; `steps`, or fields of SampledModel, replace the defaults."""
    known: dict[str, Any] = {
        "source": source,
        "adapter": adapter_for(source),
        "conditioning": conditioning,
        "scheduler": load_schedule(source.path, changes.pop("steps", SAMPLING["steps"])),
        "guidance_scale": SAMPLING["guidance_scale"],
    }
    return SampledModel(**(known | changes))


def sampled_and_rest(arguments: Mapping[str, Any]) -> tuple[SampledModel, dict[str, Any]]:
    """Arguments by name, with those that make a SampledModel put together."""
    own = {field.name for field in dataclasses.fields(SampledModel)}
    return SampledModel(**{n: v for n, v in arguments.items() if n in own}), {n: v for n, v in arguments.items() if n not in own}


def tiny_clips(folder: Path) -> Conditioning:
    """Two prompts for it."""
    words = WordEmbedding.load(folder / "text_encoder")
    prompts = ("a 7 moving left", "a 2 moving up")
    return Conditioning(
        prompts=prompts,
        inputs={TEXT: words.encode(list(prompts))},
        empty={TEXT: words.encode([""])},
        seeds=(5, 6),
        latent_shape=(4, 2, 8, 8),
    )
