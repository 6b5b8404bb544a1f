"""Checks that a portable graph holds the integer codes and scales of a calibration, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.calibration import Calibration, LayerCalibration
from vditc.errors import PrecisionError
from vditc.scheme import zero_offset


def check_codes(model: Path, calibration: Calibration) -> None:
    """PrecisionError naming the layers whose `L.weight` ([K, N]), `L.weight_scale` or `L.weight_offset` differ from the calibration."""
    stored = ir.load(model).graph.initializers

    def tensor(name: str) -> ir.TensorProtocol | None:
        return stored[name].const_value if name in stored else None

    def holds_offset(name: str, offset: npt.NDArray[np.float32] | None) -> bool:
        found = tensor(name)
        return offset is None if found is None else offset is not None and np.array_equal(found.numpy(), offset)

    def holds(name: str, layer: LayerCalibration) -> bool:
        codes, scale = tensor(f"{name}.weight"), tensor(f"{name}.weight_scale")
        if codes is None or scale is None:
            return False
        dtype = ir.DataType.INT4 if layer.weight.spec.qtype.bits <= 4 else ir.DataType.INT8
        wanted = layer.weight.stored(transposed=True)
        return (
            (codes.dtype, tuple(codes.shape)) == (dtype, layer.weight.shape[::-1])
            and np.array_equal(np.frombuffer(codes.tobytes(), np.uint8), wanted.codes.reshape(-1).view(np.uint8))
            and tuple(scale.shape) == wanted.scale.shape
            and np.array_equal(scale.numpy().astype(np.float32), wanted.scale.astype(np.float32))
            and holds_offset(f"{name}.weight_offset", zero_offset(wanted.scale, wanted.zero_point))
        )

    wrong = [name for name, layer in calibration.layers.items() if not holds(name, layer)]
    if wrong:
        raise PrecisionError(
            found=f"other codes or scales in {len(wrong)} layers, first {', '.join(wrong[:3])}",
            wanted="the calibration's",
            where=str(model),
            fix="export again from this calibration",
        )
