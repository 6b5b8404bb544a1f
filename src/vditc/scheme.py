"""What quantizing a layer means: the spec of one tensor, the scheme of a layer, and a quantized tensor."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.float_codes import BLOCK, code_dtype, from_nvfp4, nvfp4, pack_fp4, tensor_scale, to_codes
from vditc.numerics import EPS, Granularity, QType

Array = npt.NDArray[Any]
PLUGIN_GROUP = 128  # inputs that share a weight scale in `vditc.QLinear`, where all do not


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """How one tensor is quantized.

    `dynamic`: the scale is computed from the tensor at run time. `per_step`: a static scale for every sampling step,
    gathered by the graph input `step` from a table. FP4 is NVFP4 (vditc.float_codes): of activations, the scales of blocks are dynamic
    and that of the tensor is static.
    """

    qtype: QType
    granularity: Granularity
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False
    per_step: bool = False

    def __post_init__(self) -> None:
        def bad(found: str, wanted: str) -> InputError:
            return InputError(found=found, wanted=wanted, where=f"spec {self}", fix="correct the recipe's rule")

        grouped = self.granularity is Granularity.PER_GROUP
        if grouped != (self.group_size is not None):
            raise bad(f"group_size {self.group_size} with {self.granularity.value}", "group_size exactly with per_group")
        if self.group_size is not None and self.group_size < 16:
            raise bad(f"group_size {self.group_size}", "16 or more (the least block TensorRT fuses)")
        if self.qtype is QType.FP4_E2M1 and self.group_size != BLOCK:
            raise bad(f"{self.qtype.value} {self.granularity.value}", f"per_group with group_size {BLOCK}: the blocks of NVFP4")
        if self.granularity is Granularity.PER_TOKEN and not self.dynamic:
            raise bad("static per_token", "dynamic = true: no table can know the tokens beforehand")
        if self.dynamic and self.per_step:
            raise bad("dynamic and per_step", "one of them")
        if not self.symmetric and (self.granularity is not Granularity.PER_CHANNEL or not self.qtype.integer):
            raise bad(f"symmetric = false with {self.qtype.value} {self.granularity.value}", "integer weights per_channel")

    @property
    def ranged(self) -> bool:
        """Whether an activation has a static scale, from the range that calibration saw."""
        return not self.dynamic or self.qtype is QType.FP4_E2M1

    def __str__(self) -> str:
        parts = [self.qtype.value, self.granularity.value + (f"({self.group_size})" if self.group_size else "")]
        parts += [word for word in ("dynamic", "per_step") if getattr(self, word)]
        parts += [] if self.symmetric else ["asymmetric"]
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return {
            "qtype": self.qtype.value,
            "granularity": self.granularity.value,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "dynamic": self.dynamic,
            "per_step": self.per_step,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QuantSpec:
        """Read what `to_json` wrote."""
        known = dict(data)
        return cls(qtype=QType(known.pop("qtype")), granularity=Granularity(known.pop("granularity")), **known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a linear layer is quantized. `activation` None means weight-only."""

    weight: QuantSpec
    activation: QuantSpec | None = None

    def __post_init__(self) -> None:
        def bad(found: str, wanted: str) -> InputError:
            return InputError(found=found, wanted=wanted, where=f"scheme {self}", fix="correct the recipe's rule")

        w, a = self.weight, self.activation
        if w.dynamic or w.per_step or w.granularity is Granularity.PER_TOKEN:
            raise bad(f"weight {w}", "static per_tensor, per_channel or per_group weights")
        if a is not None and a.qtype is QType.FP4_E2M1 and not a.dynamic:
            raise bad(f"activation {a}", "dynamic = true: no table can know the blocks beforehand")
        if a is None and not w.symmetric:
            # Its correction is a sum over a token's inputs: of float numbers it overflows float16, and cancels.
            raise bad(f"weight {w} with float activations", "symmetric weights where activations stay in floating point")
        if a is not None and a.qtype is not QType.FP4_E2M1:
            if a.granularity not in (Granularity.PER_TENSOR, Granularity.PER_TOKEN) or not a.symmetric:
                raise bad(f"activation {a}", "per_tensor or per_token activations")
            # TensorRT miscompiles groups beside codes, which its targets say; the plugin library has one size of them.
            known = w.qtype is QType.FP4_E2M1 or (w.qtype.integer and w.group_size == PLUGIN_GROUP)
            if w.granularity is Granularity.PER_GROUP and not known:
                wanted = f"per_channel weights, or integers in groups of {PLUGIN_GROUP}, where activations are quantized"
                raise bad(f"weight {w} with activation {a}", wanted)
        if a is not None and a.qtype is not w.qtype and not (a.qtype.integer and w.qtype.integer):
            # No product takes them: TensorRT wants both operands in one floating-point type.
            raise bad(
                f"weight {w.qtype.value} with activation {a.qtype.value}", "integers with integers, or one floating-point type for both"
            )

    def __str__(self) -> str:
        return f"W[{self.weight}] A[{self.activation or 'float'}]"

    @property
    def codes(self) -> bool:
        """Whether integers are multiplied with integers."""
        return self.activation is not None and self.activation.qtype.integer and self.weight.qtype.integer

    @property
    def needs_plugins(self) -> bool:
        """Whether on GPUs the plugin library alone computes it: integer weights in groups under integer codes."""
        return self.codes and self.weight.granularity is Granularity.PER_GROUP

    @property
    def by_channel(self) -> Scheme:
        """The same with a scale for every output channel instead of groups."""
        return dataclasses.replace(self, weight=dataclasses.replace(self.weight, granularity=Granularity.PER_CHANNEL, group_size=None))

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return {"weight": self.weight.to_json(), "activation": self.activation and self.activation.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scheme:
        """Read what `to_json` wrote."""
        act = data["activation"]
        return cls(weight=QuantSpec.from_json(data["weight"]), activation=QuantSpec.from_json(act) if act else None)


class Stored(NamedTuple):
    """A quantized weight as files hold it, in C order."""

    codes: Array  # int8 or E4M3 [N, K], or transposed [K, N]; of up to four bits uint8 [N * K / 2], packed as `pack_int4` does
    scale: Array  # [] | [N] | [N, K / group_size], transposed [] | [N] | [K / group_size, N]; E4M3 for FP4, else floating point
    zero_point: npt.NDArray[np.float32] | None = None  # [N], in units of codes, of asymmetric weights
    tensor_scale: npt.NDArray[np.float32] | None = None  # [], of FP4


class QWeight(abc.ABC):
    """A quantized weight [N, K], in memory or somewhere that it can be had from: a file, or a weight that is rounded when asked for.

    Every access reads and computes anew; nothing is kept.
    """

    spec: QuantSpec

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """(N, K)."""

    @property
    @abc.abstractmethod
    def scale_dtype(self) -> np.dtype[Any]:
        """Type of the scale: float16 or float32; of FP4, E4M3."""

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Type that DequantizeLinear gives: that of the scale, or of FP4's tensor scale."""
        return np.dtype(np.float32) if self.spec.qtype is QType.FP4_E2M1 else self.scale_dtype

    @abc.abstractmethod
    def stored(self, *, transposed: bool = False) -> Stored:
        """Codes, scale and zero point as files hold them."""

    @abc.abstractmethod
    def read(self) -> QTensor:
        """The whole tensor, checked."""

    @property
    def count(self) -> int:
        """Number of codes."""
        return self.shape[0] * self.shape[1]

    @property
    def stored_bits(self) -> int:
        """Bits that codes, scales, zero points (float32) and a tensor scale (float32) take in an artefact."""
        beside = self.scale_dtype.itemsize * 8 + (0 if self.spec.symmetric else 32)
        whole = 32 if self.spec.qtype is QType.FP4_E2M1 else 0
        return self.count * self.spec.qtype.bits + math.prod(scale_shape(self.shape, self.spec)) * beside + whole


@dataclasses.dataclass(frozen=True)
class QTensor(QWeight):
    """A quantized weight in memory: `weight ≈ (codes - zero_point) * scale`, scale broadcast over its group.

    codes: int8 [N, K], every code within the qtype's range; E4M3 or E2M1 for floating-point types. scale: positive float, shape
    [] | [N] | [N, K / group_size]. zero_point: float32 [N], any real number, exactly for an asymmetric spec. tensor_scale: positive
    float32 [], exactly for FP4, whose scale is E4M3 in units of it.
    """

    codes: Array
    scale: Array
    spec: QuantSpec
    zero_point: npt.NDArray[np.float32] | None = None
    tensor_scale: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        def bad(found: str, wanted: str) -> ValueError:
            return ValueError(f"QTensor {self.spec}: found {found}; wanted {wanted}")

        if self.codes.ndim != 2 or self.codes.dtype != (dtype := code_dtype(self.spec.qtype)):
            raise bad(f"codes {self.codes.dtype}{list(self.codes.shape)}", f"{dtype} [N, K]")
        want = scale_shape(self.codes.shape, self.spec)
        if self.scale.shape != want:
            raise bad(f"scale {list(self.scale.shape)}", f"{list(want)}")
        t = self.tensor_scale
        if (t is not None) != (self.spec.qtype is QType.FP4_E2M1) or (t is not None and t.shape != ()):
            raise bad("no tensor_scale" if t is None else f"tensor_scale {list(t.shape)}", "a single one, exactly for FP4")
        for scale in (self.scale, t):
            if scale is not None and not positive(scale):
                raise bad("a scale that is zero, negative or not finite", "positive scales")
        low, high = int(self.spec.qtype.low), int(self.spec.qtype.high)
        if not self.spec.qtype.integer:
            if not np.isfinite(self.codes.astype(np.float32)).all():
                raise bad("codes that are not a number", "finite codes")
        elif self.codes.size and (self.codes.min() < low or self.codes.max() > high):
            raise bad(f"codes in [{self.codes.min()}, {self.codes.max()}]", f"[{low}, {high}]")
        z = self.zero_point
        if (z is None) != self.spec.symmetric or (z is not None and (z.shape != want or not np.isfinite(z).all())):
            raise bad("no such zero_point" if z is None else f"zero_point {list(z.shape)}", "a finite one [N], exactly when asymmetric")

    def scaled_codes(self) -> npt.NDArray[np.float32]:
        """float32 [N, K]: codes * scale, without the zero point."""
        if self.tensor_scale is not None:
            return from_nvfp4(self.codes, self.scale, self.tensor_scale)
        return np.asarray(self.codes.astype(np.float32) * _spread(self.scale.astype(np.float32), self.codes.shape), np.float32)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """float32 [N, K]."""
        offset = zero_offset(self.scale, self.zero_point)
        return self.scaled_codes() if offset is None else self.scaled_codes() + offset[:, None]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, k = self.codes.shape
        return n, k

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Type of the scale."""
        return self.scale.dtype

    def stored(self, *, transposed: bool = False) -> Stored:
        """See `QWeight.stored`."""
        codes, scale = (np.asarray(a.T if transposed else a, order="C") for a in (self.codes, self.scale))
        if self.spec.qtype.bits <= 4:
            codes = pack_int4(codes) if self.spec.qtype.integer else pack_fp4(codes)
        return Stored(codes, scale, self.zero_point, self.tensor_scale)

    def read(self) -> QTensor:
        """Itself."""
        return self


def scale_shape(shape: tuple[int, ...], spec: QuantSpec) -> tuple[int, ...]:
    """Shape of the scale of an [N, K] weight; InputError if the group size does not divide K."""
    n, k = shape
    match spec.granularity:
        case Granularity.PER_TENSOR:
            return ()
        case Granularity.PER_CHANNEL:
            return (n,)
        case Granularity.PER_GROUP if spec.group_size is not None:
            if k % spec.group_size:
                raise InputError(
                    found=f"{k} input channels",
                    wanted=f"a multiple of group_size {spec.group_size}",
                    where=f"weight [{n}, {k}]",
                    fix=f"use a group_size that divides {k}, or keep the layer in floating point",
                )
            return (n, k // spec.group_size)
    raise ValueError(f"no weight scale for {spec}")


def _spread(scale: Array, shape: tuple[int, ...]) -> Array:
    """Repeat a scale over the elements of an [N, K] weight that share it."""
    if scale.ndim == 2:
        return np.repeat(scale, shape[1] // scale.shape[1], axis=1)
    return scale[:, None] if scale.ndim == 1 else scale


def positive(scale: Array) -> bool:
    """Whether every scale is a positive number."""
    wide = scale.astype(np.float32)
    return bool(np.isfinite(wide).all() and (wide > 0).all())


def weight_scale(absmax: Array, spec: QuantSpec, scale_dtype: Any) -> Array:
    """`max(absmax / high, EPS)` in float32, rounded to `scale_dtype`; absmax float32, of each group."""
    return _rounded(np.maximum(absmax / np.float32(spec.qtype.high), np.float32(EPS)), scale_dtype)


def nearest_scale(weight: npt.NDArray[np.float32], spec: QuantSpec, scale_dtype: Any) -> Array:
    """`weight_scale` of every group of an [N, K] weight, by its greatest absolute value."""
    shape = scale_shape(weight.shape, spec)
    groups = weight.reshape(*shape, -1) if shape else weight.reshape(-1)
    return weight_scale(np.asarray(np.abs(groups).max(-1)), spec, scale_dtype)


OFFSET = "_offset"  # behind the name of a weight in a graph: what `zero_offset` says


def zero_offset(scale: Array, zero_point: Array | None) -> npt.NDArray[np.float32] | None:
    """What every weight of a row is off by without the zero point: -scale * zero_point, float32 [N]."""
    return None if zero_point is None else np.asarray(-scale.astype(np.float32) * zero_point, np.float32)


def asymmetric_grid(lowest: Array, highest: Array, spec: QuantSpec, scale_dtype: Any) -> tuple[Array, npt.NDArray[np.float32]]:
    """Scale and zero point, a whole number, of ranges [N] that are widened to hold 0: ViDiT-Q (arXiv 2406.02540), min-max.

    scale = (highest - lowest) / (high - low); zero_point = low - rint(lowest / scale), so that 0 has a code of its own.
    """
    low, high = np.float32(spec.qtype.low), np.float32(spec.qtype.high)
    lowest, highest = np.minimum(lowest, np.float32(0)), np.maximum(highest, np.float32(0))
    # Halves, since the difference of two finite numbers need not be finite.
    span = (highest / 2 - lowest / 2) / ((high - low) / 2)
    scale = _rounded(np.maximum(span, np.float32(EPS)), scale_dtype)
    zero_point = np.clip(low - np.rint(lowest / scale.astype(np.float32)), low, high)
    return scale, np.asarray(zero_point, np.float32)


def _rounded(scale: Array, dtype: Any) -> Array:
    # A float16 scale has no value between 0 and 6e-8: the smallest normal one stands for "all zero" then.
    return np.asarray(np.maximum(np.asarray(scale), np.finfo(dtype).tiny).astype(dtype))


def quantize_weight(
    weight: Array,
    spec: QuantSpec,
    scale: Array | None = None,
    scale_dtype: Any = np.float32,
    zero_point: npt.NDArray[np.float32] | None = None,
) -> QTensor:
    """Round an [N, K] weight to nearest, ties to even, in float32: `codes = clip(rint(weight / scale + zero_point))`.

    Floating-point codes are those of `vditc.float_codes`; FP4 takes no `scale`, its scales are its own.

    Without `scale`, it is `max(absmax / high, EPS)` of each group, or `asymmetric_grid`. The scale is rounded to `scale_dtype` before
    it divides, so codes and stored scale fit each other. An asymmetric spec takes both `scale` and `zero_point` or neither.
    """
    weight = np.asarray(weight, np.float32)
    scale_shape(weight.shape, spec)  # InputError when the groups do not fit, with or without a scale
    if spec.qtype is QType.FP4_E2M1:
        if scale is not None:
            raise ValueError(f"a scale for {spec}")
        whole = tensor_scale(np.abs(weight).max(initial=0))
        codes, scale = nvfp4(weight, whole)
        return QTensor(codes, scale, spec, tensor_scale=whole)
    if scale is not None:
        scale = _rounded(scale, scale_dtype)
    elif spec.symmetric:
        scale = nearest_scale(weight, spec, scale_dtype)
    else:
        scale, zero_point = asymmetric_grid(weight.min(-1), weight.max(-1), spec, scale_dtype)
    ratio = weight / _spread(scale.astype(np.float32), weight.shape)
    if zero_point is not None:
        ratio += zero_point[:, None]
    if not spec.qtype.integer:
        return QTensor(to_codes(ratio, spec.qtype), scale, spec)
    codes = np.clip(np.rint(ratio), spec.qtype.low, spec.qtype.high).astype(np.int8)
    return QTensor(codes, scale, spec, zero_point)


def pack_int4(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """int8 codes in [-8, 7], even count -> uint8, two a byte, the first in the low nibble (as ONNX INT4)."""
    flat = codes.reshape(-1, 2)
    return ((flat[:, 0] & 15) | ((flat[:, 1] & 15) << 4)).astype(np.uint8)


def unpack_int4(packed: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """The inverse of `pack_int4`."""
    nibbles = np.stack([packed & 15, packed >> 4], -1).astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(shape)
