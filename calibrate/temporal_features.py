"""Temporal features, what a model computes of the time alone, and whether steps can still be told apart behind a quantizer.

A table E [steps, C] holds one feature at every step of a schedule. Its discriminability score under a quantizer Q is

    mean over neighbouring steps i of |Q(E_i+1) - Q(E_i)| / |E_i+1 - E_i|,    Euclidean distances,

1 where every step is as far from the next as it was, 0 where all have become one; noise of rounding may bring it above 1. QVD
(arXiv 2407.11585) introduces such a score and a quantizer made for it; its formulas were not at hand, so score and
quantizers here are our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vditc.numerics import EPS, QType

Array = npt.NDArray[Any]
HIGH = int(QType.INT8.high)
POWERS = tuple(round(0.2 + 0.05 * i, 2) for i in range(17))  # 0.2 to 1
SPLITS = tuple(2.0**-i for i in range(1, 9))  # of the range, where the fine half of a two-range code ends


def discriminability(table: Array, quantized: Array) -> float:
    """The score of tables [steps, C]; pairs of steps that are equal to begin with do not count, and without any other it is 1."""
    was, now = (np.linalg.norm(np.diff(np.asarray(t, np.float64), axis=0), axis=-1) for t in (table, quantized))
    apart = was > 0
    return float((now[apart] / was[apart]).mean()) if apart.any() else 1.0


def relative_error(table: Array, quantized: Array) -> float:
    """|Q(E) - E| / |E|."""
    norm = float(np.linalg.norm(np.asarray(table, np.float64)))
    return float(np.linalg.norm(np.asarray(quantized, np.float64) - table)) / norm if norm else 0.0


def uniform(table: Array, high: int = HIGH, axis: int | None = None) -> Array:
    """Symmetric codes with one scale, or, with axis 0, one for every channel, with axis 1, one for every step."""
    scale = np.maximum(np.abs(table).max(axis, keepdims=axis is not None) / np.float32(high), np.float32(EPS))
    return np.asarray(np.clip(np.rint(table / scale), -high - 1, high) * scale, np.float32)


def power(table: Array, p: float, high: int = HIGH) -> Array:
    """sign(x) rint((|x| / a)^p high) and back, a the greatest absolute value: with p below 1 small values have most of the codes."""
    top = np.maximum(np.abs(table).max(), np.float32(EPS))
    codes = np.rint((np.abs(table) / top) ** p * high)
    return np.asarray(np.sign(table) * (codes / high) ** (1 / p) * top, np.float32)


def two_ranges(table: Array, split: float, high: int = HIGH) -> Array:
    """Half of the codes for values within `split` of the greatest absolute value, half for those beyond."""
    top = np.maximum(np.abs(table).max(), np.float32(EPS))
    half = high // 2
    near, far = top * np.float32(split) / half, top / half
    fine = np.clip(np.rint(table / near), -half, half) * near
    return np.asarray(np.where(np.abs(table) <= top * np.float32(split), fine, np.rint(table / far) * far), np.float32)


class Candidate(NamedTuple):
    """A way to quantize and what it does to a table."""

    name: str
    score: float
    error: float


def candidate(name: str, table: Array, quantized: Array) -> Candidate:
    """Score and error."""
    return Candidate(name, discriminability(table, quantized), relative_error(table, quantized))


def best(candidates: list[Candidate], error: float) -> Candidate:
    """The score nearest to 1 among those of at most this error; of equals the one with less error, then the first."""
    allowed = [c for c in candidates if c.error <= error] or candidates
    return min(allowed, key=lambda c: (abs(c.score - 1), c.error))


def codes_for(table: Array, high: int = HIGH) -> list[Candidate]:
    """Every kind of code for a table as it is: uniform first, then per channel, per step, and the best of powers and of splits."""
    kinds: list[tuple[str, Callable[[float], Array], tuple[float, ...]]] = [
        ("power", lambda p: power(table, p, high), POWERS),
        ("two_ranges", lambda split: two_ranges(table, split, high), SPLITS),
    ]
    plain = candidate("uniform", table, uniform(table, high))
    found = [
        plain,
        candidate("per_channel", table, uniform(table, high, 0)),
        candidate("per_step", table, uniform(table, high, 1)),
    ]
    return found + [best([candidate(f"{name} {v:g}", table, code(v)) for v in values], plain.error) for name, code, values in kinds]
