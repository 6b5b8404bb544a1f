"""AWQ: weights that meet large activations are scaled up before they are rounded; how far is searched on sampled inputs.

Lin et al., "AWQ" (arXiv 2306.00978), eq. 4-5: s = mean|X|^a, a from a grid by the product's error. By nvidia-modelopt (`awq_lite`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from vditc.calibrate.methods.base import InputStatistics, Method, Quantized, alike, joined, rounded
from vditc.calibrate.modelopt_linear import calibrate_linear
from vditc.float_weight import FloatWeight
from vditc.scheme import Scheme
from vditc.transform import Transform


@dataclasses.dataclass(frozen=True)
class Awq(Method):
    """One balance for all layers that read a tensor and have the same scheme."""

    alpha_step: float = 0.1  # of the grid

    name: ClassVar[str] = "awq"

    @property
    def takes_asymmetric(self) -> bool:
        """modelopt's grid is symmetric."""
        return False

    @property
    def rows(self) -> int:
        """For the search."""
        return 512

    def needs_statistics(self, scheme: Scheme) -> bool:
        """The search needs inputs."""
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
        algorithm = {"method": "awq_lite", "alpha_step": self.alpha_step}
        result: dict[str, Quantized] = {}
        for part in alike(schemes):
            own = {layer: weights[layer] for layer in part}
            found = calibrate_linear(joined(own), statistics.rows, schemes[part[0]].weight, algorithm)
            transform = Transform(balance=found.balance)
            result |= {layer: rounded(weight, schemes[layer], statistics, transform) for layer, weight in own.items()}
        return result
