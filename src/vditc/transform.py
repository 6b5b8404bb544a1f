"""What happens to a linear layer's input before it is quantized, and to its weight, so that the product stays the same.

    x [..., K] -> x' = ((x - shift) * balance) Q    W [N, K] -> W' = (W / balance) Q    x' W'^T + shift W^T = x W^T for orthonormal Q

The input of a layer behind attention may come transformed: Q mixes channels of one head only, of which attention is linear in v, so that
v's own weight gives (y * balance) Q (`OutputTransform`), and nothing is left to compute (Ashkboos et al., "QuaRot", arXiv 2404.00456, 4.1).

With a low-rank branch, of what W' holds only W' - up down is quantized, and up down x' is added in floating point:
y = quantized(x') quantized(W' - up down)^T + x' down^T up^T + bias (Li et al., "SVDQuant", arXiv 2411.05007, eq. 5).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.float_weight import FloatWeight
from vditc.hadamard import factors, rotate

Array = npt.NDArray[Any]
SHIFT, BALANCE, DOWN, UP = "shift", "balance", "low_rank.down", "low_rank.up"  # names of a layer's tensors
OUTPUT_BALANCE = "output_balance"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """The transform of one layer; layers that read one tensor share all but the branch, so that it is quantized once."""

    shift: npt.NDArray[np.float32] | None = None  # [K]; what it takes from the output, W shift, is the layer's correction's to give back
    balance: npt.NDArray[np.float32] | None = None  # [K], finite and not zero
    rotation: int | None = None  # channels of a block that Q spreads over each other (vditc.hadamard); it divides K
    down: npt.NDArray[np.float16] | None = None  # [R, K]
    up: npt.NDArray[np.float16] | None = None  # [N, R]
    made_by: tuple[str, ...] = ()  # layers whose OutputTransform has balanced and rotated the input already

    def __post_init__(self) -> None:
        if self.made_by and (self.shift is not None or self.rotation is None):
            raise ValueError("an input that other layers transform, shifted or not rotated")
        if self.balance is not None and not (np.isfinite(self.balance).all() and self.balance.all()):
            raise ValueError("a balance that is zero or not finite")
        if self.shift is not None and not np.isfinite(self.shift).all():
            raise ValueError("a shift that is not finite")
        if (self.down is None) != (self.up is None) or (
            self.down is not None and self.up is not None and len(self.down) != self.up.shape[1]
        ):
            raise ValueError("low-rank factors that do not fit each other")

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return self.tensors() == {} and self.rotation is None

    @property
    def explicit(self) -> Transform:
        """What is left to do with the input when the model runs."""
        return dataclasses.replace(self, balance=None, rotation=None, made_by=()) if self.made_by else self

    @property
    def same_weight(self) -> bool:
        """Whether the weight is left as it is."""
        return self.balance is None and self.rotation is None and self.down is None

    def __str__(self) -> str:
        low_rank = "" if self.down is None else f"less a branch of rank {len(self.down)}"
        parts = (
            "" if self.shift is None else "shifted",
            "" if self.balance is None else "balanced",
            self.rotation and f"rotated in blocks of {self.rotation}{' beforehand' if self.made_by else ''}",
            low_rank,
        )
        return ", ".join(part for part in parts if part) or "as it is"

    def input_key(self) -> bytes:
        """Equal for layers whose inputs are transformed alike."""
        parts = (b"-" if array is None else array.tobytes() for array in (self.shift, self.balance))
        return f"{self.rotation} ".encode() + b" ".join(parts)

    def tensors(self) -> dict[str, Array]:
        """What a file holds of it, by the names above."""
        both = ((SHIFT, self.shift), (BALANCE, self.balance), (DOWN, self.down), (UP, self.up))
        return {name: array for name, array in both if array is not None}

    def input(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """x [..., K] -> x', float32."""
        if self.shift is not None:
            x = x - self.shift
        if self.balance is not None:
            x = x * self.balance
        return x if self.rotation is None else rotate(x, self.rotation)

    def weight(self, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """W [N, K] -> what is quantized: W', less the low-rank branch, float32."""
        if self.balance is not None:
            weight = weight / self.balance
        if self.rotation is not None:
            weight = rotate(weight, self.rotation)
        if self.down is not None and self.up is not None:
            weight = weight - self.up.astype(np.float32) @ self.down.astype(np.float32)
        return weight


IDENTITY = Transform()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OutputTransform:
    """What a layer gives out instead of y [..., N]: (y * balance) Q in channels `start` to `start` + n, the others as they are.

    W -> W' and bias -> bias' alike, before anything else: whatever the layer's own transform, codes and corrections are of, is W'.
    """

    balance: npt.NDArray[np.float32]  # [n], finite and not zero
    rotation: int  # channels of a block of Q; it divides n
    start: int = 0

    def __post_init__(self) -> None:
        if self.balance.ndim != 1 or not self.balance.size or not (np.isfinite(self.balance).all() and self.balance.all()):
            raise ValueError("a balance that is zero or not finite, or not [n]")
        if self.rotation < 1 or len(self.balance) % self.rotation or factors(self.rotation) is None:
            raise ValueError(f"no rotation of blocks of {self.rotation} of {len(self.balance)} channels")
        if self.start < 0:
            raise ValueError(f"outputs from {self.start} on")

    def check(self, outputs: int) -> None:
        """ValueError when a layer of so many outputs N has not all that are changed."""
        if (end := self.start + len(self.balance)) > outputs:
            raise ValueError(f"outputs {self.start} to {end} of {outputs}")

    def __str__(self) -> str:
        return f"outputs {self.start} to {self.start + len(self.balance)} balanced and rotated in blocks of {self.rotation}"

    def makes(self, wanted: Transform, channels: int, outputs: int) -> bool:
        """Whether behind it inputs [..., channels] are what `wanted` makes of those of the checkpoint.

        A layer that has more in its N `outputs` than v has v last.
        """
        balance = np.ones(channels, np.float32) if wanted.balance is None else wanted.balance
        last = self.start == outputs - channels
        return last and self.rotation == wanted.rotation and np.array_equal(self.balance, balance)

    def weight(self, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """W [N, K] -> W', float32."""
        self.check(len(weight))
        changed = np.array(weight, np.float32)
        rows = slice(self.start, self.start + len(self.balance))
        changed[rows] = rotate(np.ascontiguousarray(changed[rows].T) * self.balance, self.rotation).T
        return changed

    def bias(self, bias: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Bias [N] -> bias', float32."""
        return self.weight(bias[:, None])[:, 0]


@dataclasses.dataclass(frozen=True, eq=False)
class TransformedTensor:
    """A checkpoint's weight [N, K] after a transform, computed whenever it is read."""

    base: FloatWeight
    transform: Transform | OutputTransform

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return self.base.shape

    def read(self) -> Array:
        """All of it; InputError when the checkpoint's weight is not finite."""
        return self.transform.weight(self.base.read())


def transformed(weight: FloatWeight, transform: Transform) -> FloatWeight:
    """The weight that is left to be quantized."""
    return weight if transform.same_weight else FloatWeight(TransformedTensor(weight, transform), weight.where)


def with_outputs(weight: FloatWeight, output: OutputTransform | None) -> FloatWeight:
    """The weight of the layer that gives out what `output` says."""
    return weight if output is None else FloatWeight(TransformedTensor(weight, output), weight.where)
