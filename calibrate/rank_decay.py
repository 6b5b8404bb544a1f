"""How QVGen's auxiliary branch disappears: ranks that matter little are faded out, half of them at a time, until none is left.

Huang et al., "QVGen" (arXiv 2505.11497): gamma is 1 for the first (1 - lambda) r ranks and u for the last lambda r, with lambda = 1/2 and
u a cosine from 1 to 0; at u = 0 those ranks are dropped and what is left is decomposed again, so that its ranks are in the order of their
singular values once more.
"""

from __future__ import annotations

import dataclasses
import math

import torch


@dataclasses.dataclass(frozen=True)
class RankDecay:
    """The plan of one training."""

    rank: int  # to begin with
    iterations: int  # of the whole training
    tail: float = 0.1  # share of the iterations that are left when the branch is gone; the release leaves 2 or 3 of 2,000

    @property
    def ranks(self) -> list[int]:
        """Ranks at the beginning of each stage: 32, 16, 8, 4, 2, 1."""
        found, rank = [], self.rank
        while rank:
            found.append(rank)
            rank //= 2
        return found

    @property
    def stage(self) -> int:
        """Iterations of one stage, at least 1."""
        return max(1, int(self.iterations * (1 - self.tail)) // max(1, len(self.ranks)))

    def begins(self, iteration: int) -> bool:
        """Whether the branch is cut and decomposed again before this iteration."""
        return 0 < iteration <= self.stage * len(self.ranks) and iteration % self.stage == 0

    def gamma(self, iteration: int) -> torch.Tensor:
        """[rank]"""
        gamma, number = torch.zeros(self.rank), iteration // self.stage
        if number < len(self.ranks):
            rank = self.ranks[number]
            kept = rank // 2
            gamma[:kept] = 1
            gamma[kept:rank] = 0.5 + 0.5 * math.cos(math.pi * (iteration % self.stage) / self.stage)
        return gamma

    def kept(self, iteration: int) -> int:
        """Ranks that are left when a stage begins."""
        number = iteration // self.stage
        return self.ranks[number] if number < len(self.ranks) else 0


def decomposed(matrix: torch.Tensor, rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of M [N, K] of a rank: up = U sqrt(S) [N, size] and down = sqrt(S) V^T [size, K], zeros beyond it."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = min(rank, len(s))
    up, down = torch.zeros(len(matrix), size, dtype=torch.float64), torch.zeros(size, matrix.shape[1], dtype=torch.float64)
    root = s[:rank].sqrt()
    up[:, :rank], down[:rank] = u[:, :rank] * root, root[:, None] * v[:rank]
    return up.float(), down.float()


def redecomposed(up: torch.Tensor, down: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`decomposed` of up @ down [N, size] [size, K], by way of a matrix of that size."""
    (left, a), (right, b) = (torch.linalg.qr(factor.double()) for factor in (up, down.T))
    inner_up, inner_down = decomposed(a @ b.T, rank, up.shape[1])
    return (left @ inner_up.double()).float(), (inner_down.double() @ right.T).float()
