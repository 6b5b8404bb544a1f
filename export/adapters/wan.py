"""Wan 2.1 text-to-video (diffusers WanTransformer3DModel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

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

    def latent_channels(self, source: ModelDir) -> int:
        """As many as the model predicts."""
        return int(source.config["out_channels"])

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
                # Fixed: with three or more free sizes TensorRT-RTX numbers size expressions in a random order, and two builds of
                # one graph differ in some 30 bytes. --profile frees them for who needs that.
                "height": Range(height, height, height),
                "width": Range(width, width, width),
                "text_tokens": Range(text, text, text),
            }
        )

    def check(self, source: ModelDir) -> None:
        """InputError when tensors are missing or do not fit."""
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

    def load(self, source: ModelDir) -> WanTransformer3DModel:
        """float32, eval; InputError when tensors are missing or do not fit."""
        self.check(source)
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
        """Rotary positions without indexed assignment, their tables cut once; plain attention; constant time frequencies.

        Rotation and time frequencies are the same float32 operations as before; softmax(q k^T) v rounds differently
        from PyTorch's fused kernel (about 1e-6 of the output).
        """
        embedder = model.condition_embedder
        rope, proj = model.rope, embedder.timesteps_proj
        attentions = [a for block in model.blocks for a in (block.attn1, block.attn2)]
        processors = [a.processor for a in attentions]
        model.rope, embedder.timesteps_proj = _RotaryTables(rope), _TimeFrequencies(proj)
        for attention in attentions:
            attention.processor = _attend
        try:
            yield
        finally:
            model.rope, embedder.timesteps_proj = rope, proj
            for attention, processor in zip(attentions, processors, strict=True):
                attention.processor = processor

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        return model(
            hidden_states=feeds["hidden_states"],
            timestep=feeds["timestep"],
            encoder_hidden_states=feeds["encoder_hidden_states"],
            return_dict=False,
        )[0]


class _TimeFrequencies(torch.nn.Module):
    """cos and sin of timestep [B] times constant frequencies: [B, freq_dim]."""

    frequencies: torch.Tensor

    def __init__(self, proj: Any) -> None:
        super().__init__()
        half = proj.num_channels // 2
        exponent = -torch.log(torch.tensor(10000.0, dtype=torch.float64)).item() * torch.arange(0, half, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(exponent / half)[None], persistent=False)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        angles = timestep.unsqueeze(1) * self.frequencies
        return torch.cat([torch.cos(angles), torch.sin(angles)], -1)


class _RotaryTables(torch.nn.Module):
    """(cos, sin), each [tokens, head_dim], of the token grid of `hidden_states` [B, C, F, H, W]; see `_rotate`."""

    frames: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    signs: torch.Tensor

    def __init__(self, rope: Any) -> None:
        super().__init__()
        # Computed anew: under a tracer the model's own buffers have no values.
        real = WanRotaryPosEmbed(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
        self.patch_size = real.patch_size
        tables = torch.stack([real.freqs_cos[:, 0::2], real.freqs_sin[:, 1::2]])  # [2, positions, head_dim / 2]
        frames, height, width = torch.split(tables, [real.t_dim // 2, real.h_dim // 2, real.w_dim // 2], -1)
        self.register_buffer("frames", frames[:, :, None, None].contiguous(), persistent=False)
        self.register_buffer("height", height[:, None, :, None].contiguous(), persistent=False)
        self.register_buffer("width", width[:, None, None].contiguous(), persistent=False)
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [-1.0, 1.0]])[:, None, None], persistent=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f, h, w = (size // patch for size, patch in zip(hidden_states.shape[2:], self.patch_size, strict=True))
        tables = (self.frames[:, :f], self.height[:, :, :h], self.width[:, :, :, :w])
        grid = torch.cat([t.expand(-1, f, h, w, -1) for t in tables], -1).flatten(1, 3)
        cos, sin = (grid.unsqueeze(-1) * self.signs).flatten(2)
        return cos, sin


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbours (a, b) of x [B, heads, tokens, head_dim] to (a cos - b sin, b cos + a sin).

    cos and sin are [tokens, head_dim], sin with the signs (-, +).
    """
    a, b = torch.split(torch.unflatten(x, -1, (-1, 2)), 1, -1)
    return x * cos + torch.cat([b, a], -1).flatten(-2) * sin


def _attend(
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: None = None,
    rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """A Wan attention layer: hidden_states [B, tokens, dim] attends to itself or to encoder_hidden_states."""
    memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2)

    query, key = heads(attn.norm_q(attn.to_q(hidden_states))), heads(attn.norm_k(attn.to_k(memory)))
    if rotary_emb is not None:
        query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    attended = torch.softmax(scores, -1) @ heads(attn.to_v(memory))
    out: torch.Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return out
