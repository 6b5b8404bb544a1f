"""Input channels that lie apart, each somewhere else and each of another width, brought to one centre and one width.

    z_c = (max_c + min_c) / 2    s_c = ((max_c - min_c) / 2)^strength    x' = (x - z) / s    W' = W s    W z goes into the bias

over all steps. This is our reconstruction of the "scattered channel range integration" of QVD (arXiv 2407.11585), whose formulas were
not at hand; a shift and a scale for every channel are those of Outlier Suppression+ (Wei et al., arXiv 2304.09145).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.transform import Transform

Array = npt.NDArray[Any]
LEAST = np.float32(1e-3)  # of the widest channel: one that hardly moves would else carry what calibration did not see far out of range
ROWS = 256  # of a weight at a time in float64


def centred(bounds: Array, strength: float) -> Transform:
    """Of signed bounds [2, steps, K], lowest and highest. A channel that never moves becomes zero and is worth its constant in the bias."""
    lowest, highest = bounds[0].min(0), bounds[1].max(0)
    shift = np.asarray(lowest / 2 + highest / 2, np.float32)  # halves: a sum of two finite numbers need not be finite
    half = np.maximum(highest - shift, shift - lowest)
    half = np.maximum(half, LEAST * half.max(initial=np.float32(np.finfo(np.float32).tiny)))
    # A common factor of all channels changes nothing but would carry small ranges towards the least scale.
    logs = np.log(half, dtype=np.float64)
    balance = np.exp(-strength * (logs - logs.mean()))
    return Transform(shift=shift, balance=np.asarray(balance, np.float32))


def shifted_bias(weight: Array, shift: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """W z [N], summed in float64, of a weight [N, K] before any transform."""
    parts = [weight[row : row + ROWS].astype(np.float64) @ shift.astype(np.float64) for row in range(0, len(weight), ROWS)]
    return np.asarray(np.concatenate(parts), np.float32)
