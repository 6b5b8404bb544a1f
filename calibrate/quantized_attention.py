"""Attention with quantized products, in PyTorch: what `vditc.attention` says, written down plainly.

SageAttention (arXiv 2410.02367) and SageAttention2 (arXiv 2411.10958) without their kernels' tiling: the maximum that P is taken
relative to is that of the whole row, where a tiled kernel's is that of the tiles so far.
"""

from __future__ import annotations

import torch

from vditc.attention import AttentionScheme
from vditc.numerics import EPS, QType

SCORES = 1 << 22  # elements of S that are in memory at once


def quantized_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scheme: AttentionScheme,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """q [..., H, T, D], k [..., H', S, D], v [..., H', S, E] -> float32 [..., H, T, E]; H a multiple of H'.

    `mask`: boolean (False is left out) or added to the scores, broadcast to [..., H, T, S]. `scale`: of the scores, 1 / sqrt(D)
    unless given. A row that the mask leaves nothing gives zeros. One head, and SCORES elements of it, at a time.
    """
    *batch, heads, tokens, width = q.shape
    shared = heads // k.shape[-3]
    scale = width**-0.5 if scale is None else scale
    out = torch.empty(*batch, heads, tokens, v.shape[-1], dtype=torch.float32, device=q.device)
    masks = None if mask is None else mask.expand(*batch, heads, tokens, k.shape[-2])
    for index in torch.cartesian_prod(*(torch.arange(n) for n in (*batch, heads))).reshape(-1, len(batch) + 1).tolist():
        *at, head = index
        source = (*at, head // shared)
        out[tuple(index)] = _head(
            q[tuple(index)].float(), k[source].float(), v[source].float(), scheme, None if masks is None else masks[tuple(index)], scale
        )
    return out


def _head(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scheme: AttentionScheme, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """q [T, D], k [S, D], v [S, E] -> [T, E], float32."""
    if scheme.smooth_k:
        k = smoothed(k)
    mean = v.mean(0) if scheme.smooth_v else None
    if mean is not None:
        v = v - mean
    factors: tuple[torch.Tensor, torch.Tensor] | None = None
    if scheme.qk is not None:
        (q, sq), (k, sk) = token_codes(q, scheme.qk, scheme.block_size), token_codes(k, scheme.qk, scheme.block_size)
        factors = sq, sk
    sv = torch.ones((), device=v.device)
    if scheme.pv is not None:
        sv = _scale(v.abs().amax(0), scheme.pv)
        v = _codes(v / sv, scheme.pv)
    out = torch.empty(len(q), v.shape[-1], device=q.device)
    step = max(1, SCORES // len(k))
    for start in range(0, len(q), step):
        rows = slice(start, start + step)
        scores = q[rows] @ k.T  # of codes: whole numbers below 2^24 up to D = 1040, so exact in float32
        if factors is not None:
            scores = scores * factors[0][rows] * factors[1].T
        scores = scores * scale
        if mask is not None:
            scores = scores.masked_fill(~mask[rows], -torch.inf) if mask.dtype is torch.bool else scores + mask[rows]
        top = scores.amax(-1, keepdim=True)
        p = torch.exp(scores - top.masked_fill(top == -torch.inf, 0))
        total = p.sum(-1, keepdim=True)  # of P before it is rounded, as the kernels have it
        if scheme.pv is not None:
            p = _codes(p * scheme.pv.high, scheme.pv) / scheme.pv.high
        found = (p @ v) * sv / total.clamp_min(torch.finfo(torch.float32).tiny)
        out[rows] = found if mean is None else found + mean * (total > 0)
    return out


def smoothed(k: torch.Tensor) -> torch.Tensor:
    """k [..., S, D] less its mean over the tokens."""
    return k - k.mean(-2, keepdim=True)


def token_codes(x: torch.Tensor, qtype: QType, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, D] -> codes [T, D] and the scale of every token [T, 1], which `block_size` neighbours share (the last block may be shorter)."""
    top = x.abs().amax(-1)
    if block_size > 1:
        padded = torch.nn.functional.pad(top, (0, -len(top) % block_size))
        top = padded.reshape(-1, block_size).amax(-1).repeat_interleave(block_size)[: len(x)]
    scale = _scale(top, qtype)[:, None]
    return _codes(x / scale, qtype), scale


def _scale(absmax: torch.Tensor, qtype: QType) -> torch.Tensor:
    # The divisor is a tensor: CUDA multiplies by the reciprocal of a Python number, which is not IEEE division.
    return (absmax / torch.full((), qtype.high, device=absmax.device)).clamp_min(EPS)


def _codes(x: torch.Tensor, qtype: QType) -> torch.Tensor:
    """Values of the nearest codes, ties to even."""
    if qtype is QType.FP8_E4M3:
        return x.clamp(qtype.low, qtype.high).to(torch.float8_e4m3fn).float()
    return torch.round(x).clamp(qtype.low, qtype.high)
