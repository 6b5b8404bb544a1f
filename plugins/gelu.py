"""GELU in float64, for the oracles of operators that compute it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}  # an operator's `activation` -> `approximate` of ONNX's Gelu
_ERF = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array, *, tanh: bool) -> npt.NDArray[np.float64]:
    """x of any shape; Hendrycks and Gimpel, arXiv 1606.08415, with erf or with its approximation by tanh.

    Infinity stays infinity, and -infinity becomes NaN (-infinity times 0), as in PyTorch and ONNX.
    """
    wide = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore"):
        inner = np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)) if tanh else _ERF(wide / math.sqrt(2))
        return np.asarray(0.5 * wide * (1 + inner))
