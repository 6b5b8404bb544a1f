"""Hashing that goes on beside other work until somebody asks for its result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from vditc.errors import InputError
from vditc.files import sha256


def hash_later(files: Sequence[Path]) -> Callable[[], list[str]]:
    """Start to hash the files in a thread; returns what waits for their digests, however often it is called.

    Waiting raises InputError when a file could not be read. The thread is a daemon: a program that ends early does not wait.
    """
    future: Future[list[str]] = Future()

    def run() -> None:
        try:
            future.set_result([sha256(f) for f in files])
        except OSError as error:
            future.set_exception(
                InputError(
                    found=f"no readable file any more ({error.strerror})",
                    wanted="the files as they were when the command began",
                    where=str(error.filename or files[0].parent),
                    fix="leave them in place while vditc works",
                )
            )
        except BaseException as error:
            future.set_exception(error)  # or the reader would wait for ever

    threading.Thread(target=run, daemon=True).start()
    return future.result
