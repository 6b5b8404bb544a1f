"""A tensor's bytes without its array: weights of a data file are not mapped, since mapped pages and unpacked codes would stay in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def tensor_bytes(tensor: ir.TensorProtocol) -> npt.NDArray[np.uint8]:
    """As a file stores them, four-bit codes two a byte; read now, and the caller's own."""
    if not isinstance(tensor, ir.ExternalTensor):
        return np.frombuffer(bytearray(tensor.tobytes()), np.uint8)
    return np.fromfile(Path(str(tensor.path)), np.uint8, tensor.nbytes, offset=tensor.offset or 0)
