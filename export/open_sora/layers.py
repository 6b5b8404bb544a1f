"""What the blocks of STDiT and STDiT3 are made of, with the checkpoints' names.

Source: opensora/models/layers/blocks.py of hpcaitech/Open-Sora, after PixArt-alpha (Chen et al., arXiv:2310.00426).
"""

from __future__ import annotations

import torch
from torch import nn

from vditc.export.open_sora.positions import frequencies, rotate

EPS = 1e-6  # of every LayerNorm and RMSNorm
TIME_WAVES = 256  # sines and cosines of a timestep
# Added to the scores of hidden text. A score and this fit into float16 together, and exp of the sum is 0.
HIDDEN = -30000.0


class Mlp(nn.Module):
    """Two linears around GELU in its tanh form."""

    def __init__(self, wide_in: int, inner: int, wide_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(wide_in, inner)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(inner, wide_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., wide_in] -> [..., wide_out]."""
        out: torch.Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class PatchEmbed(nn.Module):
    """One linear map of every patch; every size must be a multiple of the patch's."""

    def __init__(self, patch_size: tuple[int, int, int], channels: int, hidden: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(channels, hidden, patch_size, patch_size)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, F, H, W] -> patches [B, f, h, w, hidden]."""
        for size, patch in zip(latents.shape[2:], self.patch_size, strict=True):
            torch._check(size % patch == 0, self._misfit)  # type: ignore[no-untyped-call]
        out: torch.Tensor = self.proj(latents)
        return out.permute(0, 2, 3, 4, 1)

    def _misfit(self) -> str:
        return f"found latents that do not divide into patches; wanted frames, height, width of multiples of {self.patch_size}"


class ScalarEmbedder(nn.Module):
    """A number for each clip: a timestep, frames a second."""

    frequencies: torch.Tensor

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies(TIME_WAVES // 2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(TIME_WAVES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, number: torch.Tensor) -> torch.Tensor:
        """[B] -> [B, hidden]."""
        angles = number.float().unsqueeze(-1) * self.frequencies
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], -1)
        out: torch.Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return out


class CaptionEmbedder(nn.Module):
    """Text embeddings to the transformer's width.

    `y_embedding` [model_max_length, channels] is the embedding of no text, for guidance; the forward pass does not read it.
    """

    y_embedding: torch.Tensor

    def __init__(self, channels: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.y_proj = Mlp(channels, hidden, hidden)
        self.register_buffer("y_embedding", torch.zeros(tokens, channels))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """[B, text_tokens, channels] -> [B, text_tokens, hidden]."""
        out: torch.Tensor = self.y_proj(text)
        return out


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v of [B, heads, tokens, head_dim], heads joined: [B, tokens, hidden]."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)


def text_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mask [B, text_tokens], 0 where a token is hidden -> what cross-attention adds to its scores, [B, 1, 1, text_tokens]."""
    seen = (mask != 0).unsqueeze(1).unsqueeze(1)
    return torch.where(seen, torch.zeros((), dtype=dtype, device=mask.device), torch.full((), HIDDEN, dtype=dtype, device=mask.device))


class _Heads(nn.Module):
    """Splits [B, tokens, n * hidden] into n tensors [B, heads, tokens, head_dim]; each of the n has all its heads together."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, hidden // heads

    def split(self, x: torch.Tensor, parts: int) -> list[torch.Tensor]:
        return [torch.unflatten(p, -1, (self.heads, self.head_dim)).transpose(1, 2) for p in x.chunk(parts, -1)]


class SelfAttention(_Heads):
    """Tokens attend to each other; queries and keys are normalised first and then rotated, if at all."""

    def __init__(self, hidden: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__(hidden, heads)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_dim, eps=EPS) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """[B, tokens, hidden], rotation as `rotate` wants it."""
        query, key, value = self.split(self.qkv(x), 3)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        out: torch.Tensor = self.proj(attend(query, key, value))
        return out


class CrossAttention(_Heads):
    """Tokens attend to the text."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__(hidden, heads)
        self.q_linear = nn.Linear(hidden, hidden)
        self.kv_linear = nn.Linear(hidden, 2 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor, text: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x [B, tokens, hidden], text [B, text_tokens, hidden], bias [B, 1, 1, text_tokens] as `text_bias` makes it."""
        (query,) = self.split(self.q_linear(x), 1)
        key, value = self.split(self.kv_linear(text), 2)
        out: torch.Tensor = self.proj(attend(query, key, value, bias))
        return out


def per_frame(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Tokens [B, F * S, hidden] -> one sequence for each frame [B * F, S, hidden]."""
    return torch.unflatten(x, 1, (frames, x.shape[1] // frames)).flatten(0, 1)


def from_frames(x: torch.Tensor, frames: int) -> torch.Tensor:
    """[B * F, S, hidden] -> [B, F * S, hidden]."""
    return torch.unflatten(x, 0, (x.shape[0] // frames, frames)).flatten(1, 2)


def per_place(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Tokens [B, F * S, hidden] -> one sequence for each place of the picture [B * S, F, hidden]."""
    return torch.unflatten(x, 1, (frames, x.shape[1] // frames)).transpose(1, 2).flatten(0, 1)


def from_places(x: torch.Tensor, batch: int) -> torch.Tensor:
    """[B * S, F, hidden] -> [B, F * S, hidden]."""
    return torch.unflatten(x, 0, (batch, x.shape[0] // batch)).transpose(1, 2).flatten(1, 2)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [B, tokens, hidden] scaled by 1 + scale and shifted, both [B, 1, hidden]."""
    return x * (1 + scale) + shift


class FinalLayer(nn.Module):
    """Tokens to the numbers of their patches, modulated by the time."""

    def __init__(self, hidden: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden, eps=EPS, elementwise_affine=False)
        self.linear = nn.Linear(hidden, out)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden) / hidden**0.5)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """[B, N, hidden], time [B, hidden] -> [B, N, patch * channels]."""
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, 1)
        out: torch.Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out
