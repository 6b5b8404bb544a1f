"""Engines built on this machine, several at a time as far as its memory goes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vditc.build_memory import available_memory, gigabytes
from vditc.pipeline.engine_task import EngineRequest, finished, start, stop
from vditc.runtimes.registry import backend
from vditc.target import Target

_POLL = 0.1  # seconds


class Order(NamedTuple):
    """An engine to build: the job's name for people, and about how many bytes of memory its builder takes."""

    name: str
    request: EngineRequest
    target: Target
    memory: int


class Event(NamedTuple):
    """A build began at `where`, or ended with `result`: see `vditc.pipeline.engine_task.finished`."""

    order: Order
    where: str
    result: Mapping[str, Any] | None = None


class Builds(Protocol):
    """What builds engines. Ended early (an exception, a generator that is closed), it ends the builds that run."""

    def run(self, orders: list[Order]) -> Generator[Event]:
        """Each order begins, maybe again where its worker was lost, and ends once. They are taken out of the list, which may be filled."""
        ...


class LocalBuilds:
    """`jobs` builds at a time. One more begins when the estimates of all that run, and its own, fit in `memory`.

    Without `memory`: what was free when nothing was running. What does not fit then, alone, fails.
    """

    def __init__(self, jobs: int, memory: int | None, note: Callable[[str], None], free: Callable[[], int] = available_memory) -> None:
        self.jobs, self.memory, self.note, self.free = jobs, memory, note, free

    def run(self, orders: list[Order]) -> Generator[Event]:
        """See `Builds`."""
        waiting: list[Order] = []
        running = dict[int, tuple[Order, subprocess.Popen[bytes], Path]]()
        told: set[str] = set()
        room = 0
        try:
            while orders or waiting or running:
                while orders:
                    order = orders.pop(0)
                    waiting.append(order if backend(order.target.backend).builds_here(order.target) else order._replace(memory=0))
                if not running:
                    room = self.free() if self.memory is None else self.memory
                for order in list(waiting):
                    taken = sum(o.memory for o, _, _ in running.values())
                    if len(running) < self.jobs and taken + order.memory <= room:
                        waiting.remove(order)
                        work = Path(order.request.root) / f"{order.request.out}.work"
                        child = start(order.request, work)
                        running[child.pid] = (order, child, work)
                        yield Event(order, "this machine")
                    elif not running:
                        waiting.remove(order)
                        yield Event(order, "this machine", {"error": _too_large(order, room)})
                    elif len(running) < self.jobs and order.name not in told:
                        told.add(order.name)
                        self.note(
                            f"{order.name} waits for memory: it takes about {gigabytes(order.memory)}, {gigabytes(room - taken)} are free"
                        )
                for pid, (order, child, work) in list(running.items()):
                    if child.poll() is not None:
                        del running[pid]
                        yield Event(order, "this machine", finished(child, work))
                time.sleep(_POLL)
        finally:
            for _, child, _ in running.values():
                stop(child)


def _too_large(order: Order, room: int) -> str:
    return (
        f"found {gigabytes(room)} of memory; wanted about {gigabytes(order.memory)}, which the builder needs; "
        "end other programs, say with --memory that it may take more, cut the engine (--segments auto), or choose a recipe of fewer bits "
        "or a larger machine"
    )
