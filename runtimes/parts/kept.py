"""What is opened once and stays open from call to call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Kept(Generic[K, T]):
    """Takes the place of a function that opens something for one use: opens it when it is first asked for, and closes it in `close`."""

    def __init__(self, opener: Callable[[K], AbstractContextManager[T]]) -> None:
        self._opener, self._stack = opener, contextlib.ExitStack()
        self._opened: dict[K, T] = {}

    @contextlib.contextmanager
    def __call__(self, key: K) -> Iterator[T]:
        """What the opener gives for `key`, open before and after."""
        if key not in self._opened:
            self._opened[key] = self._stack.enter_context(self._opener(key))
        yield self._opened[key]

    def close(self) -> None:
        """Close all of it; the next use opens it anew."""
        self._opened.clear()
        self._stack.close()
