"""Relative L2 distance of a lowered graph's output from the canonical graph's; what passes may do stands, with reasons, in the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.graph_passes.tolerances import TOLERANCES

# (type that the rest computes in, type of the activations' codes or None where none is quantized)
# The passes for float32 change no arithmetic.
LOWERED = {("fp32", codes): TOLERANCES["exact", codes] for codes in (None, "int8", "int6")} | {
    ("fp16", codes): TOLERANCES["fp16", codes] for codes in (None, "int8", "int6")
}


def relative_l2(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """|found - wanted| / |wanted|."""
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))
