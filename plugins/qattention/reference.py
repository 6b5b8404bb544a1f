"""What a kernel of `vditc.QAttention` must compute, in numpy: codes in float32, their products in int64, the rest in float64.

A kernel differs from it, given the same codes of k, by roundings alone: of weights to the type of v, of scores and of sums over the keys to
float32, of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.numerics import EPS
from vditc.plugins.qattention.op import HIDDEN, QAttention

Array = npt.NDArray[Any]

# The mean of k is a sum of float32 numbers in an order that a kernel chooses: next to a tie a code may be its neighbour, and a scale is
# off by some roundings. Of codes the share, of a scale the relative error. Keys that are all alike have no codes worth comparing.
CODES_OFF = 1e-3
SCALE_OFF = 2.0**-20
# Half a unit in the last place: of a weight, of a result and of the oracle's, each relative to the greatest value, as weights are positive
# and sum to 1.
_UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-9}
# Roundings of the sums over the keys, in float32, for each key, relative to the greatest value. GPUs add up products in blocks of eight at
# least and cut off: each product by 2^-24 of the greatest number of its block, which is no more than the sum of magnitudes, and the sum of
# the block by 2^-23 of itself, in all (8 + 2) / 8 a key (Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science
# 7:e330, 2021). A thread adds up a quarter of the weights, by 2^-24 each; every 32 keys both sums may be scaled anew: 1 / 4 + 2 / 32.
_SUMS = (10 / 8 + 1 / 4 + 2 / 32) * 2.0**-24
# Roundings of a score, in float32: of its products with two scales and the factor, of the mask, of the difference from the greatest.
_SCORE = 4 * 2.0**-24


def codes_of(x: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """x [..., D] -> codes [..., D] and scales [..., 1], bit for bit what kernels make of the same float32 x."""
    x = x.astype(np.float32)
    scale = np.maximum(np.abs(x).max(-1, keepdims=True) / np.float32(127), np.float32(EPS))
    return np.clip(np.rint(x / scale), -127, 127).astype(np.int8), scale


def key_codes(op: QAttention, k: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """k in the operator's order of axes -> codes [B, H, keys, D], scales [B, H, keys, 1]."""
    k = heads_first(k.astype(np.float32), op.k_by_token)
    if op.smooth_k:
        k = k - k.mean(-2, keepdims=True, dtype=np.float64).astype(np.float32)
    return codes_of(k)


def heads_first(x: Array, by_token: bool) -> Array:
    """[B, H, tokens, D] of x, or back."""
    return x.swapaxes(1, 2) if by_token else x


def sums(op: QAttention, q: Array, keys: Array) -> npt.NDArray[np.int64]:
    """Products of codes [B, H, queries, keys]; every kernel's integers equal them. `keys`: codes [B, H, keys, D]."""
    made: npt.NDArray[np.int64] = codes_of(heads_first(q, op.q_by_token))[0].astype(np.int64) @ keys.astype(np.int64).swapaxes(-1, -2)
    return made


def scores(op: QAttention, q: Array, keys: tuple[Array, Array], mask: Array | None = None) -> npt.NDArray[np.float64]:
    """What softmax is given [B, H, queries, keys]. `keys`: codes and scales."""
    _, q_scale = codes_of(heads_first(q, op.q_by_token))
    made: npt.NDArray[np.float64] = sums(op, q, keys[0]) * keys[1].astype(np.float64).swapaxes(-1, -2)
    made = made * (q_scale.astype(np.float64) * np.float32(op.scale))
    return made if mask is None else made + np.maximum(mask.astype(np.float64), HIDDEN)


def qattention(op: QAttention, *inputs: Array, keys: tuple[Array, Array] | None = None) -> Array:
    """The output in the type of q and the operator's order of axes. `keys`: codes and scales of k, if not those that it makes itself."""
    q, k, v = inputs[:3]
    found = scores(op, q, key_codes(op, k) if keys is None else keys, inputs[3] if op.mask else None)
    weights = np.exp(found - found.max(-1, keepdims=True))
    y = (weights / weights.sum(-1, keepdims=True)) @ heads_first(v, op.v_by_token).astype(np.float64)
    return np.asarray(heads_first(y, op.y_by_token).astype(q.dtype))


def tolerance(op: QAttention, q: Array, k: Array, v: Array, mask: Array | None = None) -> npt.NDArray[np.float64]:
    """How far an element may be from `qattention` given the same codes, [B, H, 1, 1]: of each head, by its greatest score and value."""
    found = np.abs(scores(op, q, key_codes(op, k), mask))
    most = np.where(found < -HIDDEN / 2, found, 0).max((-1, -2), keepdims=True)
    value = np.abs(heads_first(v, op.v_by_token).astype(np.float64)).max((-1, -2), keepdims=True)
    unit = _UNIT[q.dtype.name]
    made: npt.NDArray[np.float64] = (3 * unit + 2 * _SCORE * most + sums_off(found.shape[-1])) * value + np.finfo(
        np.float16
    ).smallest_subnormal
    return made


def sums_off(keys: int) -> float:
    """How far the sums over so many keys move an output, relative to the greatest value. No bound for GPUs before sm_80."""
    return keys * _SUMS + 2.0**-20
