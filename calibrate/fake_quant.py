"""Quantization that gradients pass through: values are those of the integer arithmetic, slopes those of straight-through estimators.

Bengio et al. (arXiv 1308.3432): rounding has slope 1. Scales and zero points learn as in LSQ (Esser et al., arXiv 1902.08153) and LSQ+
(Bhalgat et al., arXiv 2004.09576): a value within the grid moves them by what it was rounded, one outside by the grid's end.
All in float32, whatever the products are computed in: codes are then those that `vditc.scheme.quantize_weight` gives.
"""

from __future__ import annotations

import torch

from vditc.numerics import EPS
from vditc.scheme import QuantSpec


def straight_through(x: torch.Tensor) -> torch.Tensor:
    """Rounded, ties to even, with slope 1."""
    return x + (x.round() - x).detach()


def damped(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x, with its gradient times `factor`."""
    return x * factor + (x - x * factor).detach()


def quantized_tokens(x: torch.Tensor, spec: QuantSpec, clip: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] through codes with a dynamic scale for each token: max(absmax * clip / high, EPS). `clip` [..., 1] may be learnt."""
    x = x.float()
    top = x.detach().abs().amax(-1, keepdim=True)
    if clip is not None:
        top = top * clip
    scale = (top / spec.qtype.high).clamp_min(EPS)
    return straight_through((x / scale).clamp(spec.qtype.low, spec.qtype.high)) * scale


def quantized_rows(weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, spec: QuantSpec) -> torch.Tensor:
    """W [N, K] through codes with scale [N] and zero point [N], all of which may be learnt; float32."""
    # LSQ, section 2.2: without this a scale's gradient is that of a whole row and dwarfs the weights'.
    factor = (weight.shape[1] * spec.qtype.high) ** -0.5
    scale = damped(scale.clamp_min(EPS), factor)[:, None]
    ratio = weight.float() / scale
    offset = None if zero_point is None else damped(zero_point, factor)[:, None]
    if offset is not None:
        ratio = ratio + offset
    codes = straight_through(ratio.clamp(spec.qtype.low, spec.qtype.high))
    return (codes if offset is None else codes - offset) * scale
