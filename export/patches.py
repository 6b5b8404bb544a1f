"""Pieces of `patched` that several families share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Set attributes (object, name, value) of modules, and put back what was there."""
    before = [(owner, name, getattr(owner, name), name in vars(owner)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value, own in reversed(before):
            if own or isinstance(value, torch.nn.Module | torch.Tensor):
                setattr(owner, name, value)
            else:
                delattr(owner, name)  # a method, which the class still has


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """softmax(q k^T scale + mask) v of [..., tokens, head_dim]; scale 1 / sqrt(head_dim) unless told.

    Rounds differently from PyTorch's fused kernel, about 1e-6 of the output.
    """
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ value


def frames_before(frames: int, like: torch.Tensor) -> torch.Tensor:
    """A mask [frames, frames] for `plain_attention`: a frame sees itself and those before. On the device of `like`."""
    number = torch.arange(frames, device=like.device)
    return torch.where(number[:, None] >= number[None], 0.0, -torch.inf)


def unit_norm(x: torch.Tensor, dim: int) -> torch.Tensor:
    """x / |x| * sqrt(n) over `dim` of n channels, as x / sqrt(mean(x^2)): a form that lowering knows and keeps in float32.

    PyTorch's normalize has max(|x|, 1e-12) where this has an epsilon below the root.
    """
    return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + 1e-24)


def spread_pixels(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Every pixel of x [..., h, w] as factor x factor: nearest neighbours."""
    wide = x[..., None].expand(*x.shape, factor).flatten(-2)
    return wide.unsqueeze(-2).expand(*wide.shape[:-1], factor, wide.shape[-1]).flatten(-3, -2) if factor > 1 else x


def rotate_neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbours (a, b) of x [..., head_dim] to (a cos - b sin, b cos + a sin).

    cos and sin are [..., head_dim], sin with the signs (-, +).
    """
    a, b = torch.split(torch.unflatten(x, -1, (-1, 2)), 1, -1)
    return x * cos + torch.cat([b, a], -1).flatten(-2) * sin


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves (a, b) of x [..., head_dim] to (a cos - b sin, b cos + a sin).

    cos and sin are [..., head_dim], sin with the signs (-, +).
    """
    a, b = torch.split(x, x.shape[-1] // 2, -1)
    return x * cos + torch.cat([b, a], -1) * sin


class TimeFrequencies(torch.nn.Module):
    """diffusers' `Timesteps` with constant frequencies: times [N] -> sines and cosines [N, num_channels]."""

    frequencies: torch.Tensor

    def __init__(self, proj: Any) -> None:
        super().__init__()
        half = proj.num_channels // 2
        exponent = -math.log(10000) * torch.arange(0, half, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(exponent / (half - proj.downscale_freq_shift))[None], persistent=False)
        self.scale, self.cos_first = proj.scale, proj.flip_sin_to_cos

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """See the class."""
        angles = times.unsqueeze(1).to(torch.float32) * self.frequencies
        if self.scale != 1:
            angles = self.scale * angles
        parts = [torch.cos(angles), torch.sin(angles)]
        return torch.cat(parts if self.cos_first else parts[::-1], -1)


class GridRotary(torch.nn.Module):
    """Rotary tables (cos, sin), each [tokens, head_dim], of a grid of tokens, for `rotate_neighbours`.

    `dims`: how many channels of a head turn with each axis of the grid, by frequencies 1 / theta^(2 i / dim).
    """

    signs: torch.Tensor

    def __init__(self, dims: Sequence[int], theta: float) -> None:
        super().__init__()
        self.count = len(dims)
        for i, dim in enumerate(dims):
            frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
            self.register_buffer(f"frequencies_{i}", frequencies, persistent=False)
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [-1.0, 1.0]])[:, None, None], persistent=False)

    def axis(self, i: int, positions: torch.Tensor) -> torch.Tensor:
        """Cosines and sines of one axis of the grid, at positions float32 [n]: [2, n, dims[i] / 2]."""
        angles = torch.outer(positions, getattr(self, f"frequencies_{i}"))
        return torch.stack([torch.cos(angles), torch.sin(angles)])

    def grid(self, *tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tables of every token from those of each axis."""
        sizes = [table.shape[1] for table in tables]
        spread = [t.reshape(2, *(n if j == i else 1 for j, n in enumerate(sizes)), t.shape[2]) for i, t in enumerate(tables)]
        all_axes = torch.cat([t.expand(-1, *sizes, -1) for t in spread], -1).flatten(1, self.count)
        cos, sin = (all_axes.unsqueeze(-1) * self.signs).flatten(2)
        return cos, sin

    def forward(self, *positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions: of each axis of the grid, float32 [its length]."""
        return self.grid(*(self.axis(i, p) for i, p in enumerate(positions)))


def still(tokens: int, tables: tuple[torch.Tensor, torch.Tensor], *, behind: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary tables with rows of no rotation in front, or behind, for text tokens beside the grid's."""
    rows = torch.zeros(tokens, tables[0].shape[1], device=tables[0].device)
    cos, sin = ([rows + one, table] for one, table in zip((1.0, 0.0), tables, strict=True))
    return (torch.cat(cos[::-1]), torch.cat(sin[::-1])) if behind else (torch.cat(cos), torch.cat(sin))
