"""Signs of codes that turn, on packed bytes and on files, against the plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from vditc.graph_passes.turned_codes import has_least_code, turned_codes

KINDS: dict[str, tuple[ir.DataType, Any, int]] = {
    "int4": (ir.DataType.INT4, ml_dtypes.int4, 7),
    "int8": (ir.DataType.INT8, np.int8, 127),
    "fp8": (ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, 8),
}


def stored(array: Any, dtype: ir.DataType, folder: Path, external: bool) -> ir.TensorProtocol:
    tensor = ir.tensor(array, dtype=dtype, name="w")
    if not external:
        return tensor
    (folder / "data").write_bytes(b"before" + tensor.tobytes() + b"behind")
    return ir.ExternalTensor("data", 6, tensor.nbytes, dtype, shape=ir.Shape(array.shape), name="w", base_dir=folder)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("n", [6, 7, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_turned_columns(kind: str, n: int, asymmetric: bool, external: bool, tmp_path: Path) -> None:
    dtype, array_type, high = KINDS[kind]
    random = np.random.default_rng(n)
    low = -high - 1 if asymmetric else -high
    codes = random.integers(low, high + 1, (5, n))
    turn = random.random(n) < 0.5
    turn[0] = True
    floating = kind == "fp8"
    wanted = np.where(turn, -1 - codes if asymmetric and not floating else -codes, codes)
    made = turned_codes(stored(codes.astype(array_type), dtype, tmp_path, external), turn, asymmetric=asymmetric, name="w.folded")
    assert (made.dtype, made.shape.numpy(), made.name) == (dtype, (5, n), "w.folded")
    assert np.array_equal(made.numpy().astype(np.float32), wanted)
    assert ir.tensor(wanted.astype(array_type), dtype=dtype).tobytes() == made.tobytes() or floating  # -0 is a code of its own


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("at", [(0, 0), (1, 2), None])
def test_the_code_without_a_counterpart(kind: str, at: tuple[int, int] | None, tmp_path: Path) -> None:
    dtype, array_type, high = KINDS[kind]
    codes = np.tile(np.array([high, -high, -1]), (2, 1))
    if at is not None:
        codes[at] = -high - 1
    assert has_least_code(stored(codes.astype(array_type), dtype, tmp_path, True)) == (at is not None)
