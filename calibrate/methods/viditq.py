"""ViDiT-Q's static-dynamic channel balancing: a scaling for the imbalance that is there at every step, a rotation for what moves.

Zhao et al., "ViDiT-Q" (arXiv 2406.02540), section 4. Activations are quantized per token at run time, so both guidance branches and all
frames have ranges of their own. x' = (x m) Q, W' = (W / m) Q with m = max|W|^alpha / max|X|^(1 - alpha), max|X| over all timesteps,
and a random Hadamard Q. The weight is rounded once, after both.

Steps: ranges of dynamic activations are each step's own; without the rotation a recipe may ask for static ones, a scale for every step.
The balance is one for all steps: it is in the weights, of which an engine holds one copy. (The release's first version has a balance
and weights for every range of steps; its second, as here, one.) Static ranges hold for both branches of the guidance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from vditc.calibrate.gptq_weight import ROWS, fitted
from vditc.calibrate.methods.base import InputStatistics, Method, Quantized, joined, rounded
from vditc.calibrate.methods.quarot import HEAD, check_rotated_outputs, check_rotation_block, hadamard
from vditc.errors import InputError
from vditc.float_weight import FloatWeight
from vditc.scheme import Scheme
from vditc.transform import IDENTITY, Transform

LEAST = np.float32(1e-3)  # of a channel's range, so that one that is hardly ever used does not blow its weights up


def static_balance(channels: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], alpha: float) -> npt.NDArray[np.float32]:
    """m [K] from the ranges of activations [K] and a weight [N, K], scaled to a geometric mean of 1."""
    wide, tall = np.maximum(channels, LEAST), np.maximum(np.abs(weight).max(0), LEAST * np.abs(weight).max(initial=np.float32(1e-30)))
    m = tall**alpha / wide ** (1 - alpha)
    # A common factor of all channels changes nothing but would carry small ranges towards the least scale.
    return np.asarray(m / np.exp(np.log(m).mean()), np.float32)


def balanced(
    statistics: InputStatistics | None,
    weights: Mapping[str, FloatWeight],
    alpha: float,
    *,
    rotation: bool,
    seed: int,
    head: int | None = None,
    block: int = 0,
) -> Transform:
    """The balance of layers that read one tensor, and the rotation (of each `head` or `block`); nothing where inputs were not observed."""
    if statistics is None:
        return IDENTITY
    balance = static_balance(statistics.channels, joined(weights), alpha)
    return hadamard(seed, len(balance), balance, head, block) if rotation else Transform(balance=balance)


@dataclasses.dataclass(frozen=True)
class ViDiTQ(Method):
    """One balance and one rotation for all layers that read a tensor."""

    # Share of the weights' range in m: 1 leaves the activations' imbalance to the rotation. The release has 0.57 to 0.99; 0.75 was the
    # best of 0.5, 0.75, 0.9 and 0.99 on the bundled model at W4A8 and W6A6.
    alpha: float = 0.75
    rotation: bool = True
    rotate_attention_output: str = HEAD  # the rotation is made by v and mixes its heads' channels; or "width", computed when the model runs
    rotation_block: int = 0  # as in method quarot
    seed: int = 0  # of the rotation's signs
    rounding: str = "nearest"  # or "gptq", which is not the paper's, on the transformed weights and inputs

    name: ClassVar[str] = "viditq"
    rotates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rotated_outputs(self.rotate_attention_output, self.name)
        check_rotation_block(self.rotation_block, self.name)
        if not 0 <= self.alpha <= 1:
            raise InputError(found=f"alpha = {self.alpha}", wanted="0 to 1", where="method viditq", fix="correct [settings]")
        if self.rounding not in ("nearest", "gptq"):
            raise InputError(
                found=f"rounding = {self.rounding!r}", wanted="nearest or gptq", where="method viditq", fix="correct [settings]"
            )

    @property
    def takes_asymmetric(self) -> bool:
        """Rounding to nearest has them, GPTQ has not."""
        return self.rounding != "gptq"

    @property
    def rows(self) -> int:
        """For the Hessian, if there is one."""
        return ROWS if self.rounding == "gptq" else 0

    @property
    def rotates_within_heads(self) -> bool:
        """As the settings say."""
        return self.rotation and self.rotate_attention_output == HEAD

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Weights alone have no imbalance of activations to settle; GPTQ's Hessian is of the inputs."""
        return scheme.activation is not None or self.rounding == "gptq"

    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """See `Method.quantize`."""
        seen = statistics if any(scheme.activation is not None for scheme in schemes.values()) else None
        transform = balanced(seen, weights, self.alpha, rotation=self.rotation, seed=self.seed, head=head, block=self.rotation_block)
        if self.rounding == "gptq":
            assert statistics is not None
            return {layer: fitted(weight, schemes[layer], statistics, transform) for layer, weight in weights.items()}
        return {layer: rounded(weight, schemes[layer], statistics, transform) for layer, weight in weights.items()}
