"""Round to nearest: every weight and every static activation range is taken as it is, the baseline of all methods.

Nagel et al., "A White Paper on Neural Network Quantization" (arXiv 2106.08295), eq. 4-7 with a symmetric grid and min-max ranges.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from vditc.calibrate.methods.base import Array, InputStatistics, Method, Quantized
from vditc.errors import InputError
from vditc.float_weight import FloatWeight
from vditc.numerics import EPS, Granularity
from vditc.qweight import RoundedWeight
from vditc.scheme import QuantSpec, Scheme


def static_scale(absmax: Array, spec: QuantSpec) -> npt.NDArray[np.float32]:
    """`max(absmax / high, EPS)` in float32 of absmax [steps]: [steps] if `spec` is per step, else [] over all steps."""
    ranges = np.asarray(absmax if spec.per_step else absmax.max(), np.float32)
    return np.asarray(np.maximum(ranges / np.float32(spec.qtype.high), np.float32(EPS)), np.float32)


@dataclasses.dataclass(frozen=True)
class RoundToNearest(Method):
    """Weights to the nearest code, activations by the greatest value that was seen."""

    name: ClassVar[str] = "rtn"

    def check(self, scheme: Scheme) -> None:
        """Integer codes only; activations dynamic per token, or static per tensor."""
        for side, spec in (("weight", scheme.weight), ("activation", scheme.activation)):
            if spec is not None and not spec.qtype.integer:
                raise InputError(
                    found=f"{side} {spec.qtype.value}",
                    wanted="an integer type: method rtn cannot quantize to floating-point codes yet",
                    where=f"scheme {scheme}",
                    fix="use int8, int6, int4 or int3",
                )
        act = scheme.activation
        if act is not None and act.dynamic != (act.granularity is Granularity.PER_TOKEN):
            raise InputError(
                found=f"activation {act}",
                wanted="dynamic per_token, or static per_tensor",
                where=f"scheme {scheme}",
                fix='use granularity = "per_token" with dynamic = true',
            )

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Only static activations have a range to be found."""
        return scheme.activation is not None and not scheme.activation.dynamic

    def quantize(self, weight: FloatWeight, statistics: InputStatistics | None, scheme: Scheme) -> Quantized:
        """Weight scales are float16 where activations stay in floating point, float32 where they are quantized.

        A float16 scale halves what a group costs; next to integer activations the scale multiplies an accumulator, and is kept in the
        type of that product.
        """
        codes = RoundedWeight(weight, scheme.weight, np.float16 if scheme.activation is None else np.float32)
        if scheme.activation is None or scheme.activation.dynamic:
            return Quantized(codes, None)
        if statistics is None:
            raise ValueError(f"scheme {scheme} needs statistics")
        return Quantized(codes, static_scale(statistics.absmax, scheme.activation))
