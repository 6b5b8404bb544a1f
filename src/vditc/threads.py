"""Work spread over the cores of this machine. numpy and file operations release the interpreter's lock, so threads do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(task: Callable[[T], None], items: Sequence[T]) -> None:
    """Run `task` for every item, on all cores; the first error stops what has not begun, and is raised."""
    if len(items) < 2 or cores() < 2:
        for item in items:
            task(item)
        return
    with ThreadPoolExecutor(min(cores(), len(items))) as pool:
        for _ in pool.map(task, items):
            pass


def ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Results of jobs in their order. While the caller uses one, the next is being made: two are in memory at a time."""
    with ThreadPoolExecutor(1) as worker:
        pending = None
        for job in jobs:
            upcoming = worker.submit(job)
            if pending is not None:
                yield pending.result()
            pending = upcoming
            del upcoming
        if pending is not None:
            yield pending.result()
