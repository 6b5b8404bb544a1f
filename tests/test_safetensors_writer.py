"""Files written tensor by tensor are those that the safetensors library writes whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from vditc.errors import VditcError
from vditc.safetensors_file import DTYPES, read_header, write_tensors
from vditc.safetensors_writer import tensor_file


def plan(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: (a.dtype, a.shape) for name, a in arrays.items()}


def test_bytes_are_those_of_the_library(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays: dict[str, Any] = {f"{word}.{name}": rng.integers(0, 2, (3, 5)).astype(t) for name, t in DTYPES.items() for word in "ba"}
    arrays |= {"scalar": np.float32(3).reshape(()), "none": np.zeros((0, 4), np.int8), 'odd "näme"\n': np.ones(1, ml_dtypes.bfloat16)}
    metadata = {"vditc": '{"text": "ü \\u0001 \t \\\\"}'}
    write_tensors(tmp_path / "library", arrays, metadata)
    with tensor_file(tmp_path / "ours", plan(arrays), metadata) as put:
        for name in reversed(arrays):
            put(name, arrays[name])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()
    assert set(read_header(tmp_path / "ours")[0]) == set(arrays)


def test_any_memory_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int8).reshape(2, 3)
    with tensor_file(tmp_path / "t", {"a": (array.T.dtype, (3, 2))}, {}) as put:
        put("a", array.T)
    np.testing.assert_array_equal(read_header(tmp_path / "t")[0]["a"].read(), array.T)


@pytest.mark.parametrize(
    ("puts", "message"),
    [
        ([], "1 tensors never came, first a"),
        ([("a", np.zeros(2, np.int8))] * 2, "tensor a int8.* comes twice"),
        ([("b", np.zeros(2, np.int8))], "tensor b"),
        ([("a", np.zeros(3, np.int8))], r"tensor a int8\[3\] was not announced so"),
        ([("a", np.zeros(2, np.uint8))], "tensor a uint8"),
    ],
)
def test_what_was_not_announced_leaves_no_file(tmp_path: Path, puts: list[Any], message: str) -> None:
    with (
        pytest.raises(ValueError, match=message),
        tensor_file(tmp_path / "t", {"a": (np.dtype(np.int8), (2,))}, {}) as put,
    ):
        for name, array in puts:
            put(name, array)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    with (
        pytest.raises(VditcError, match=r"found [0-9,]+ bytes free; wanted 1,000,000,000,[0-9]{3} bytes free"),
        tensor_file(tmp_path / "t", {"a": (np.dtype(np.int8), (10**12,))}, {}),
    ):
        pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == []
