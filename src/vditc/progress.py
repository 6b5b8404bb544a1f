"""How a stage reports progress without knowing who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """A watcher of stages. The CLI shows bars with the time left; tests pass SILENT."""

    def task(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Callable[[], None]]:
        """`with progress.task("calibrate", 32) as advance:` then `advance()` after each of the 32 parts.

        `done`: parts that an earlier run did. They are not advanced, and say nothing of how fast this one is.
        """
        ...

    def note(self, text: str) -> None:
        """One line that a person should read."""
        ...


class _Silent:
    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        yield lambda: None

    def note(self, text: str) -> None:
        """Nobody listens."""


SILENT: Progress = _Silent()
