"""A layer's weight as the checkpoint stores it, read by rows into memory that is given back: nothing stays mapped or cached."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.safetensors_file import TensorEntry

Array = npt.NDArray[Any]
Rows = Callable[[int, int], Array]  # start, stop -> rows [stop - start, ...]; any thread may call it


class Tensor(Protocol):
    """A stored tensor, or one that is computed when it is read."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def read(self) -> Array:
        """All of it."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayTensor:
    """A tensor in memory."""

    array: Array

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    def read(self) -> Array:
        """The array itself."""
        return self.array


def own_bytes(tensor: Tensor) -> TensorEntry | None:
    """Where a tensor's bytes are in a file; None for one that is computed, such as a weight with LoRAs added."""
    return tensor if type(tensor) is TensorEntry else None  # a subclass may say where its base lies


@contextlib.contextmanager
def open_rows(tensor: Tensor) -> Iterator[Rows]:
    """Read a tensor by its first axis. One that has no bytes of its own in a file is computed whole, once."""
    if (entry := own_bytes(tensor)) is None or not entry.nbytes:
        whole = tensor.read()
        yield lambda start, stop: whole[start:stop]
        return
    width = entry.nbytes // entry.shape[0]
    file = os.open(entry.path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, entry.offset, entry.nbytes, os.POSIX_FADV_WILLNEED)

        def read(start: int, stop: int) -> Array:
            raw = np.empty((stop - start) * width, np.uint8)
            read_at(file, raw, entry.offset + start * width, entry.path)
            return raw.view(entry.dtype).reshape(stop - start, *entry.shape[1:])

        yield read
    finally:
        os.close(file)


def read_at(file: int, into: npt.NDArray[np.uint8], offset: int, path: Path) -> None:
    """Fill an array of bytes from an open file; InputError, at `path`, when the file ends before."""
    view, done = memoryview(into), 0  # type: ignore[arg-type] # numpy's arrays are buffers before Python 3.12 too
    while done < len(view):
        if not (count := os.preadv(file, [view[done:]], offset + done)):
            raise InputError(
                found=f"the end of the file at byte {offset + done}",
                wanted=f"{offset + len(view)} bytes",
                where=str(path),
                fix="restore the file; it has changed while it was read",
            )
        done += count


@dataclasses.dataclass(frozen=True)
class FloatWeight:
    """A linear's weight [N, K] in floating point, not read yet."""

    tensor: Tensor
    where: str  # for errors: the file and the layer

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, k = self.tensor.shape
        return n, k

    def read(self) -> npt.NDArray[np.float32]:
        """The whole weight, float32 [N, K]; InputError when it is not finite."""
        weight = np.asarray(self.tensor.read(), np.float32)
        if not np.isfinite(weight).all():
            raise self.not_finite()
        return weight

    def not_finite(self) -> InputError:
        """What to raise when an element is infinite or NaN."""
        return InputError(found="weights that are not finite", wanted="finite weights", where=self.where, fix="use an undamaged checkpoint")
