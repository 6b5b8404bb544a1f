"""What a kernel of `vditc.QuantizeToken` must compute, in numpy.

Without norm, GELU and rotation every operation is a single IEEE operation of float32, and a greatest value does not depend on the order:
codes, scale and total are equal bit for bit. A norm and a rotation are sums, whose order a kernel chooses, and GELU is a function that
every library rounds in its own way; here they are computed in float64 and rounded once. Then a kernel's scale may be away by 2^-20 of
itself, and of its codes 0.1 % by 1: those next to a tie. A share is a sum of float32 in any case: 2^-20 of the sum of its magnitudes.

A token in which a NaN or an infinity is quantized has the scale NaN, so that whoever multiplies by it gets NaN, and the codes 0. By a given
scale, which is positive and finite, a NaN becomes the least code and infinities the ends of the range; by one that is not all codes are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.hadamard import sylvester
from vditc.numerics import EPS
from vditc.plugins.gelu import gelu
from vditc.plugins.packing import code_range, pack_tokens
from vditc.plugins.quantize_token.op import QuantizeToken

Array = npt.NDArray[Any]
CODES_OFF = 1e-3  # share of codes that may differ by 1, where the operator sums or has GELU
SCALE_OFF = 2.0**-20  # relative, of a scale then and of a share's sum of magnitudes always


def exact(op: QuantizeToken) -> bool:
    """Whether codes, scale and total must be equal bit for bit."""
    return op.norm == "none" and op.activation == "none" and not op.rotation


def quantize_token(op: QuantizeToken, *inputs: Array) -> dict[str, Array]:
    """The outputs by name, from the inputs in the operator's order."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _quantize_token(op, dict(zip(op.inputs, inputs, strict=True)))


def _quantize_token(op: QuantizeToken, given: dict[str, Array]) -> dict[str, Array]:
    if op.gated:
        given["x"] = gated(given)
    v = rows(op, given)
    low, high = code_range(op.bits)
    scale = np.asarray(given["given"], np.float32) if op.scaled == "given" else _scale(v, given.get("clip"), high)
    codes = np.where((scale > 0) & np.isfinite(scale), np.fmin(np.fmax(np.rint(v / scale), low), high), np.float32(0))
    out: dict[str, Array] = {
        "codes": pack_tokens(codes.astype(np.int8)) if op.packed else codes.astype(np.int8),
        "scale": scale,
        "total": codes.sum(-1, keepdims=True, dtype=np.float32) * scale,
    }
    if op.gated:
        out["sum"] = given["x"]
    for r in range(op.shares):
        weighed = codes * given["alpha"][r].astype(np.float64)
        out[f"share{r}"] = weighed.sum(-1, keepdims=True).astype(np.float32) * scale
    return {name: out[name] for name in op.outputs}


def gated(given: Mapping[str, Array]) -> Array:
    """residual + gate * x [..., K], float32 operations rounded one by one and then to the type of x."""
    x = given["x"]
    products = given["gate"].astype(np.float32) * x.astype(np.float32)
    return (given["residual"].astype(np.float32) + products).astype(x.dtype)


def rows(op: QuantizeToken, given: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    """What is quantized, float32 [..., K]; `x` is what a gate and a residual made of it already."""
    v = given["x"].astype(np.float32)
    if op.activation != "none":
        v = gelu(v, tanh=op.activation == "gelu_tanh").astype(np.float32)
    if op.norm != "none":
        wide = v.astype(np.float64)
        wide = wide - wide.mean(-1, keepdims=True) if op.norm == "layer" else wide
        v = (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + np.float32(op.epsilon))).astype(np.float32)
    for name, apply in (("weight", np.multiply), ("bias", np.add), ("gain", np.multiply), ("shift", np.add)):
        v = apply(v, given[name]) if name in given else v
    v = v - given["center"] if op.center else v
    v = v * given["balance"] if op.balance else v
    if op.rotation:
        blocks = v.astype(np.float64).reshape(*v.shape[:-1], -1, op.rotation)
        v = (blocks @ sylvester(op.rotation) / np.sqrt(op.rotation)).astype(np.float32).reshape(v.shape)
    return np.asarray(v, np.float32)


def _scale(v: npt.NDArray[np.float32], clip: Array | None, high: int) -> npt.NDArray[np.float32]:
    top = np.abs(v).max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, np.float32(np.nan))
    top = top if clip is None else top * clip
    return np.asarray(np.maximum(top / np.float32(high), np.float32(EPS)), np.float32)
