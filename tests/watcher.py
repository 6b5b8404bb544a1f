"""Progress that tests can look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watcher:
    """Counts, keeps notes, and can kill the run at one of its parts."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.advanced: dict[str, int] = {}
        self.done: dict[str, int] = {}  # by an earlier run
        self.kill_at = kill_at

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        self.done[title] = done

        def advance() -> None:
            self.advanced[title] = self.advanced.get(title, 0) + 1
            if sum(self.advanced.values()) == self.kill_at:
                self.kill()

        yield advance
        assert self.advanced.get(title, 0) == total - done

    def note(self, text: str) -> None:
        self.notes.append(text)

    def kill(self) -> None:
        """As Ctrl-C."""
        raise KeyboardInterrupt
