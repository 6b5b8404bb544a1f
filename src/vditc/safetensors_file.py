"""Memory-mapped safetensors files, checked before anything is read from them.

Layout (the safetensors format): 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}},
then the tensors' bytes. numpy has no bfloat16; ml_dtypes lends it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from vditc.errors import InputError
from vditc.files import whole_file

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_FLOATS = frozenset(np.dtype(DTYPES[name]) for name in ("F64", "F32", "F16", "BF16", "F8_E4M3"))
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is a floating-point type of a safetensors file."""
    return dtype in _FLOATS


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a tensor's bytes are."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int  # from the start of the file, bytes
    nbytes: int

    def read(self) -> npt.NDArray[Any]:
        """A read-only memory map of the tensor."""
        if self.nbytes == 0:
            return np.zeros(self.shape, self.dtype)
        flat = np.memmap(self.path, np.uint8, "r", self.offset, (self.nbytes,))
        return flat.view(self.dtype).reshape(self.shape)


def read_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Entries by tensor name, and the metadata; InputError when the file is missing, cut short or inconsistent."""

    def bad(found: str) -> InputError:
        return InputError(found=found, wanted="a whole safetensors file", where=str(path), fix="copy or download the file again")

    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            first = f.read(8)
            if first == b"version ":
                raise InputError(
                    found="a git-lfs pointer", wanted="a whole safetensors file", where=str(path), fix="fetch it with git lfs pull"
                )
            length = int.from_bytes(first, "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise bad(f"{size} bytes with a header of {length}")
            header: dict[str, Any] = json.loads(f.read(length))
    except OSError as error:
        raise bad(f"no readable file ({error.strerror})") from error
    except ValueError as error:
        raise bad(f"a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise bad(f"a header that is a JSON {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    entries, expected = {}, 8 + length
    for name, info in header.items():
        if isinstance(info, dict) and isinstance(kind := info.get("dtype"), str) and kind not in DTYPES:
            raise InputError(
                found=f"tensor {name} of type {kind}", wanted=f"one of {', '.join(DTYPES)}", where=str(path), fix="convert the checkpoint"
            )
        try:
            dtype, shape = np.dtype(DTYPES[info["dtype"]]), tuple(int(n) for n in info["shape"])
            begin, end = map(int, info["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise bad(f"tensor {name} described as {info!r}") from error
        nbytes = math.prod(shape) * dtype.itemsize
        if begin < 0 or min(shape, default=0) < 0 or end - begin != nbytes:
            raise bad(f"tensor {name} {dtype}{list(shape)} in {end - begin} bytes")
        entries[name] = TensorEntry(path, dtype, shape, 8 + length + begin, nbytes)
        expected = max(expected, 8 + length + end)
    if size != expected:
        raise bad(f"{size} bytes where its header promises {expected}")
    return entries, metadata


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write a whole file or none; the same tensors and metadata give the same bytes if there is at most one metadata key."""
    # safetensors writes the memory as it lies: an array in another than C order would come back scrambled.
    ordered = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with whole_file(path) as temporary:
        save_file(ordered, temporary, dict(metadata) if metadata is not None else None)
