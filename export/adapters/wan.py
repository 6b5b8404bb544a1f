"""Wan 2.1 text-to-video (diffusers WanTransformer3DModel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import WanTransformer3DModel

from vditc.adapter import InputSpec, ModelAdapter
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.profile import Profile, Range


class Wan(ModelAdapter):
    """Blocks of self-attention, cross-attention and feed-forward, modulated by the timestep; 3-D rotary positions."""

    name: ClassVar[str] = "wan"
    description: ClassVar[str] = "Wan 2.1 text-to-video"
    model_class: ClassVar[str] = "WanTransformer3DModel"
    blocks: ClassVar[str] = r"blocks\.(\d+)\..*"
    roles: ClassVar[Mapping[str, str]] = {
        r"patch_embedding": "patch_embed",
        r"condition_embedder\.text_embedder\.linear_1": "text_embed.in",
        r"condition_embedder\.text_embedder\.linear_2": "text_embed.out",
        r"condition_embedder\.time_embedder\.linear_1": "time_embed.in",
        r"condition_embedder\.time_embedder\.linear_2": "time_embed.out",
        r"condition_embedder\.time_proj": "modulation",
        r"blocks\.\d+\.attn1\.to_q": "self_attn.q",
        r"blocks\.\d+\.attn1\.to_k": "self_attn.k",
        r"blocks\.\d+\.attn1\.to_v": "self_attn.v",
        r"blocks\.\d+\.attn1\.to_out\.0": "self_attn.out",
        r"blocks\.\d+\.attn2\.to_q": "cross_attn.q",
        r"blocks\.\d+\.attn2\.to_k": "cross_attn.k",
        r"blocks\.\d+\.attn2\.to_v": "cross_attn.v",
        r"blocks\.\d+\.attn2\.to_out\.0": "cross_attn.out",
        r"blocks\.\d+\.ffn\.net\.0\.proj": "ffn.in",
        r"blocks\.\d+\.ffn\.net\.2": "ffn.out",
        r"proj_out": "head",
    }

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states [B, text_tokens, text_dim]."""
        config = source.config
        return (
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",)),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["text_dim"]))),
        )

    def default_profile(self, source: ModelDir) -> Profile:
        """Around the model's sampling defaults, or Wan's 480p, 81 frames (latent 21 x 60 x 104) without any."""
        s = source.sampling
        frames, height, width = (s.frames, s.height, s.width) if s else (21, 60, 104)
        batch = 1 if s and s.guidance_scale == 1.0 else 2
        text = 8 if s and s.semantics == "digits" else 512
        return Profile(
            {
                "batch": Range(1, batch, batch),
                "frames": Range(1, frames, frames),
                "height": Range(min(4, height), height, height),
                "width": Range(min(4, width), width, width),
                "text_tokens": Range(text, text, text),
            }
        )

    def load(self, source: ModelDir) -> WanTransformer3DModel:
        """float32, eval; InputError when tensors are missing or do not fit."""
        with torch.device("meta"):
            model = WanTransformer3DModel.from_config(source.config)
        wanted = {n: tuple(p.shape) for n, p in model.named_parameters()}
        wrong = [n for n, shape in wanted.items() if n not in source.weights or source.weights[n].shape != shape]
        if wrong:
            raise InputError(
                found=f"{len(wrong)} tensors missing or of another shape, first {wrong[0]}",
                wanted=f"{len(wanted)} tensors as config.json describes",
                where=str(source.transformer),
                fix="use the config.json and weights of one checkpoint",
            )
        model = self.skeleton(source)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(source.weights[name].read().astype("float32")))
        return model

    def skeleton(self, source: ModelDir) -> WanTransformer3DModel:
        """Random weights, float32, eval, no gradients."""
        model: WanTransformer3DModel = WanTransformer3DModel.from_config(source.config)
        return model.eval().requires_grad_(False)

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Nothing yet."""
        yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        return model(
            hidden_states=feeds["hidden_states"],
            timestep=feeds["timestep"],
            encoder_hidden_states=feeds["encoder_hidden_states"],
            return_dict=False,
        )[0]
