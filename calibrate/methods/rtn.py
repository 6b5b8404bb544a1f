"""Round to nearest: every weight and every static activation range is taken as it is, the baseline of all methods.

Nagel et al., "A White Paper on Neural Network Quantization" (arXiv 2106.08295), eq. 4-7 with a symmetric grid and min-max ranges.

FP8 and NVFP4 codes are those of vditc.float_codes. nvidia-modelopt is not asked for them: its amax of an FP8 or NVFP4 tensor is the same
greatest magnitude, its FP8 cast and its NVFP4 packing give the same codes (a test holds the latter to ours), and its quantizers for
NVFP4 activations need a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from vditc.calibrate.methods.base import InputStatistics, Method, Quantized, rounded
from vditc.float_weight import FloatWeight
from vditc.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class RoundToNearest(Method):
    """Weights to the nearest code, activations by the greatest value that was seen."""

    name: ClassVar[str] = "rtn"
    float_codes: ClassVar[bool] = True

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Only static activations have a range to be found."""
        return scheme.activation is not None and scheme.activation.ranged

    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """See `Method.quantize`."""
        return {layer: rounded(weight, schemes[layer], statistics) for layer, weight in weights.items()}
