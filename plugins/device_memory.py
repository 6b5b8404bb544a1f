"""Memory of the device that a library computes on, for numpy arrays: nothing but the library itself is needed."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vditc.plugins.library import KernelError, Library

Array = npt.NDArray[Any]
_GUARD = 256  # bytes behind every piece that nobody may write
_POISON = 0xA5  # what nobody wrote: no zeros, no plausible codes


class DeviceMemory:
    """Pieces of device memory that go back when the block ends."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._pieces: dict[int, int] = {}  # address -> bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for address in self._pieces:
            self._library.native.vditc_device_free(ctypes.c_void_p(address))
        self._pieces.clear()

    def empty(self, nbytes: int) -> int:
        """Address of that many bytes, all poison. KernelError when there is no memory."""
        found = ctypes.c_void_p()
        self._library.call("vditc_device_allocate", ctypes.c_size_t(nbytes + _GUARD), ctypes.byref(found))
        assert found.value is not None
        self._pieces[found.value] = nbytes
        self._copy(found.value, np.full(nbytes + _GUARD, _POISON, np.uint8))
        return found.value

    def put(self, array: Array) -> int:
        """Address of a copy of the array."""
        address = self.empty(array.nbytes)
        self._copy(address, np.ascontiguousarray(array))
        return address

    def get(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """A copy of what lies there, behind all work of the default stream. KernelError when that failed or wrote behind the end."""
        nbytes = self._pieces[address]
        both = np.empty(nbytes + _GUARD, np.uint8)
        self._library.call("vditc_device_copy", _host(both), ctypes.c_void_p(address), ctypes.c_size_t(both.nbytes))
        if (wrong := np.flatnonzero(both[nbytes:] != _POISON)).size:
            raise KernelError(f"byte {wrong[0]} behind the end of {nbytes} bytes was written")
        found: Array = both[:nbytes].view(dtype).reshape(shape)
        return found

    def check(self) -> None:
        """KernelError when work failed, or something was written behind the end of any piece."""
        for address, nbytes in self._pieces.items():
            self.get(address, (nbytes,), np.uint8)

    def _copy(self, address: int, array: Array) -> None:
        self._library.call("vditc_device_copy", ctypes.c_void_p(address), _host(array), ctypes.c_size_t(array.nbytes))


def _host(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
