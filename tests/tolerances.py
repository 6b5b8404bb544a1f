"""Every tolerance of the tests: relative L2 distance of a lowered graph's output from the canonical graph's, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# (type that the rest computes in, type of the activations' codes or None where none is quantized)
LOWERED: dict[tuple[str, str | None], float] = {
    # The passes for float32 change no arithmetic.
    ("fp32", None): 0.0,
    ("fp32", "int8"): 0.0,
    ("fp32", "int6"): 0.0,
    # float16 rounds by at most 2^-11 = 4.9e-4; errors of independent roundings average out over a few blocks.
    ("fp16", None): 1e-3,
    # A float16 rounding before QuantizeLinear moves values near a tie to the next code: a step of 1/127 of the greatest value.
    ("fp16", "int8"): 1e-2,
    # The same with steps of 1/31.
    ("fp16", "int6"): 4e-2,
}

# Tables instead of the time path, in float32: one row is computed by itself, not one for every clip, so that its products sum in
# another order; where that meets a tie of the rounding, a code flips.
TABLES: dict[str | None, float] = {None: 1e-6, "int8": 1e-2, "int6": 4e-2}


def relative_l2(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """|found - wanted| / |wanted|."""
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))
