"""The library for CUDA 12.6, JetPack 6: kernels by that CUDA's NVRTC, the host's half by g++ alone.

PyPI has no nvcc of CUDA 12, and a driver of CUDA 12.6 takes no machine code of CUDA 13's compiler, whose cubins are of a newer ABI. Its NVRTC
is there, runs on any x86-64 machine, and makes cubins for sm_87, which the library loads through the driver (native/driver.h).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vditc.errors import InputError
from vditc.plugins.toolkit import cxx_version, find_cxx
from vditc.plugins.wheels import unpacked

if TYPE_CHECKING:
    from vditc.plugins.build import Wanted

NVRTC = "nvidia-cuda-nvrtc-cu12==12.6.85"


def find_nvrtc(cache: Path) -> Path:
    """libnvrtc.so.12: VDITC_NVRTC_LIBRARY, or of the wheel, unpacked in the cache."""
    if said := os.environ.get("VDITC_NVRTC_LIBRARY"):
        if Path(said).is_file():
            return Path(said).resolve()
        raise InputError(found=f"no {said}", wanted="libnvrtc.so.12 of CUDA 12.6", where="VDITC_NVRTC_LIBRARY", fix="correct or unset it")
    instead = "connect to PyPI once, or set VDITC_NVRTC_LIBRARY to libnvrtc.so.12 of a CUDA 12.6"
    return next((unpacked(NVRTC, cache, instead=instead) / "nvidia" / "cuda_nvrtc" / "lib").glob("libnvrtc.so.*"))


def settings(wanted: Wanted, cache: Path) -> tuple[dict[str, Any], list[str]]:
    """What the library is made of, and CMake's options for it."""
    cxx = find_cxx(wanted.machine)
    library = find_nvrtc(cache)
    version = NVRTC.partition("==")[2] if cache in library.parents else str(library)
    options = [
        "-DVDITC_NVRTC=ON",
        f"-DVDITC_NVRTC_LIBRARY={library}",
        f"-DVDITC_ARCHITECTURES={';'.join(wanted.architectures)}",
        f"-DCMAKE_CXX_COMPILER={cxx}",
    ]
    return {"cuda": version, "cxx": cxx_version(cxx), "cutlass": None}, options
