"""What both bundled models are trained on: clips of moving digits, their prompts, and the small parts around a transformer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from vditc import digits
from vditc.codec import PixelShuffleCodec
from vditc.text_encoder import PAD, WordEmbedding

VOCABULARY = (PAD, "a", "moving", *map(str, range(10)), *digits.DIRECTIONS)
TEXT_LENGTH = 8
TEXT_DIM = 64
SIDE = 16  # latents a side of a frame; a token is 2 x 2 of them
TOKENS = 4096  # per step, as many short clips or a few long ones
DROP_PROMPT = 0.1  # share of prompts replaced by "" for classifier-free guidance
CLIP = {"frames": digits.FRAMES, "height": SIDE, "width": SIDE, "semantics": "digits"}  # part of sampling.json
SAMPLING_SHIFT = 8.0  # of the stored scheduler: half of its steps are spent above s = 0.89


@dataclasses.dataclass(frozen=True)
class Batch:
    """B real clips, or parts of them."""

    latents: torch.Tensor  # [B, 4, frames, SIDE, SIDE]
    token_ids: torch.Tensor  # [B, TEXT_LENGTH]
    first: torch.Tensor  # [B]: which frame of its clip the first one is


class Data:
    """Batches of real clips and their prompts, all from one seeded generator."""

    def __init__(self, codec: PixelShuffleCodec, seed: int) -> None:
        self.codec = codec
        self.words = WordEmbedding(VOCABULARY, TEXT_LENGTH, np.zeros((len(VOCABULARY), TEXT_DIM), np.float32))
        self.rng = np.random.default_rng(seed)
        self.indices, _ = digits.split()
        self.captions = digits.captions()

    def batch(self, frames: int) -> Batch:
        """TOKENS tokens of clips with `frames` frames."""
        clips, ids, first = [], [], []
        for _ in range(TOKENS // (frames * (SIDE // 2) ** 2)):
            caption = self.captions[self.rng.integers(len(self.captions))]
            clip = digits.draw(caption, self.rng, digits.FRAMES, self.indices)
            start = int(self.rng.integers(digits.FRAMES - frames + 1))
            clips.append(clip[start : start + frames])
            first.append(start)
            ids.append(self.words.token_ids("" if self.rng.random() < DROP_PROMPT else str(caption)))
        return Batch(torch.from_numpy(self.codec.encode(np.stack(clips))), torch.tensor(ids), torch.tensor(first))


def measure_codec() -> PixelShuffleCodec:
    """The codec whose latents of real clips have mean 0 and standard deviation 1."""
    rng = np.random.default_rng(0)
    clips = np.stack([digits.draw(c, rng) for c in digits.captions()])
    return PixelShuffleCodec(2, round(float(clips.mean()), 4), round(float(clips.std()), 4))


def publish(folder: Path, pipeline: str, model: Any, averaged: Mapping[str, torch.Tensor], sampling: Mapping[str, Any]) -> None:
    """Write a diffusers directory: transformer (float16) with averaged weights, scheduler, text_encoder, vae, and sampling.json."""
    model.load_state_dict({n: t for n, t in averaged.items() if n != "text_embedding"}, strict=False)
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT).save_pretrained(folder / "scheduler")
    WordEmbedding(VOCABULARY, TEXT_LENGTH, averaged["text_embedding"].detach().float().numpy()).save(folder / "text_encoder")
    measure_codec().save(folder / "vae")
    index = {
        "_class_name": pipeline,
        "transformer": ["diffusers", type(model).__name__],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["vditc", "WordEmbedding"],
        "vae": ["vditc", "PixelShuffleCodec"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "sampling.json").write_text(json.dumps(sampling, indent=2) + "\n")
