"""SVDQuant: a branch of low rank takes the weights' largest directions, and only what it leaves is quantized.

Li et al., "SVDQuant" (arXiv 2411.05007), eq. 4-6: outliers of the activations are moved into the weights by a balance, W' = L1 L2 + R by
the SVD, y = x' L1 L2 + Q(x') Q(R). By nvidia-modelopt, whose balance is searched like AWQ's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vditc.calibrate.methods.base import InputStatistics, Method, Quantized, alike, joined, rounded
from vditc.calibrate.modelopt_linear import calibrate_linear
from vditc.errors import InputError
from vditc.float_weight import FloatWeight
from vditc.scheme import Scheme
from vditc.transform import Transform


@dataclasses.dataclass(frozen=True)
class SvdQuant(Method):
    """One balance and one down-projection for all layers that read a tensor and have the same scheme."""

    rank: int = 32

    name: ClassVar[str] = "svdquant"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(found=f"rank = {self.rank}", wanted="at least 1", where="method svdquant", fix="correct [settings]")

    @property
    def rows(self) -> int:
        """For the search."""
        return 512

    def needs_statistics(self, scheme: Scheme) -> bool:
        """The balance is searched on inputs."""
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
        result: dict[str, Quantized] = {}
        for part in alike(schemes):
            result |= self._alike({layer: weights[layer] for layer in part}, statistics, {layer: schemes[layer] for layer in part})
        return result

    def _alike(
        self, weights: Mapping[str, FloatWeight], statistics: InputStatistics, schemes: Mapping[str, Scheme]
    ) -> dict[str, Quantized]:
        """Layers of one scheme."""
        first = next(iter(schemes.values()))
        bits = None if first.activation is None else first.activation.qtype.bits
        algorithm = {"method": "svdquant", "lowrank": self.rank}
        found = calibrate_linear(joined(weights), statistics.rows, first.weight, algorithm, bits)
        assert found.down is not None and found.up is not None
        down, result, begin = found.down.astype(np.float16), {}, 0
        for layer, weight in weights.items():
            end = begin + weight.shape[0]
            # What float16 drops of the branch stays in the part that is quantized.
            transform = Transform(balance=found.balance, down=down, up=found.up[begin:end].astype(np.float16))
            result[layer] = rounded(weight, schemes[layer], statistics, transform)
            begin = end
        return result
