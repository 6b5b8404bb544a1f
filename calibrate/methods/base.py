"""What a quantization method is: from weights and what was seen of their input to codes, scales and transforms."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from vditc.calibrate.ranks import Ranks
from vditc.calibrate.row_sample import RowSample
from vditc.calibration import LayerCalibration
from vditc.correction import NONE, Correction
from vditc.errors import InputError
from vditc.float_codes import tensor_scale
from vditc.float_weight import FloatWeight
from vditc.numerics import EPS, Granularity, QType
from vditc.progress import Progress
from vditc.qweight import RoundedWeight
from vditc.sampled_model import SampledModel
from vditc.scheme import QuantSpec, QWeight, Scheme
from vditc.transform import IDENTITY, OutputTransform, Transform, transformed

if TYPE_CHECKING:
    from vditc.calibrate.sharding import Sharding
    from vditc.calibrate.trajectories import Trajectories

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class InputStatistics:
    """What the observers saw of one tensor that linears read, over all prompts, tokens and guidance branches."""

    channel_absmax: npt.NDArray[np.float32]  # [steps, K]
    sample: RowSample | None = None
    bounds: npt.NDArray[np.float32] | None = None  # [2, steps, K]: lowest and highest of each channel, for a method that asked for them
    temporal: bool = False  # whether a layer of the time path reads it

    @property
    def rows(self) -> npt.NDArray[np.float32]:
        """[T, K], a uniform sample over everything, for a method that asked for one."""
        assert self.sample is not None
        return self.sample.read()

    @property
    def absmax(self) -> npt.NDArray[np.float32]:
        """[steps]"""
        return np.asarray(self.channel_absmax.max(-1))

    @property
    def channels(self) -> npt.NDArray[np.float32]:
        """Greatest over the steps, [K]."""
        return np.asarray(self.channel_absmax.max(0))


class Quantized(NamedTuple):
    """A quantized layer's arrays."""

    weight: QWeight  # may be computed when it is read
    activation_scale: npt.NDArray[np.float32] | None = None  # [] or [steps], only for static activations
    transform: Transform = IDENTITY
    activation_clip: npt.NDArray[np.float32] | None = None  # [steps]
    correction: Correction = NONE
    output: OutputTransform | None = None  # that `weight` was given with


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """One method; its fields, if any, are what a recipe's [settings] may say. A new method is one new file in this folder."""

    name: ClassVar[str]  # as recipes say it
    float_codes: ClassVar[bool] = False  # whether it knows floating-point codes
    rotates: ClassVar[bool] = False  # inputs are rotated, so that no static range is known

    @property
    def rows(self) -> int:
        """How many sampled rows of each input `quantize` wants to see."""
        return 0

    @property
    def pins_frames(self) -> bool:
        """Whether what it finds is for clips of the calibrated length alone."""
        return False

    @property
    def takes_asymmetric(self) -> bool:
        """Whether weights may have zero points."""
        return True

    @property
    def bounds(self) -> bool:
        """Whether `quantize` wants to see the signed bounds of each input's channels."""
        return False

    @property
    def rotates_within_heads(self) -> bool:
        """Whether what attention gives out is rotated in blocks that v can be rotated with."""
        return False

    def watches(self, role: str) -> bool:
        """Whether inputs of layers that stay in floating point are observed as well, for `report`."""
        return False

    def report(
        self, seen: Mapping[str, InputStatistics], weights: Mapping[str, FloatWeight], schemes: Mapping[str, Scheme]
    ) -> dict[str, Any]:
        """Plain data for the file's statistics, of what was seen of layers; those without a scheme stay in floating point."""
        return {}

    def choose(
        self,
        of: Trajectories,
        groups: Sequence[tuple[str, ...]],
        statistics: Mapping[str, InputStatistics],
        schemes: Mapping[str, Scheme],
        roles: Mapping[str, str],
        progress: Progress,
    ) -> tuple[dict[str, Scheme], dict[str, Any]]:
        """Other schemes for some layers, chosen by running the model, and plain data for the file's statistics.

        `groups`: layers that read one tensor. Called once, on rank 0, between the observation and `quantize`.
        """
        return dict(schemes), {}

    def check_layers(self, schemes: Mapping[str, Scheme], roles: Mapping[str, str]) -> None:
        """InputError when the settings do not fit what the recipe quantizes; `roles` are of all layers."""
        return  # any will do

    def check(self, scheme: Scheme) -> None:
        """InputError when this method cannot quantize to `scheme`."""
        for side, spec in (("weight", scheme.weight), ("activation", scheme.activation)):
            if spec is not None and not spec.qtype.integer and not self.float_codes:
                raise InputError(
                    found=f"{side} {spec.qtype.value}",
                    wanted=f"an integer type: method {self.name} cannot quantize to floating-point codes",
                    where=f"scheme {scheme}",
                    fix='use int8, int6, int4 or int3, or method = "rtn"',
                )
        if not scheme.weight.symmetric and not self.takes_asymmetric:
            raise InputError(
                found=f"weight {scheme.weight}",
                wanted=f"symmetric weights: the search of method {self.name} with these settings knows no zero points",
                where=f"scheme {scheme}",
                fix="leave symmetric = false out, or use rtn, quarot, smoothquant, svdquant, qvd or viditq with nearest rounding",
            )
        act = scheme.activation
        tokens_or_blocks = (Granularity.PER_TOKEN, Granularity.PER_GROUP)
        if act is not None and act.dynamic != (act.granularity in tokens_or_blocks):
            raise InputError(
                found=f"activation {act}",
                wanted="dynamic per_token, or static per_tensor",
                where=f"scheme {scheme}",
                fix='use granularity = "per_token" with dynamic = true',
            )
        if act is not None and act.ranged and self.rotates:
            raise InputError(
                found=f"activation {act}",
                wanted=f"dynamic activations: method {self.name} rotates, and the range behind a rotation is not observed",
                where=f"scheme {scheme}",
                fix='use granularity = "per_token" with dynamic = true',
            )

    @abc.abstractmethod
    def needs_statistics(self, scheme: Scheme) -> bool:
        """Whether `quantize` must be given the statistics of a layer of this scheme."""

    @abc.abstractmethod
    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """Quantize layers that read one tensor: weights [N, K] and schemes by layer name; `statistics` of that tensor if asked for.

        `head`: channels of a head where the tensor is what attention gave out, and a rotation that stays within heads is made by v.
        A weight that is not finite is an InputError, at the latest when the result is read.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What a method that trains the whole model is given."""

    sampled: SampledModel
    start: Mapping[str, LayerCalibration]  # every quantized layer, as `quantize` gave it
    run: str  # digest of everything that examples and results depend on, but for the method's own data
    memory: int | None  # bytes that weights of the full-precision model may take
    device: Any  # torch.device
    work: Path  # folder for what a killed run leaves, seen by all ranks
    ranks: Ranks
    sharding: Sharding | None  # how models are cut up over the ranks; None: each holds whole ones
    progress: Progress


class Trained(NamedTuple):
    """What came out of a training."""

    layers: dict[str, Quantized]  # on rank 0
    report: dict[str, Any]  # plain data, for people


@dataclasses.dataclass(frozen=True)
class TrainedMethod(Method):
    """A method that starts with `quantize` and then learns, with the whole quantized model in the loop."""

    def check(self, scheme: Scheme) -> None:
        """Ranges that are found at run time: a static one would have to follow what is learnt."""
        super().check(scheme)
        if scheme.activation is None or not scheme.activation.dynamic:
            raise InputError(
                found=f"activation {scheme.activation or 'float'}",
                wanted=f"dynamic activations with method {self.name}",
                where=f"scheme {scheme}",
                fix='use granularity = "per_token" with dynamic = true',
            )
        if scheme.weight.granularity is not Granularity.PER_CHANNEL:
            raise InputError(
                found=f"weight {scheme.weight}",
                wanted=f"per_channel weights with method {self.name}",
                where=f"scheme {scheme}",
                fix='use granularity = "per_channel"',
            )

    @abc.abstractmethod
    def train(self, job: TrainingJob) -> Trained:
        """Learn. All ranks call this; they share every batch."""


def static_scale(absmax: Array, spec: QuantSpec) -> npt.NDArray[np.float32]:
    """`max(absmax / high, EPS)` in float32 of absmax [steps]: [steps] if `spec` is per step, else [] over all steps.

    Of NVFP4, the scale of the tensor.
    """
    ranges = np.asarray(absmax if spec.per_step else absmax.max(), np.float32)
    if spec.qtype is QType.FP4_E2M1:
        return np.asarray(tensor_scale(ranges), np.float32)
    return np.asarray(np.maximum(ranges / np.float32(spec.qtype.high), np.float32(EPS)), np.float32)


def scale_dtype(scheme: Scheme) -> Any:
    """float16 where activations stay in floating point, else float32.

    A float16 scale halves what a group costs; next to integer activations the scale multiplies an accumulator, and is kept in the
    type of that product.
    """
    return np.float16 if scheme.activation is None else np.float32


def activation_scale(scheme: Scheme, statistics: InputStatistics | None, transform: Transform) -> npt.NDArray[np.float32] | None:
    """Static scales of the balanced input; None where there are none."""
    if scheme.activation is None or not scheme.activation.ranged:
        return None
    if statistics is None or transform.rotation is not None:
        raise ValueError(f"scheme {scheme} needs statistics, and no rotation")
    seen = statistics.channel_absmax
    if transform.shift is not None:
        if statistics.bounds is None:
            raise ValueError(f"scheme {scheme}: a shift needs signed bounds")
        seen = np.abs(statistics.bounds - transform.shift).max(0)
    return static_scale((seen if transform.balance is None else seen * np.abs(transform.balance)).max(-1), scheme.activation)


def rounded(weight: FloatWeight, scheme: Scheme, statistics: InputStatistics | None = None, transform: Transform = IDENTITY) -> Quantized:
    """The transformed weight to the nearest code, when it is read; activations by the greatest value that was seen."""
    codes = RoundedWeight(transformed(weight, transform), scheme.weight, scale_dtype(scheme))
    return Quantized(codes, activation_scale(scheme, statistics, transform), transform)


def alike(schemes: Mapping[str, Scheme]) -> list[list[str]]:
    """Layers of the same scheme, for a search that quantizes meanwhile: a balance that fits 4 bits need not fit 8."""
    found: dict[str, list[str]] = {}
    for layer, scheme in schemes.items():
        found.setdefault(str(scheme), []).append(layer)
    return list(found.values())


def joined(weights: Mapping[str, FloatWeight]) -> npt.NDArray[np.float32]:
    """All weights of a group as one, float32 [sum of N, K]."""
    return np.concatenate([weight.read() for weight in weights.values()])
