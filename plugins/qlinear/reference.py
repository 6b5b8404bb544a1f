"""What a kernel of `vditc.QLinear` must compute, in numpy: integers in int64, what follows in float32, one rounding after another."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vditc.plugins.gelu import gelu
from vditc.plugins.packing import unpack
from vditc.plugins.qlinear.op import QLinear

Array = npt.NDArray[Any]
_TYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def accumulators(op: QLinear, x: Array, weight: Array) -> npt.NDArray[np.int64]:
    """x int8 [..., K] times the packed weight: [..., N], exact. Every kernel's int32 accumulators equal them."""
    sums: npt.NDArray[np.int64] = x.astype(np.int64) @ unpack(weight, op.n, op.k, op.bits).astype(np.int64).T
    return sums


def qlinear(op: QLinear, *inputs: Array) -> Array:
    """The output [..., N], from the inputs in the operator's order. Products and sums of float32 are rounded one by one, none is fused."""
    given = dict(zip(op.inputs, inputs, strict=True))
    y = accumulators(op, given["x"], given["weight"]).astype(np.float32)
    y = (y * given["weight_scale"]) * given["scale"]
    if op.rank:
        left, right = given["left"], given["right"]
        term = left[..., :1] * right[0]
        for r in range(1, op.rank):
            term = term + left[..., r : r + 1] * right[r]
        y = y + term
    if op.bias:
        y = y + given["b"]
    if op.activation != "none":
        y = gelu(y, tanh=op.activation == "gelu_tanh").astype(np.float32)
    if op.gated:
        y = given["residual"].astype(np.float32) + given["gate"].astype(np.float32) * y
    return y.astype(_TYPES[op.output])
