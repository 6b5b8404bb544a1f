"""Checks that a portable graph holds the codes and scales of a calibration, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.calibration import Calibration, LayerCalibration
from vditc.errors import PrecisionError
from vditc.export.weights import stored_type
from vditc.scheme import zero_offset


def check_codes(model: Path, calibration: Calibration) -> None:
    """PrecisionError naming the layers whose codes or scales differ from the calibration.

    They are the initialisers `L.weight` ([K, N]), `L.weight_scale`, `L.weight_offset` and `L.weight_tensor_scale`.
    """
    stored = ir.load(model).graph.initializers

    def tensor(name: str) -> ir.TensorProtocol | None:
        return stored[name].const_value if name in stored else None

    def holds_table(name: str, wanted: npt.NDArray[np.float32] | None) -> bool:
        found = tensor(name)
        return wanted is None if found is None else wanted is not None and np.array_equal(found.numpy(), wanted)

    def holds(name: str, layer: LayerCalibration) -> bool:
        codes, scale = tensor(f"{name}.weight"), tensor(f"{name}.weight_scale")
        if codes is None or scale is None:
            return False
        dtype = stored_type(layer.weight.spec.qtype)
        wanted = layer.weight.stored(transposed=True)
        return (
            (codes.dtype, tuple(codes.shape)) == (dtype, layer.weight.shape[::-1])
            and np.array_equal(np.frombuffer(codes.tobytes(), np.uint8), wanted.codes.reshape(-1).view(np.uint8))
            and tuple(scale.shape) == wanted.scale.shape
            and np.array_equal(scale.numpy().astype(np.float32), wanted.scale.astype(np.float32))
            and holds_table(f"{name}.weight_offset", zero_offset(wanted.scale, wanted.zero_point))
            and holds_table(f"{name}.weight_tensor_scale", wanted.tensor_scale)
        )

    wrong = [name for name, layer in calibration.layers.items() if not holds(name, layer)]
    if wrong:
        raise PrecisionError(
            found=f"other codes or scales in {len(wrong)} layers, first {', '.join(wrong[:3])}",
            wanted="the calibration's",
            where=str(model),
            fix="export again from this calibration",
        )
