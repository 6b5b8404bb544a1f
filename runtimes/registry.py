"""Backends by name."""

from __future__ import annotations

from vditc.errors import InputError
from vditc.runtimes.backend import Backend
from vditc.runtimes.cpu_backend import OnnxRuntime
from vditc.runtimes.tensorrt import TensorRT
from vditc.runtimes.tensorrt_rtx import TensorRTRTX

BACKENDS: dict[str, type[Backend]] = {b.name: b for b in (TensorRTRTX, TensorRT, OnnxRuntime)}


def backend(name: str) -> Backend:
    """The backend of that name; InputError if there is none."""
    if name not in BACKENDS:
        raise InputError(found=f"backend {name!r}", wanted=f"one of {', '.join(BACKENDS)}", where="--backend", fix="choose one of these")
    return BACKENDS[name]()
