"""QuaRot for layers whose input carries time-dependent modulation: a Hadamard rotation right before the product.

Ashkboos et al., "QuaRot" (arXiv 2404.00456), section 3. There one rotation runs through the residual stream; scales, shifts and gates that
change with the timestep do not commute with it, so each input is rotated by itself, and its weights beforehand. Behind attention, as there
(section 4.1, "online value rotation" left out), the rotation stays within heads and is made by v's weight: it takes no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vditc.calibrate.methods.base import InputStatistics, Method, Quantized, rounded
from vditc.errors import InputError
from vditc.float_weight import FloatWeight
from vditc.hadamard import block_of, factors
from vditc.scheme import Scheme
from vditc.transform import Transform

HEAD, WIDTH = "head", "width"  # what a rotation of what attention gives out mixes


def random_signs(seed: int, width: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """+-1 [K]: with them a channel pattern that a Hadamard matrix happens to collect stays spread."""
    return np.where(np.random.default_rng((seed, width)).random(width) < 0.5, np.float32(-1), np.float32(1))


def hadamard(
    seed: int,
    width: int,
    balance: np.ndarray[tuple[int], np.dtype[np.float32]] | None = None,
    head: int | None = None,
    block: int = 0,
) -> Transform:
    """The rotation of inputs of a width, or of each head in them, behind random signs and a balance [K], if there is one.

    `block`: channels that are mixed where they divide the width; else, and for 0, as many as a matrix is known for.
    """
    signs = random_signs(seed, width)
    mixed = block if block and not head and width % block == 0 else block_of(head or width)
    return Transform(balance=signs if balance is None else balance * signs, rotation=mixed)


def check_rotation_block(block: int, method: str) -> None:
    """InputError unless it is 0 or an order of a known matrix."""
    if block and (block < 2 or factors(block) is None):
        wanted = "0, for the whole width, or a block that a Hadamard matrix is known for: 256 is what vditc.QuantizeToken rotates"
        raise InputError(found=f"rotation_block = {block}", wanted=wanted, where=f"method {method}", fix="correct [settings]")


def check_rotated_outputs(setting: str, method: str) -> None:
    """InputError for another setting than HEAD and WIDTH."""
    if setting not in (HEAD, WIDTH):
        raise InputError(
            found=f"rotate_attention_output = {setting!r}", wanted=f"{HEAD} or {WIDTH}", where=f"method {method}", fix="correct [settings]"
        )


@dataclasses.dataclass(frozen=True)
class QuaRot(Method):
    """Rotation of the whole width where a Hadamard matrix is known, of blocks otherwise."""

    seed: int = 0  # of the signs
    rotate_attention_output: str = HEAD  # or "width", computed when the model runs
    rotation_block: int = 0  # channels that a rotation mixes, where they divide the width; 0: all of it

    name: ClassVar[str] = "quarot"
    rotates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rotated_outputs(self.rotate_attention_output, self.name)
        check_rotation_block(self.rotation_block, self.name)

    @property
    def rotates_within_heads(self) -> bool:
        """As the setting says."""
        return self.rotate_attention_output == HEAD

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Nothing is fitted."""
        return False

    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """See `Method.quantize`."""
        width = next(iter(weights.values())).shape[1]
        transform = hadamard(self.seed, width, head=head, block=self.rotation_block)
        return {layer: rounded(weight, schemes[layer], None, transform) for layer, weight in weights.items()}
