"""A family's small model with what sampling needs, and conditionings of two clips for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from family_case import cases, save

from vditc.conditioning import Conditioning
from vditc.export.adapters.registry import adapter_for

FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
SIZES = {"batch": 2, "frames": 3, "height": 8, "width": 8, "text_tokens": 7, "text_tokens_2": 4, "image_tokens": 5}


def sampled_case(name: str, scheduler: Any, guidance: float, folder: Path, **more: Any) -> tuple[Path, Path]:
    """A small model directory of a family's case that can be sampled, and conditionings for two clips."""
    source = save(next(case for case in cases() if case.name == name), folder / "model")
    scheduler.save_pretrained(source.path / "scheduler")
    clip = {axis: SIZES[axis] for axis in ("frames", "height", "width")}
    (source.path / "sampling.json").write_text(json.dumps({"steps": 2, "guidance_scale": guidance, **clip}))
    adapter, random = adapter_for(source), np.random.default_rng(0)
    specs, channels = adapter.inputs(source), adapter.latent_channels(source)
    told = [s for s in specs[1:] if isinstance(s.fill, str) and s.fill != "timestep"]
    seen = specs[0].dims[1]
    assert isinstance(seen, int)
    Conditioning(
        prompts=("one", "two"),
        seeds=(0, 1),
        latent_shape=(channels, clip["frames"], clip["height"], clip["width"]),
        inputs={s.name: s.example(SIZES, random) for s in told},
        empty={
            "encoder_hidden_states": np.zeros((1, *next(s for s in told if s.name == "encoder_hidden_states").shape(SIZES)[1:]), np.float32)
        },
        channels=None if seen == channels else random.standard_normal((2, seen - channels, *clip.values())).astype(np.float32),
        **more,
    ).save(folder / "conditioning.safetensors")
    return source.path, folder / "conditioning.safetensors"
