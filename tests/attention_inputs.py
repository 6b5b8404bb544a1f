"""Inputs of `vditc.QAttention` for its tests, and how near its oracle an output must be."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from vditc.plugins.qattention.op import QAttention
from vditc.plugins.qattention.reference import heads_first, qattention, tolerance

Array = npt.NDArray[Any]
TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def arrays(
    op: QAttention, rng: np.random.Generator, sizes: tuple[int, int, int, int, int], dtype: np.dtype[Any], *, exact: bool = False
) -> list[Array]:
    """q, k, v and, when op.mask, a mask that hides a third of the keys. `sizes`: batch, heads, queries, keys, channels.

    `exact`: multiples of 1/32 up to 4, whose sums float32 holds, so that the mean of k is the same number in any order.
    """
    batch, heads, queries, keys, width = sizes
    made = []
    for by_token, tokens in ((op.q_by_token, queries), (op.k_by_token, keys), (op.v_by_token, keys)):
        shape = (batch, tokens, heads, width) if by_token else (batch, heads, tokens, width)
        made.append((rng.integers(-128, 129, shape) / 32 if exact else rng.standard_normal(shape)).astype(dtype))
    if op.mask:
        masks = 1 if rng.random() < 0.5 else batch
        made.append(np.where(rng.random((masks, 1, 1, keys)) < 0.3, -np.inf, rng.integers(-64, 65, (masks, 1, 1, keys)) / 32).astype(dtype))
    return made


@st.composite
def cases(draw: st.DrawFn, types: tuple[str, ...] = ("fp16", "bf16"), most: int = 200) -> tuple[QAttention, list[Array]]:
    """An operator and inputs of exact sums."""
    width = 8 * draw(st.integers(1, 16))
    flags = {name: draw(st.booleans()) for name in ("smooth_k", "mask", "q_by_token", "k_by_token", "v_by_token", "y_by_token")}
    op = QAttention(scale=float(np.float32(width**-0.5)), **flags)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, most)), draw(st.integers(1, most)), width)
    return op, arrays(op, rng, sizes, TYPES[draw(st.sampled_from(types))], exact=True)


def check(op: QAttention, inputs: list[Array], found: Array, keys: tuple[Array, Array] | None = None) -> None:
    """Within the oracle's tolerance of it, given the codes of k."""
    wanted = qattention(op, *inputs, keys=keys)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    off = np.abs(heads_first(found.astype(np.float64) - wanted.astype(np.float64), op.y_by_token))
    assert np.isfinite(found.astype(np.float64)).all() and (off <= tolerance(op, *inputs)).all(), (off / tolerance(op, *inputs)).max()
