"""QuaRot for layers whose input carries time-dependent modulation: a Hadamard rotation right before the product.

Ashkboos et al., "QuaRot" (arXiv 2404.00456), section 3. There one rotation runs through the residual stream; scales, shifts and gates that
change with the timestep do not commute with it, so each input is rotated by itself, and its weights beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vditc.calibrate.methods.base import InputStatistics, Method, Quantized, rounded
from vditc.float_weight import FloatWeight
from vditc.hadamard import block_of
from vditc.scheme import Scheme
from vditc.transform import Transform


def random_signs(seed: int, width: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """+-1 [K]: with them a channel pattern that a Hadamard matrix happens to collect stays spread."""
    return np.where(np.random.default_rng((seed, width)).random(width) < 0.5, np.float32(-1), np.float32(1))


def hadamard(seed: int, width: int, balance: np.ndarray[tuple[int], np.dtype[np.float32]] | None = None) -> Transform:
    """The rotation of inputs of a width, behind random signs and a balance [K], if there is one."""
    signs = random_signs(seed, width)
    return Transform(balance=signs if balance is None else balance * signs, rotation=block_of(width))


@dataclasses.dataclass(frozen=True)
class QuaRot(Method):
    """Rotation of the whole width where a Hadamard matrix is known, of blocks otherwise."""

    seed: int = 0  # of the signs

    name: ClassVar[str] = "quarot"
    rotates: ClassVar[bool] = True

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Nothing is fitted."""
        return False

    def quantize(
        self, weights: Mapping[str, FloatWeight], statistics: InputStatistics | None, schemes: Mapping[str, Scheme]
    ) -> dict[str, Quantized]:
        """See `Method.quantize`."""
        width = next(iter(weights.values())).shape[1]
        transform = hadamard(self.seed, width)
        return {layer: rounded(weight, schemes[layer], None, transform) for layer, weight in weights.items()}
