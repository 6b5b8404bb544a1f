"""Safetensors files written one tensor at a time, byte for byte as the safetensors library writes them whole."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.files import room_for, whole_file, write_at
from vditc.safetensors_file import DTYPES

Array = npt.NDArray[Any]
_NAMES = {np.dtype(t): name for name, t in DTYPES.items()}
# The library puts types in this order, the widest first, and names in theirs within a type.
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "F8_E4M3", "I8", "U8", "BOOL")


@contextlib.contextmanager
def tensor_file(
    path: Path, tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]
) -> Iterator[Callable[[str, Array], None]]:
    """Yields `put(name, array)`, to be called once for each of `tensors` (name -> type and shape), in any order.

    The file appears when the block ends well. VditcError when the disk is full; ValueError for an array that was not announced
    so, or a tensor that was not put.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offsets: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (_ORDER.index(_NAMES[item[1][0]]), item[0])):
        offsets[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin, left = 8 + len(text), set(tensors)

    with whole_file(path) as temporary, room_for(path, begin + end):
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_at(file, len(text).to_bytes(8, "little") + text, 0)

            def put(name: str, array: Array) -> None:
                if name not in left or (array.dtype, array.shape) != tensors[name]:
                    raise ValueError(f"{path}: tensor {name} {array.dtype}{list(array.shape)} was not announced so, or comes twice")
                left.remove(name)
                write_at(file, np.asarray(array, order="C").reshape(-1).view(np.uint8), begin + offsets[name])

            yield put
            if left:
                raise ValueError(f"{path}: {len(left)} tensors never came, first {min(left)}")
        finally:
            os.close(file)
