from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vditc.errors import InputError
from vditc.safetensors_file import read_header, write_tensors


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def test_reads_what_safetensors_wrote(file: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int8, torch.uint8, torch.bool)
    tensors = {str(k): torch.tensor([[0, 1, 1], [1, 0, 1]]).to(k) for k in kinds} | {
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.5),
    }
    save_file(tensors, file, {"note": "x"})
    entries, metadata = read_header(file)
    assert metadata == {"note": "x"} and entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        array = entries[name].read()
        assert array.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())
    assert entries["torch.bfloat16"].dtype == ml_dtypes.bfloat16


def test_arrays_in_any_memory_order_come_back(file: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    orders = {"fortran": np.asfortranarray(array), "turned": array.transpose(2, 0, 1), "reversed": array[:, ::-1], "scalar": array[0, 0, 0]}
    write_tensors(file, orders, {"note": "x"})
    entries, metadata = read_header(file)
    assert metadata == {"note": "x"}
    for name, want in orders.items():
        assert entries[name].shape == want.shape
        np.testing.assert_array_equal(entries[name].read(), want)


def test_maps_are_read_only(file: Path) -> None:
    save_file({"a": torch.ones(3)}, file)
    array = read_header(file)[0]["a"].read()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_missing_file(file: Path) -> None:
    with pytest.raises(InputError, match=r"a\.safetensors: found no readable file \(No such file.*wanted a whole safetensors file"):
        read_header(file)


@pytest.mark.parametrize("cut", [0, 4, 9, -1])
def test_file_cut_short(file: Path, cut: int) -> None:
    save_file({"a": torch.ones(3)}, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"found \d+ bytes (with a header of|where its header promises)"):
        read_header(file)


def test_git_lfs_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(InputError, match=r"found a git-lfs pointer; .*git lfs pull"):
        read_header(file)


def test_bytes_too_many(file: Path) -> None:
    save_file({"a": torch.ones(3)}, file)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(InputError, match="where its header promises"):
        read_header(file)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"{", "a header that is not JSON"),
        (b"\xff\xff", "a header that is not JSON"),
        ([1], "a header that is a JSON list"),
        ({"a": 1}, "tensor a described as 1"),
        (entry(dtype="F5"), "tensor a of type F5; wanted one of F64"),
        (entry(data_offsets=[0]), "tensor a described as"),
        (entry(data_offsets=["x", "y"]), "tensor a described as"),
        (entry(data_offsets=[0, 4]), r"tensor a float32\[2\] in 4 bytes"),
        (entry(data_offsets=[-8, 0]), r"tensor a float32\[2\] in 8 bytes"),
        (entry(shape=[-1, -2]), r"tensor a float32\[-1, -2\]"),
        (entry(data_offsets=[8, 16]), "where its header promises"),
    ],
)
def test_inconsistent_headers(file: Path, header: Any, found: str) -> None:
    with pytest.raises(InputError, match=f"found .*{found}"):
        read_header(write(file, header, bytes(8)))


def test_huge_header_is_not_read(file: Path) -> None:
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="with a header of 4611686018427387904"):
        read_header(file)
