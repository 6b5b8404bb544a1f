"""Wan 2.1 text-to-video (diffusers WanTransformer3DModel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.model_dir import ModelDir
from vditc.profile import Axis


class Wan(DiffusersAdapter):
    """Blocks of self-attention, cross-attention and feed-forward, modulated by the timestep; 3-D rotary positions."""

    name: ClassVar[str] = "wan"
    description: ClassVar[str] = "Wan 2.1 text-to-video"
    model_class: ClassVar[str] = "WanTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p81": (81, 480, 832), "720p81": (81, 720, 1280)}
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
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["text_dim"]))),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """480p, 81 frames: latent 21 x 60 x 104."""
        text = 8 if source.sampling and source.sampling.semantics == "digits" else 512
        _, height, width = source.config["patch_size"]
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=21, high=int(source.config["rope_max_seq_len"]), unit="frames", stride=4, causal=True),
            "height": Axis(default=60, multiple=height, low=height, unit="pixels", stride=8),
            "width": Axis(default=104, multiple=width, low=width, unit="pixels", stride=8),
            "text_tokens": Axis(default=text),
        }

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

    def __init__(self, real: Any) -> None:
        super().__init__()
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
