"""Pieces of `patched` that several families share."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
            if own or isinstance(value, torch.nn.Module):
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
