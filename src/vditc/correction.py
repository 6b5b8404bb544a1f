"""What is added to a quantized linear layer's output, so that it comes nearer to the full-precision one.

    y [..., N] += bias_correction + frames[t] * (xq alpha) beta        xq [..., K]: the dequantized input, t: the frame of its row

`bias_correction` is what a shift of the input took away (W shift). The rank-1 term is Q-VDiT's token-aware quantization estimator
(Feng et al., arXiv 2505.22167, section 3.2): alpha weighs input channels, beta output channels, and every latent frame has a factor.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BIAS, ALPHA, BETA, FRAMES = "bias_correction", "compensation.alpha", "compensation.beta", "compensation.frames"  # a layer's tensors


class FrameOrder(enum.Enum):
    """How the rows of a linear's input, all leading axes flattened, are made of clips, latent frames and the tokens of a frame."""

    FRAMES_FIRST = "frames_first"  # clip, frame, token: full attention, and spatial attention with frames as batch rows
    TOKENS_FIRST = "tokens_first"  # clip, token, frame: temporal attention

    def shape(self, clips: int, frames: int) -> tuple[int, int, int]:
        """What to reshape [rows] to, so that one axis is that of the frames; -1 is the tokens'."""
        return (clips, frames, -1) if self is FrameOrder.FRAMES_FIRST else (clips, -1, frames)

    def spread(self, frames: Any) -> Any:
        """Factors [T], an array or a tensor, to be multiplied with rows in `shape`."""
        return frames.reshape(1, -1, 1) if self is FrameOrder.FRAMES_FIRST else frames.reshape(1, 1, -1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """The correction of one layer, float32."""

    bias: npt.NDArray[np.float32] | None = None  # [N]
    alpha: npt.NDArray[np.float32] | None = None  # [K]
    beta: npt.NDArray[np.float32] | None = None  # [N]
    frames: npt.NDArray[np.float32] | None = None  # [T], for clips of T latent frames exactly
    order: FrameOrder | None = None  # of the input's rows, where there are frames

    def __post_init__(self) -> None:
        if (self.alpha is None) != (self.beta is None):
            raise ValueError("alpha without beta, or beta without alpha")
        if (self.frames is None) != (self.order is None) or (self.frames is not None and self.alpha is None):
            raise ValueError("frames without alpha, or without an order of the rows")
        if any(not np.isfinite(array).all() for array in self.tensors().values()):
            raise ValueError("a correction that is not finite")

    def tensors(self) -> dict[str, Array]:
        """What a file holds of it, by the names above."""
        both = ((BIAS, self.bias), (ALPHA, self.alpha), (BETA, self.beta), (FRAMES, self.frames))
        return {name: array for name, array in both if array is not None}


NONE = Correction()
