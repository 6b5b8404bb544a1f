"""What a quantization method is: from a weight and what was seen of its inputs to codes and scales."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from vditc.float_weight import FloatWeight
from vditc.scheme import QWeight, Scheme

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class InputStatistics:
    """What the observers saw of one linear's input, over all prompts, tokens and guidance branches."""

    absmax: npt.NDArray[np.float32]  # [steps], over channels
    channel_absmax: npt.NDArray[np.float32]  # [K], over steps


class Quantized(NamedTuple):
    """A quantized layer's arrays."""

    weight: QWeight  # may be computed when it is read
    activation_scale: npt.NDArray[np.float32] | None  # [] or [steps], only for static activations


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """One method; its fields, if any, are its settings. A new method is one new file in this folder."""

    name: ClassVar[str]  # as recipes say it

    @abc.abstractmethod
    def check(self, scheme: Scheme) -> None:
        """InputError when this method cannot quantize to `scheme`."""

    @abc.abstractmethod
    def needs_statistics(self, scheme: Scheme) -> bool:
        """Whether `quantize` must be given the statistics of a layer of this scheme."""

    @abc.abstractmethod
    def quantize(self, weight: FloatWeight, statistics: InputStatistics | None, scheme: Scheme) -> Quantized:
        """Quantize a weight [N, K]; `statistics` is there if `needs_statistics` asked for it.

        A weight that is not finite is an InputError, at the latest when the result is read.
        """
