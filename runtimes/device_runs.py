"""Runs of an engine on a device: buffers, copies that overlap with work, recorded launches."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vditc.errors import VditcError
from vditc.runtimes.cuda_runtime import TO_DEVICE, TO_HOST, Cuda

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


class Program(Protocol):
    """An engine that is loaded: one TensorRT context, or several that hand tensors on. Types are numpy's."""

    @property
    def inputs(self) -> Mapping[str, npt.DTypeLike]:
        """Name -> type."""
        ...

    @property
    def outputs(self) -> Mapping[str, npt.DTypeLike]:
        """Name -> type, the prediction first."""
        ...

    @property
    def generation(self) -> int:
        """Grows when memory of the program's own moves: what was recorded before is not to be replayed."""
        ...

    def resize(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Choose the inputs' shapes; returns the outputs'. InputError for a shape that the engine was not built for."""
        ...

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        """One run on device memory, in the order of `stream`; VditcError when it is not taken."""
        ...

    def release(self, stream: int) -> None:
        """Give memory of the program's own back, behind the work of `stream`."""
        ...


@dataclasses.dataclass
class _Buffer:
    """Memory of one tensor in both places; grows, and never shrinks."""

    nbytes: int
    address: int
    host: npt.NDArray[np.uint8]


class Pending:
    """A run that was begun. `result` may be asked once."""

    def __init__(self, runs: DeviceRuns, slot: _Slot, shapes: Mapping[str, Shape]) -> None:
        self._runs, self._slot, self._shapes = runs, slot, shapes

    def result(self) -> dict[str, Array]:
        """Output -> array, when the device has computed it; VditcError when it failed."""
        return self._runs.finished(self._slot, self._shapes)


class _Slot:
    """All that one run in flight needs."""

    def __init__(self, cuda: Cuda) -> None:
        self.buffers: dict[str, _Buffer] = {}
        self.uploaded, self.computed, self.done = cuda.event(), cuda.event(), cuda.event()
        self.graph: int | None = None  # of the shapes of the last run
        self.launched = False  # with these shapes, one by one
        self.generation = 0  # of the program, when they were recorded
        self.busy = False


class DeviceRuns:
    """Runs `program` with host arrays in and out. A context manager.

    Two runs may be in flight: while the device computes one, the inputs of the next are copied on a stream of their own, and the
    outputs of the one before on another. Memory is ordered by streams (cudaMallocAsync). From the third run of the same shapes on, a CUDA
    graph of all launches is replayed, until they change; where an engine cannot be recorded, launches are made one by one and a warning
    says so once.
    """

    def __init__(self, cuda: Cuda, program: Program, *, slots: int = 2, graphs: bool = True) -> None:
        self._cuda, self._program, self._graphs = cuda, program, graphs
        self._uploads, self._work, self._downloads = cuda.stream(), cuda.stream(), cuda.stream()
        self._slots = [_Slot(cuda) for _ in range(slots)]
        self._types = {**program.inputs, **program.outputs}
        self._shapes: dict[str, Shape] = {}  # of the last run's inputs

    def __enter__(self) -> DeviceRuns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def recorded(self) -> bool:
        """Whether launches are replayed from a graph."""
        return any(slot.graph is not None for slot in self._slots)

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Inside, launches are made one by one, and graphs of earlier ones are gone: the program may give up what they hold."""
        for stream in (self._uploads, self._work, self._downloads):
            self._cuda.synchronize(stream)
        for slot in self._slots:
            self._forget(slot)
        graphs, self._graphs = self._graphs, False
        try:
            yield
        finally:
            self._graphs = graphs

    def begin(self, feeds: Mapping[str, Array]) -> Pending:
        """Start one run; VditcError when no slot is free: ask earlier runs for their results first."""
        slot = next((slot for slot in self._slots if not slot.busy), None)
        if slot is None:
            raise VditcError(
                found=f"{len(self._slots)} runs whose results nobody has asked for",
                wanted="a free slot",
                where="engine",
                fix="take the result of the first run before the next begins",
            )
        arrays = {name: np.ascontiguousarray(feeds[name], dtype) for name, dtype in self._program.inputs.items()}
        given = {name: array.shape for name, array in arrays.items()}
        if given != self._shapes:  # a recording is of an engine's state, which its shapes change
            for other in self._slots:
                self._forget(other)
            self._shapes = given
        shapes: dict[str, Shape] = {**given, **self._program.resize(given)}
        grown = [self._room(slot, name, shape) for name, shape in shapes.items()]
        if any(grown):
            self._forget(slot)  # graphs hold addresses
        cuda = self._cuda
        for name, array in arrays.items():
            buffer = slot.buffers[name]
            buffer.host[: array.nbytes] = array.reshape(-1).view(np.uint8)
            cuda.copy(buffer.address, buffer.host.ctypes.data, array.nbytes, TO_DEVICE, self._uploads)
        cuda.record(slot.uploaded, self._uploads)
        cuda.wait(self._work, slot.uploaded)
        self._launch(slot)
        cuda.record(slot.computed, self._work)
        cuda.wait(self._downloads, slot.computed)
        for name in self._program.outputs:
            buffer = slot.buffers[name]
            cuda.copy(buffer.host.ctypes.data, buffer.address, self._bytes(name, shapes[name]), TO_HOST, self._downloads)
        cuda.record(slot.done, self._downloads)
        slot.busy = True
        return Pending(self, slot, shapes)

    def finished(self, slot: _Slot, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """See `Pending.result`."""
        self._cuda.finish(slot.done)
        slot.busy = False
        found = {}
        for name, dtype in self._program.outputs.items():
            raw = slot.buffers[name].host[: self._bytes(name, shapes[name])]
            found[name] = raw.copy().view(dtype).reshape(shapes[name])
        return found

    def close(self) -> None:
        """Give everything back; what is in flight is waited for."""
        for stream in (self._uploads, self._work, self._downloads):
            with contextlib.suppress(VditcError):  # what failed was said when its result was asked for
                self._cuda.synchronize(stream)
        for slot in self._slots:
            self._forget(slot)
            for buffer in slot.buffers.values():
                self._cuda.free(buffer.address, self._work)
                self._cuda.free_pinned(buffer.host)
            for event in (slot.uploaded, slot.computed, slot.done):
                self._cuda.destroy_event(event)
        self._slots = []
        self._program.release(self._work)
        for stream in (self._uploads, self._work, self._downloads):
            self._cuda.destroy_stream(stream)

    def _launch(self, slot: _Slot) -> None:
        addresses = {name: buffer.address for name, buffer in slot.buffers.items()}
        if slot.generation != self._program.generation:
            self._forget(slot)
        if slot.graph is not None:
            self._cuda.replay(slot.graph, self._work)
            return
        # The first run loads modules, chooses kernels and takes memory, which a capture may not.
        self._program.enqueue(addresses, self._work)
        if slot.generation != self._program.generation:
            self._forget(slot)
            slot.generation = self._program.generation
        if not self._graphs:
            return
        if not slot.launched:
            slot.launched = True
            return
        try:
            with self._cuda.capture(self._work) as made:
                self._program.enqueue(addresses, self._work)
            slot.graph = made[0]
        except VditcError as error:
            self._graphs = False
            warnings.warn(f"kernels are launched one by one: this engine is not recorded as a CUDA graph ({error.found})", stacklevel=3)

    def _room(self, slot: _Slot, name: str, shape: Shape) -> bool:
        """Whether new memory was needed for `name`."""
        nbytes, buffer = max(self._bytes(name, shape), 1), slot.buffers.get(name)
        if buffer is not None and buffer.nbytes >= nbytes:
            return False
        if buffer is not None:
            del slot.buffers[name]
            self._cuda.free(buffer.address, self._work)
            self._cuda.free_pinned(buffer.host)
        address = self._cuda.allocate(nbytes, self._work)
        try:
            slot.buffers[name] = _Buffer(nbytes, address, self._cuda.pinned(nbytes))
        except VditcError:
            self._cuda.free(address, self._work)
            raise
        self._cuda.record(slot.computed, self._work)
        self._cuda.wait(self._uploads, slot.computed)  # the copy may not come before the memory is there
        return True

    def _forget(self, slot: _Slot) -> None:
        if slot.graph is not None:
            self._cuda.destroy_graph(slot.graph)
        slot.graph, slot.launched = None, False

    def _bytes(self, name: str, shape: Shape) -> int:
        return math.prod(shape) * np.dtype(self._types[name]).itemsize
