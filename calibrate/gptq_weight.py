"""GPTQ: columns are rounded one after the other, and each one's error is made good by the columns that follow.

Frantar et al., "GPTQ" (arXiv 2210.17323), eq. 2-3, with the Hessian of sampled inputs. By nvidia-modelopt.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.calibrate.methods.base import InputStatistics, Quantized, activation_scale, scale_dtype
from vditc.calibrate.modelopt_linear import calibrate_linear
from vditc.float_weight import FloatWeight
from vditc.scheme import QTensor, QuantSpec, QWeight, Scheme, Stored, nearest_scale, quantize_weight
from vditc.transform import IDENTITY, Transform, transformed

Array = npt.NDArray[Any]
ROWS = 1024  # sampled inputs behind a Hessian


@dataclasses.dataclass(frozen=True, eq=False)
class GptqWeight(QWeight):
    """Codes of the transformed weight, searched when they are asked for.

    The grid is that of rounding to nearest: what GPTQ changes is which of its points each weight gets.
    """

    weight: FloatWeight  # the checkpoint's
    statistics: InputStatistics
    spec: QuantSpec
    dtype: Any  # of the scale
    transform: Transform

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight.shape

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Type of the scale."""
        return np.dtype(self.dtype)  # type: ignore[no-any-return]

    def read(self) -> QTensor:
        """The whole tensor, checked."""
        weight = transformed(self.weight, self.transform).read()
        scale = nearest_scale(weight, self.spec, self.dtype)
        found = calibrate_linear(weight, self.transform.input(self.statistics.rows), self.spec, {"method": "gptq"}).weight
        return quantize_weight(found, self.spec, scale, self.dtype)

    def stored(self, *, transposed: bool = False) -> Stored:
        """See `QWeight.stored`."""
        return self.read().stored(transposed=transposed)


def fitted(weight: FloatWeight, scheme: Scheme, statistics: InputStatistics, transform: Transform = IDENTITY) -> Quantized:
    """What `vditc.calibrate.methods.base.rounded` gives, with codes by GPTQ."""
    codes = GptqWeight(weight, statistics, scheme.weight, scale_dtype(scheme), transform)
    return Quantized(codes, activation_scale(scheme, statistics, transform), transform)
