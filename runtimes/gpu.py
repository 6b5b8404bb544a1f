"""Which GPU is present, asked of the driver alone."""

from __future__ import annotations

import ctypes
from typing import Any

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}


def compute_capability() -> str | None:
    """Its architecture, "sm_90", of the first visible GPU; None without a driver or without a GPU."""
    if (found := _first()) is None:
        return None
    driver, device = found
    major, minor = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device) or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device):
        return None
    return f"sm_{major.value}{minor.value}"


def gpu_name() -> str | None:
    """What its maker calls it, "NVIDIA H200", of the first visible GPU; None as above."""
    if (found := _first()) is None:
        return None
    driver, device = found
    name = ctypes.create_string_buffer(256)
    return None if driver.cuDeviceGetName(name, len(name), device) else name.value.decode(errors="replace")


def gpu_bytes() -> int | None:
    """Its memory; None as above."""
    if (found := _first()) is None:
        return None
    driver, device = found
    size = ctypes.c_size_t()
    return None if driver.cuDeviceTotalMem_v2(ctypes.byref(size), device) else size.value


def _first() -> tuple[Any, ctypes.c_int] | None:
    """The driver and its first device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    return None if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) else (driver, device)
