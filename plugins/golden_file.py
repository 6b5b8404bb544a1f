"""Golden files: one problem of one operator with its inputs and what must come out, as numpy alone computed it.

A safetensors file. Its metadata key `vditc` is JSON:

    {"version": 1, "operator": "qlinear", "about": "...", "problem": {...}, ...}

`problem` holds the fields of the C struct (`native/vditc_plugins.h`) that are not 0. Tensors have the names of that struct's pointers;
`NAME.tolerance`, float32 and broadcast to it, is how far an element of output NAME may be off; without one bits must be equal.
What an operator has beside that is said in `vditc.plugins.goldens`. Reading needs numpy alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError

Array = npt.NDArray[Any]
VERSION = 1
SUFFIX = ".safetensors"
# bfloat16 stays the bits that it is: numpy has none.
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "I32": np.int32, "U8": np.uint8}


@dataclasses.dataclass(frozen=True)
class Golden:
    """One file."""

    name: str
    operator: str
    problem: Mapping[str, Any]
    facts: Mapping[str, Any]  # all that the metadata says
    tensors: Mapping[str, Array]
    bfloat16: frozenset[str]  # tensors whose uint16 are bits of bfloat16

    def wide(self, name: str, bits: Array | None = None) -> npt.NDArray[np.float32]:
        """A floating-point tensor in float32; `bits`: another one of its type."""
        array = self.tensors[name] if bits is None else bits
        if name in self.bfloat16:
            return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return array.astype(np.float32)


def read_golden(path: Path) -> Golden:
    """InputError when the file is no golden file of this version."""

    def bad(found: str) -> InputError:
        return InputError(
            found=found, wanted=f"a golden file of version {VERSION}", where=str(path), fix="copy tests/plugins/goldens again"
        )

    try:
        data = path.read_bytes()
    except OSError as error:
        raise bad(str(error)) from error
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        facts = json.loads(header.pop("__metadata__")["vditc"])
        version, operator, problem = facts["version"], facts["operator"], facts["problem"]
        tensors = {}
        for name, entry in header.items():
            dtype = np.dtype(_TYPES[entry["dtype"]])
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[8 + size + begin : 8 + size + end], dtype).reshape(entry["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise bad(f"{type(error).__name__} {error}") from error
    if version != VERSION:
        raise bad(f"version {version}")
    bfloat16 = frozenset(name for name, entry in header.items() if entry["dtype"] == "BF16")
    return Golden(path.name.removesuffix(SUFFIX), operator, problem, facts, tensors, bfloat16)


def goldens_in(folder: Path) -> list[Golden]:
    """All of a folder, by name. InputError when there is none."""
    found = [read_golden(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    if not found:
        raise InputError(
            found="no golden file", wanted=f"files *{SUFFIX}", where=str(folder), fix="name tests/plugins/goldens or a copy of it"
        )
    return found
