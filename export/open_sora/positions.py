"""Sines and cosines of positions and times, computed in the graph, in float32."""

from __future__ import annotations

import math

import torch
from torch import nn

MAX_PERIOD = 10000.0


def frequencies(count: int) -> torch.Tensor:
    """[count], falling geometrically from 1 to nearly 1 / MAX_PERIOD: MAX_PERIOD^(-i / count), by the steps that DiT rounds in."""
    return torch.exp(-math.log(MAX_PERIOD) * torch.arange(count, dtype=torch.float32) / count)


class SinCos(nn.Module):
    """Sines, then cosines of positions (Vaswani et al., arXiv:1706.03762, section 3.5, in another order)."""

    frequencies: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies(width // 2), persistent=False)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """[..., n] -> [..., n, width]."""
        angles = positions.unsqueeze(-1) * self.frequencies
        return torch.cat([torch.sin(angles), torch.cos(angles)], -1)


def grid(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """rows [..., h, half] and columns [..., w, half] -> [..., h, w, 2 * half]; the first half says the column."""
    height, width = rows.shape[-2], columns.shape[-2]
    rows = rows.unsqueeze(-2)
    columns = columns.unsqueeze(-3)
    lead = [-1] * (rows.dim() - 3)
    return torch.cat([columns.expand(*lead, height, -1, -1), rows.expand(*lead, -1, width, -1)], -1)


class TemporalRotation(nn.Module):
    """Rotary positions of frames (Su et al., arXiv:2104.09864); the checkpoint holds the frequencies as `rope.freqs`."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(frequencies(head_dim // 2), requires_grad=False)

    def forward(self, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [frames, head_dim / 2]."""
        positions = torch.arange(frames, dtype=torch.float32, device=self.freqs.device)
        angles = positions.unsqueeze(-1) * self.freqs.float()
        return torch.cos(angles), torch.sin(angles)


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn every pair of neighbours (a, b) of x [..., frames, head_dim] to (a cos - b sin, a sin + b cos)."""
    cos, sin = (t.unsqueeze(-1) for t in rotation)
    a, b = torch.unflatten(x, -1, (-1, 2)).chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
