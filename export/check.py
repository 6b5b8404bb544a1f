"""Checks that a portable graph holds the integer codes and scales of a calibration, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.calibration import Calibration
from vditc.errors import PrecisionError


def check_codes(model: Path, calibration: Calibration) -> None:
    """PrecisionError naming the layers whose initialisers `L.weight` ([K, N]) or `L.weight_scale` differ from the calibration."""
    stored = ir.load(model).graph.initializers

    def holds(name: str, wanted: npt.NDArray[Any]) -> bool:
        value = stored.get(name)
        if value is None or value.const_value is None:
            return False
        found = value.const_value.numpy()
        return found.shape == wanted.shape and np.array_equal(found.astype(np.float32), wanted.astype(np.float32))

    wrong = [
        name
        for name, layer in calibration.layers.items()
        if not (holds(f"{name}.weight", layer.weight.codes.T) and holds(f"{name}.weight_scale", layer.weight.scale.T))
    ]
    if wrong:
        raise PrecisionError(
            found=f"other codes or scales in {len(wrong)} layers, first {', '.join(wrong[:3])}",
            wanted="the calibration's",
            where=str(model),
            fix="export again from this calibration",
        )
