"""SmoothQuant: channels that are wide in the activations are narrowed there and widened in the weights.

Xiao et al., "SmoothQuant" (arXiv 2211.10438), eq. 4: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha); X / s, W s. By nvidia-modelopt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from vditc.calibrate.methods.base import InputStatistics, Method, Quantized, joined, rounded
from vditc.calibrate.modelopt_linear import calibrate_linear
from vditc.float_weight import FloatWeight
from vditc.numerics import Granularity, QType
from vditc.scheme import QuantSpec, Scheme
from vditc.transform import Transform

LEAST = np.float32(1e-5)  # of a channel's weights, as a share of the greatest: one that no layer reads would get a balance of 0
_INT8 = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)


@dataclasses.dataclass(frozen=True)
class SmoothQuant(Method):
    """One balance for all layers that read a tensor."""

    alpha: float = 0.5  # 1 moves all of the difficulty into the weights

    name: ClassVar[str] = "smoothquant"

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Activations that stay in floating point have no difficulty to move."""
        return scheme.activation is not None

    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """See `Method.quantize`."""
        if statistics is None:
            return {layer: rounded(weight, schemes[layer]) for layer, weight in weights.items()}
        algorithm = {"method": "smoothquant", "alpha": self.alpha}
        # Only maxima of the channels matter, and they are one row. modelopt smooths for INT8 alone; a balance does not depend on bits.
        found = calibrate_linear(_alive(joined(weights)), statistics.channels[None], _INT8, algorithm, activation_bits=8)
        transform = Transform(balance=found.balance)
        return {layer: rounded(weight, schemes[layer], statistics, transform) for layer, weight in weights.items()}


def _alive(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """W [N, K], channels of nothing but zeros lifted to the least range. Only the balance is made of it."""
    top = np.abs(weight).max(0)
    weight[0, top == 0] = LEAST * max(top.max(), np.finfo(np.float32).tiny / LEAST)
    return weight
