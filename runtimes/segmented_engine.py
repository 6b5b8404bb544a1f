"""An engine in segments as one program: tensors between segments stay on the device, and all segments share their scratch memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vditc.errors import VditcError
from vditc.runtimes.cuda_runtime import Cuda
from vditc.runtimes.device_runs import Program, Shape

_SCRATCH = ""  # in the table of buffers, beside the names of tensors


class Segment(Program, Protocol):
    """A program whose scratch memory is given to it."""

    def scratch_bytes(self) -> int:
        """What a run of the shapes that were chosen last takes."""
        ...

    def take_scratch(self, address: int, nbytes: int) -> None:
        """Memory for the next run."""
        ...


class SegmentedEngine:
    """A `vditc.runtimes.device_runs.Program` of segments that run one after the other in the order of one stream.

    `outputs`: of the whole model; other outputs of segments are read by later ones. Memory between segments grows with the shapes that
    come, and `generation` with it, for recorded launches hold its addresses.
    """

    def __init__(self, cuda: Cuda, segments: Sequence[Segment], outputs: Sequence[str], where: str) -> None:
        self._cuda, self._segments = cuda, tuple(segments)
        self.inputs: dict[str, npt.DTypeLike] = {}
        made: dict[str, npt.DTypeLike] = {}
        for segment in self._segments:
            for name, dtype in segment.inputs.items():
                if name in made and np.dtype(made[name]) != np.dtype(dtype):
                    raise _apart(where, f"{name} of type {np.dtype(made[name])} for a segment that reads {np.dtype(dtype)}")
                if name not in made:
                    self.inputs[name] = dtype
            made |= segment.outputs
        if missing := [name for name in outputs if name not in made]:
            raise _apart(where, f"no segment that makes {', '.join(missing)}")
        self.outputs = {name: made[name] for name in outputs}
        self._between = {name: dtype for name, dtype in made.items() if name not in self.outputs}
        self._wanted: dict[str, int] = {}  # bytes, of the shapes that were chosen last
        self._buffers: dict[str, tuple[int, int]] = {}  # bytes, address
        self.generation = 0

    def resize(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """See `Program`."""
        known, scratch = dict(shapes), 0
        for segment in self._segments:
            known |= segment.resize({name: known[name] for name in segment.inputs})
            scratch = max(scratch, segment.scratch_bytes())
        sizes = {name: math.prod(known[name]) * np.dtype(dtype).itemsize for name, dtype in self._between.items()}
        self._wanted = {name: size for name, size in (sizes | {_SCRATCH: scratch}).items() if size}
        return {name: known[name] for name in self.outputs}

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        """See `Program`."""
        self._grow(stream)
        between = {name: address for name, (_, address) in self._buffers.items()}
        scratch = self._buffers.get(_SCRATCH)
        for segment in self._segments:
            if scratch is not None:
                segment.take_scratch(scratch[1], scratch[0])
            segment.enqueue({name: addresses[name] if name in addresses else between[name] for name in _tensors(segment)}, stream)

    def release(self, stream: int) -> None:
        """See `Program`."""
        for _, address in self._buffers.values():
            self._cuda.free(address, stream)
        self._buffers.clear()
        for segment in self._segments:
            segment.release(stream)

    def _grow(self, stream: int) -> None:
        """Behind the work of the stream so far, which reads the old memory."""
        for name, nbytes in self._wanted.items():
            have, address = self._buffers.get(name, (0, 0))
            if have >= nbytes:
                continue
            if have:
                del self._buffers[name]
                self._cuda.free(address, stream)
            self.generation += 1
            self._buffers[name] = (nbytes, self._cuda.allocate(nbytes, stream))


def _tensors(segment: Segment) -> tuple[Any, ...]:
    return (*segment.inputs, *segment.outputs)


def _apart(where: str, found: str) -> VditcError:
    return VditcError(found=found, wanted="segments of one engine", where=where, fix="build the engine again")
