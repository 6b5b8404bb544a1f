"""GPTQ alone: weights as `vditc.calibrate.gptq_weight` finds them, activations by the greatest value that was seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from vditc.calibrate.gptq_weight import ROWS, fitted
from vditc.calibrate.methods.base import InputStatistics, Method, Quantized
from vditc.float_weight import FloatWeight
from vditc.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class Gptq(Method):
    """No transform."""

    name: ClassVar[str] = "gptq"

    @property
    def takes_asymmetric(self) -> bool:
        """modelopt's grid is symmetric."""
        return False

    @property
    def rows(self) -> int:
        """For the Hessian."""
        return ROWS

    def needs_statistics(self, scheme: Scheme) -> bool:
        """The Hessian is that of the inputs."""
        return True

    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """See `Method.quantize`."""
        assert statistics is not None
        return {layer: fitted(weight, schemes[layer], statistics) for layer, weight in weights.items()}
