"""GPTQ: columns are rounded one after the other, and each one's error is made good by the columns that follow.

Frantar et al., "GPTQ" (arXiv 2210.17323), eq. 2-3, with the Hessian of sampled inputs. By nvidia-modelopt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vditc.calibrate.methods.base import Array, InputStatistics, Method, Quantized, activation_scale, scale_dtype
from vditc.calibrate.modelopt_linear import calibrate_linear
from vditc.float_weight import FloatWeight
from vditc.scheme import QTensor, QuantSpec, QWeight, Scheme, quantize_weight, scale_shape, weight_scale
from vditc.transform import IDENTITY


@dataclasses.dataclass(frozen=True, eq=False)
class GptqWeight(QWeight):
    """Codes that are searched when they are asked for."""

    weight: FloatWeight
    statistics: InputStatistics
    spec: QuantSpec
    dtype: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight.shape

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Type of the scale."""
        return np.dtype(self.dtype)  # type: ignore[no-any-return]

    def read(self) -> QTensor:
        """The grid is that of rounding to nearest: what GPTQ changes is which of its points each weight gets."""
        weight, shape = self.weight.read(), scale_shape(self.shape, self.spec)
        groups = weight.reshape(*shape, -1) if shape else weight.reshape(-1)
        scale = weight_scale(np.asarray(np.abs(groups).max(-1)), self.spec, self.dtype)
        found = calibrate_linear(weight, self.statistics.rows, self.spec, {"method": "gptq"}).weight
        return quantize_weight(found, self.spec, scale, self.dtype)

    def stored(self, *, transposed: bool = False) -> tuple[Array, Array]:
        """See `QWeight.stored`."""
        return self.read().stored(transposed=transposed)


@dataclasses.dataclass(frozen=True)
class Gptq(Method):
    """Weights by GPTQ, activations by the greatest value that was seen."""

    name: ClassVar[str] = "gptq"
    rows: ClassVar[int] = 1024

    def needs_statistics(self, scheme: Scheme) -> bool:
        """The Hessian is that of the inputs."""
        return True

    def quantize(
        self, weights: Mapping[str, FloatWeight], statistics: InputStatistics | None, schemes: Mapping[str, Scheme]
    ) -> dict[str, Quantized]:
        """See `Method.quantize`."""
        assert statistics is not None
        found = {}
        for layer, weight in weights.items():
            scheme = schemes[layer]
            codes = GptqWeight(weight, statistics, scheme.weight, scale_dtype(scheme))
            found[layer] = Quantized(codes, activation_scale(scheme, statistics, IDENTITY))
        return found
