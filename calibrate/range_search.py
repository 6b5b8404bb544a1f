"""The grid of each row of a weight whose rounding costs least: ranges narrower than min-max, since few weights lie at the ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.scheme import QTensor, QuantSpec, asymmetric_grid, quantize_weight, weight_scale

Array = npt.NDArray[Any]


def searched_grid(weight: npt.NDArray[np.float32], spec: QuantSpec, scale_dtype: Any, *, steps: int, least: float, power: float) -> QTensor:
    """Round W [N, K] with the best of `steps` shares, from 1 down to `least`, of each row's range, by sum |error| ** power.

    The per-channel range search of Q-VDiT's and QVGen's starting points: (50 steps, power 2) and (80 steps of 1 %, power 2.4). A share of 1
    is tried first, so a row is never worse than with min-max.
    """
    best: QTensor | None = None
    least_cost = np.full(len(weight), np.inf)
    for share in np.linspace(1, least, steps, dtype=np.float32):
        tried = _grid(weight, spec, scale_dtype, share)
        cost = (np.abs(tried.dequantize() - weight).astype(np.float64) ** power).sum(-1)
        better = cost < least_cost
        least_cost[better] = cost[better]
        best = tried if best is None else _merged(best, tried, better)
    assert best is not None
    return best


def _grid(weight: npt.NDArray[np.float32], spec: QuantSpec, scale_dtype: Any, share: np.float32) -> QTensor:
    if spec.symmetric:
        return quantize_weight(weight, spec, weight_scale(np.abs(weight).max(-1) * share, spec, scale_dtype), scale_dtype)
    scale, zero_point = asymmetric_grid(weight.min(-1) * share, weight.max(-1) * share, spec, scale_dtype)
    return quantize_weight(weight, spec, scale, scale_dtype, zero_point)


def _merged(old: QTensor, new: QTensor, better: npt.NDArray[np.bool_]) -> QTensor:
    zero_point = None
    if old.zero_point is not None and new.zero_point is not None:
        zero_point = np.where(better, new.zero_point, old.zero_point)
    return QTensor(
        np.where(better[:, None], new.codes, old.codes),
        np.where(better, new.scale, old.scale).astype(old.scale.dtype),
        old.spec,
        zero_point,
    )
