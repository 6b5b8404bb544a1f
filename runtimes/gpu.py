"""Which GPU is present, asked of the driver alone."""

from __future__ import annotations

import ctypes

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}


def compute_capability() -> str | None:
    """Its architecture, "sm_90", of the first visible GPU; None without a driver or without a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device) or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device):
        return None
    return f"sm_{major.value}{minor.value}"
