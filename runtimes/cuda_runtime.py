"""The part of the CUDA runtime that running engines takes, by ctypes: a device needs no other package for it.

CUDA Runtime API, modules 6.4 (streams), 6.5 (events), 6.9 (memory), 6.11 (stream-ordered memory) and 6.30 (graphs), CUDA 12 and later.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import VditcError

NAMES = ("libcudart.so.13", "libcudart.so.12")
# Folders of PyPI's wheels nvidia-cuda-runtime (CUDA 13) and nvidia-cuda-runtime-cu12, below the namespace package nvidia.
WHEELS = ("cu13/lib", "cuda_runtime/lib")
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_NO_TIMING = 2  # cudaEventDisableTiming
_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: calls of other threads do not break a capture
Address = int


class Cuda:
    """The runtime library. Handles of streams, events, memory and graphs are plain integers."""

    def __init__(self, library: Any, name: str) -> None:
        self._library, self.name = library, name
        library.cudaGetErrorString.restype = ctypes.c_char_p

    @classmethod
    def load(cls) -> Cuda:
        """The library of VDITC_CUDART, the system's, or a wheel's; VditcError if there is none."""
        for name in candidates():
            with contextlib.suppress(OSError):
                return cls(ctypes.CDLL(name), name)
        raise VditcError(
            found="no CUDA runtime",
            wanted=" or ".join(NAMES),
            where="the library path, and the packages nvidia-cuda-runtime",
            fix="pip install nvidia-cuda-runtime, or name the file in VDITC_CUDART",
        )

    def call(self, function: str, *arguments: Any) -> None:
        """VditcError when the function returns an error."""
        if status := getattr(self._library, function)(*arguments):
            text = self._library.cudaGetErrorString(status)
            raise VditcError(
                found=f"{function}: error {status}, {text.decode() if text else 'without a text'}",
                wanted="a CUDA call that works",
                where=self.name,
                fix="see that the GPU is free and has enough memory, then run again",
            )

    def free_memory(self) -> int:
        """Bytes of the device that nobody has, any process counted."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def stream(self) -> int:
        """A stream that does not wait for the default one."""
        return self._made("cudaStreamCreateWithFlags", ctypes.c_uint(_NON_BLOCKING))

    def event(self) -> int:
        """An event that measures no time."""
        return self._made("cudaEventCreateWithFlags", ctypes.c_uint(_NO_TIMING))

    def allocate(self, nbytes: int, stream: int) -> Address:
        """Device memory, ordered by `stream`."""
        return self._made("cudaMallocAsync", ctypes.c_size_t(nbytes), ctypes.c_void_p(stream))

    def free(self, address: Address, stream: int) -> None:
        """Give device memory back, behind the work of `stream`."""
        self.call("cudaFreeAsync", ctypes.c_void_p(address), ctypes.c_void_p(stream))

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Host memory, uint8 [nbytes], that copies reach without a detour; `free_pinned` gives it back."""
        address = self._made("cudaMallocHost", ctypes.c_size_t(nbytes))
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (nbytes,))

    def free_pinned(self, array: npt.NDArray[np.uint8]) -> None:
        """The array may not be used after that."""
        self.call("cudaFreeHost", ctypes.c_void_p(array.ctypes.data))

    def copy(self, to: Address, of: Address, nbytes: int, kind: int, stream: int) -> None:
        """In the order of `stream`; `kind`: TO_DEVICE or TO_HOST."""
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(of)
        self.call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(nbytes), ctypes.c_int(kind), ctypes.c_void_p(stream))

    def record(self, event: int, stream: int) -> None:
        """`event` comes behind all work of `stream` so far."""
        self.call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def wait(self, stream: int, event: int) -> None:
        """Later work of `stream` comes behind `event`."""
        self.call("cudaStreamWaitEvent", ctypes.c_void_p(stream), ctypes.c_void_p(event), ctypes.c_uint(0))

    def finish(self, event: int) -> None:
        """Block until `event` has come; VditcError when work before it failed."""
        self.call("cudaEventSynchronize", ctypes.c_void_p(event))

    @contextlib.contextmanager
    def capture(self, stream: int) -> Iterator[list[int]]:
        """Work given to `stream` inside is not done but recorded; afterwards the list holds the executable graph."""
        self.call("cudaStreamBeginCapture", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL))
        made, graph = list[int](), ctypes.c_void_p()
        try:
            yield made
        finally:  # a capture that is left open makes the stream useless
            self.call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            made.append(self._made("cudaGraphInstantiate", graph, ctypes.c_ulonglong(0)))
        finally:
            self.call("cudaGraphDestroy", graph)

    def replay(self, graph: int, stream: int) -> None:
        """Do what was recorded."""
        self.call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        """Of `capture`."""
        self.call("cudaGraphExecDestroy", ctypes.c_void_p(graph))

    def destroy_stream(self, stream: int) -> None:
        """When its work is done."""
        self.call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def destroy_event(self, event: int) -> None:
        """Of `event`."""
        self.call("cudaEventDestroy", ctypes.c_void_p(event))

    def synchronize(self, stream: int) -> None:
        """Block until all of its work is done; VditcError when some of it failed."""
        self.call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def _made(self, function: str, *arguments: Any) -> int:
        made = ctypes.c_void_p()
        self.call(function, ctypes.byref(made), *arguments)
        assert made.value is not None
        return made.value


def candidates() -> list[str]:
    """Files and names to try, the user's own alone if it is set."""
    if own := os.environ.get("VDITC_CUDART"):
        return [own]
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(root) / sub for root in (spec.submodule_search_locations or () if spec else ()) for sub in WHEELS]
    return [*NAMES, *(str(folder / name) for folder in folders for name in NAMES)]
