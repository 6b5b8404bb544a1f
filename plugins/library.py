"""The plugin library from Python, by its C interface (`native/vditc_plugins.h`): kernels outside of TensorRT."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from vditc.errors import InputError

ABI_VERSION = 1


NO_KERNEL = 2  # status: the tactic or the library has no code for this problem or GPU


class KernelError(RuntimeError):
    """A launch that did not happen, or an error of the device; the message is the library's, `status` a `vditc_status`."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Rows(ctypes.Structure):
    """`vditc_rows`: row r reads row (r / inner) % count."""

    _fields_ = [("inner", ctypes.c_int64), ("count", ctypes.c_int64)]


class Library:
    """One loaded library, real or emulated."""

    def __init__(self, path: Path) -> None:
        """InputError when it is no library of this version."""
        try:
            self.native = ctypes.CDLL(str(path))
            self.native.vditc_last_error.restype = ctypes.c_char_p
            found = int(self.native.vditc_abi_version())
        except (OSError, AttributeError) as error:
            raise InputError(
                found=str(error), wanted="libvditc_plugins.so", where=str(path), fix="build it: vditc plugins build"
            ) from error
        if found != ABI_VERSION:
            raise InputError(
                found=f"version {found} of its interface",
                wanted=f"version {ABI_VERSION}",
                where=str(path),
                fix="build it again: vditc plugins build",
            )

    @property
    def sm(self) -> int:
        """Compute capability of the current device, 10 major + minor."""
        return int(self.native.vditc_device_sm())

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status. KernelError with the library's message unless that is 0."""
        if status := int(getattr(self.native, name)(*arguments)):
            raise KernelError(f"{name}: {self.native.vditc_last_error().decode()} (status {status})", status)


def zeroed(structure: type[ctypes.Structure]) -> Any:
    """A struct whose first field, struct_bytes, is its size."""
    made = structure()
    made.struct_bytes = ctypes.sizeof(structure)
    return made
