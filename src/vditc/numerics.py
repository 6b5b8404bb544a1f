"""Number formats and how scales are shared: the vocabulary of every stage."""

from __future__ import annotations

import dataclasses
import enum


@dataclasses.dataclass(frozen=True)
class _Format:
    bits: int
    low: float  # least and greatest code, in code units
    high: float
    integer: bool


class QType(enum.Enum):
    """A low-precision number format. Symmetric ranges: `scale = absmax / high`."""

    INT8 = "int8"
    INT6 = "int6"  # an INT8 container clipped to 6 bits
    INT4 = "int4"
    INT3 = "int3"  # an INT4 container clipped to 3 bits
    FP8_E4M3 = "fp8_e4m3"
    FP4_E2M1 = "fp4_e2m1"

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return _FORMATS[self].bits

    @property
    def low(self) -> float:
        """Least representable code."""
        return _FORMATS[self].low

    @property
    def high(self) -> float:
        """Greatest representable code; the divisor of a symmetric scale."""
        return _FORMATS[self].high

    @property
    def integer(self) -> bool:
        """Whether codes are integers."""
        return _FORMATS[self].integer


_FORMATS = {
    QType.INT8: _Format(8, -128, 127, True),
    QType.INT6: _Format(6, -32, 31, True),
    QType.INT4: _Format(4, -8, 7, True),
    QType.INT3: _Format(3, -4, 3, True),
    QType.FP8_E4M3: _Format(8, -448, 448, False),  # largest finite value: 1.75 * 2**8
    QType.FP4_E2M1: _Format(4, -6, 6, False),  # largest value: 1.5 * 2**2
}


class Granularity(enum.Enum):
    """Which elements share one scale. Weights are [N, K] (out, in), activations [..., tokens, K]."""

    PER_TENSOR = "per_tensor"  # scale []
    PER_CHANNEL = "per_channel"  # weights: scale [N]
    PER_GROUP = "per_group"  # weights: scale [N, K / group_size]; FP4 activations [..., tokens, K / group_size]
    PER_TOKEN = "per_token"  # activations: scale [..., tokens, 1]


EPS = 1e-8  # least scale: an all-zero row then quantizes to zeros instead of dividing 0 by 0


def short(value: float, digits: int = 6) -> float:
    """So many significant digits: for figures that people read."""
    return float(f"{value:.{digits}g}")
