"""What a kernel of `vditc.QLinear` must compute, in numpy: integers in int64, what follows in float32, one rounding after another.

Accumulators, of groups too, are exact, and so is everything behind them but two things. The low-rank branch is a float32 sum of exact
products whose order a kernel chooses; here it is summed in float64 and rounded once, and a kernel may be away by `BRANCH_OFF` of the sum of
the products' magnitudes (`branch_magnitude`): the greatest low_rank is 64, and each of 63 additions may be off by 2^-23 of that, as tensor
cores cut off what they align. GELU is a function that every library rounds in its own way.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vditc.plugins.gelu import gelu
from vditc.plugins.packing import unpack, unpack_tokens
from vditc.plugins.qlinear.op import QLinear

Array = npt.NDArray[Any]
_TYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
BRANCH_OFF = 2.0**-17  # of the sum of magnitudes of a low-rank branch's products


def accumulators(op: QLinear, x: Array, weight: Array) -> npt.NDArray[np.int64]:
    """x, int8 [..., K] or packed, times the packed weight, exact: [..., N], of groups [K / 128, ..., N]. So are every kernel's sums."""
    codes = (unpack_tokens(x) if op.packed else x).astype(np.int64)
    weights = unpack(weight, op.n, op.k, op.bits, unsigned=op.unsigned).astype(np.int64).T
    size = op.group or op.k
    parts = [codes[..., i : i + size] @ weights[i : i + size] for i in range(0, op.k, size)]
    return np.stack(parts) if op.group else parts[0]


def branch_magnitude(down: Array, up: Array) -> npt.NDArray[np.float64]:
    """Sum of |down up|, [..., N]."""
    return np.asarray(np.abs(down.astype(np.float64)) @ np.abs(up.astype(np.float64)))


def qlinear(op: QLinear, *inputs: Array) -> Array:
    """The output [..., N], from the inputs in the operator's order. Products and sums of float32 are rounded one by one, none is fused."""
    given = dict(zip(op.inputs, inputs, strict=True))
    sums = accumulators(op, given["x"], given["weight"]).astype(np.float32)
    if op.group:
        y = np.zeros(sums.shape[1:], np.float32)
        for part, scale in zip(sums, given["weight_scale"], strict=True):
            y = y + part * scale
    else:
        y = sums * given["weight_scale"]
    y = y * given["scale"]
    if op.rank:
        left, right = given["left"], given["right"]
        term = left[..., :1] * right[0]
        for r in range(1, op.rank):
            term = term + left[..., r : r + 1] * right[r]
        y = y + term
    if op.low_rank:
        y = y + (given["down"].astype(np.float64) @ given["up"].astype(np.float64)).astype(np.float32)
    if op.bias:
        y = y + given["b"]
    if op.activation != "none":
        y = gelu(y, tanh=op.activation == "gelu_tanh").astype(np.float32)
    if op.gated:
        y = given["residual"].astype(np.float32) + given["gate"].astype(np.float32) * y
    return y.astype(_TYPES[op.output])
