"""A CUDA runtime without a device. Work is done only when the host waits for it, and then as late and as much out of order as streams
and events allow: whatever is not ordered by them comes out wrong."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Callable
from typing import Any

FAILED = 700  # cudaErrorIllegalAddress
TOTAL = 1 << 30  # bytes of the device; pinned memory of the host counts as well


@dataclasses.dataclass
class Task:
    run: Callable[[], None]
    after: list[Task]
    done: bool = False


class CudaStub:
    """The functions that `vditc.runtimes.cuda_runtime.Cuda` calls. `fail`: function -> number of the call, from 1, that fails."""

    def __init__(self, **fail: int) -> None:
        self.fail, self.calls = fail, list[str]()
        self.streams: dict[int, list[Task]] = {}
        self.waits: dict[int, list[Task]] = {}  # stream -> events that its next task waits for
        self.events: dict[int, Task | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.memory: dict[int, Any] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.error: int = 0  # of work on the device
        self.late = set[int]()  # device memory that is not there, or no longer
        self.gone: dict[int, Any] = {}  # what work on the device has freed; its addresses do not come again
        self._next = 0x1000

    def __getattr__(self, name: str) -> Any:
        if name == "cudaGetErrorString":
            return lambda status: b"an illegal memory access" if status == FAILED else b"said the stub"
        function = vars(type(self))["on_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removeprefix("cuda")).lower()]

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if self.fail.get(name) == self.calls.count(name):
                return 2
            values = [a.value if hasattr(a, "value") else a for a in arguments]
            return int(function(self, *values) or 0)

        return call

    def work(self, stream: int, run: Callable[[], None]) -> None:
        """What a kernel would do."""
        if stream in self.capturing:
            self.capturing[stream].append(run)
            return
        tasks = self.streams[stream]
        tasks.append(Task(run, [*tasks[-1:], *self.waits.pop(stream, ())]))

    def do(self, task: Task) -> None:
        if task.done:
            return
        for before in reversed(task.after):  # what other streams do comes as early as it may
            self.do(before)
        task.done = True
        task.run()

    def on_mem_get_info(self, free: Any, total: Any) -> None:
        total._obj.value = TOTAL
        free._obj.value = TOTAL - sum(len(room) for room in self.memory.values())

    def on_stream_create_with_flags(self, out: Any, flags: int) -> None:
        self.streams[self._give(out)] = []

    def on_event_create_with_flags(self, out: Any, flags: int) -> None:
        self.events[self._give(out)] = None

    def on_malloc_async(self, out: Any, nbytes: int, stream: int) -> None:
        address = self._memory(out, nbytes)
        self.late.add(address)
        self.work(stream, lambda: self.late.discard(address))

    def on_malloc_host(self, out: Any, nbytes: int) -> None:
        self._memory(out, nbytes)

    def on_free_async(self, address: int, stream: int) -> None:
        room = self.memory.pop(address)
        self.late.add(address)
        self.work(stream, lambda: self._gone(address, room))

    def on_free_host(self, address: int) -> None:
        del self.memory[address]

    def on_memcpy_async(self, to: int, of: int, nbytes: int, kind: int, stream: int) -> None:
        kept = [room for at, room in self.memory.items() if at in (to, of)]
        assert len(kept) == 2 and all(len(room) >= nbytes for room in kept)

        def run() -> None:
            if self.late.intersection((to, of)):  # not there yet, in the order of its stream
                self.error = FAILED
            assert kept
            ctypes.memmove(to, of, nbytes)

        self.work(stream, run)

    def on_event_record(self, event: int, stream: int) -> None:
        self.work(stream, lambda: None)
        self.events[event] = self.streams[stream][-1]

    def on_stream_wait_event(self, stream: int, event: int, flags: int) -> None:
        if (task := self.events[event]) is not None:
            self.waits.setdefault(stream, []).append(task)

    def on_event_synchronize(self, event: int) -> int:
        if (task := self.events[event]) is not None:
            self.do(task)
        return self.error

    def on_stream_synchronize(self, stream: int) -> int:
        for task in self.streams[stream]:
            self.do(task)
        return self.error

    def on_stream_begin_capture(self, stream: int, mode: int) -> None:
        self.capturing[stream] = []

    def on_stream_end_capture(self, stream: int, out: Any) -> None:
        self.graphs[self._give(out)] = self.capturing.pop(stream)

    def on_graph_instantiate(self, out: Any, graph: int, flags: int) -> None:
        self.graphs[self._give(out)] = self.graphs[graph]

    def on_graph_launch(self, graph: int, stream: int) -> None:
        for run in self.graphs[graph]:
            self.work(stream, run)

    def on_graph_destroy(self, graph: int) -> None:
        del self.graphs[graph]

    def on_graph_exec_destroy(self, graph: int) -> None:
        del self.graphs[graph]

    def on_event_destroy(self, event: int) -> None:
        del self.events[event]

    def on_stream_destroy(self, stream: int) -> None:
        self.on_stream_synchronize(stream)
        del self.streams[stream]

    @property
    def left(self) -> int:
        """Handles and memory that nobody gave back."""
        return len(self.streams) + len(self.events) + len(self.graphs) + len(self.memory)

    def _give(self, out: Any) -> int:
        self._next += 1
        out._obj.value = self._next
        return self._next

    def _memory(self, out: Any, nbytes: int) -> int:
        room = (ctypes.c_uint8 * nbytes)()
        self._poison(room)
        out._obj.value = ctypes.addressof(room)
        self.memory[ctypes.addressof(room)] = room
        return ctypes.addressof(room)

    def _gone(self, address: int, room: Any) -> None:
        self._poison(room)
        self.gone[address] = room

    def _poison(self, room: Any) -> None:
        ctypes.memset(room, 0xDD, len(room))
