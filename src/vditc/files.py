"""Files that are whole or absent, and their digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vditc.errors import VditcError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or somebody's share of it
_PIECE = 16 << 20  # bytes of one system call


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renamed to it when the block ends well, removed otherwise.

    VditcError when another process is writing the same file. What a killed process left is written over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    held = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VditcError(
                found="another process that writes it", wanted="one at a time", where=str(path), fix="wait for it, or write elsewhere"
            ) from error
        try:
            yield temporary
            temporary.replace(path)
        except OSError as error:
            if error.errno in FULL and error.filename is None:  # of a file that is open: nobody has said which
                error.filename = str(path)
            raise
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        os.close(held)


@contextlib.contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """VditcError when the disk that `path` is to lie on has no `needed` bytes free, now or while the block runs."""
    free = shutil.disk_usage(path.parent).free

    def full(found: str) -> VditcError:
        return VditcError(
            found=found,
            wanted=f"{needed:,} bytes free",
            where=str(path),
            fix="free some space, or write to another disk; nothing of this file was left behind",
        )

    if free < needed:
        raise full(f"{free:,} bytes free")
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full(f"a full disk ({free:,} bytes were free at the start)") from error


def write_at(file: int, data: bytes | npt.NDArray[np.uint8], offset: int) -> None:
    """Write all of it into an open file, at a place."""
    view: memoryview[Any] = memoryview(data)  # type: ignore[arg-type] # numpy's arrays are buffers before Python 3.12 too
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done : done + _PIECE], offset + done)


def copy_range(source: int, begin: int, file: int, offset: int, count: int) -> None:
    """Copy bytes from one open file to a place in another, within the kernel where it can. EOFError when the source ends before."""
    done, native = 0, hasattr(os, "copy_file_range")
    while done < count:
        piece = min(count - done, _PIECE)
        if native:
            try:
                copied = os.copy_file_range(source, file, piece, begin + done, offset + done)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                    raise
                native = False  # another file system, or one that cannot
                continue
            if not copied:
                native = False  # some file systems say so instead
                continue
        else:
            data = os.pread(source, piece, begin + done)
            write_at(file, data, offset + done)
            copied = len(data)
        if not copied:
            raise EOFError(f"the file ends {count - done} bytes early")
        done += copied


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file or none."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def array_digest(array: npt.NDArray[Any]) -> str:
    """sha256 of type, shape and values."""
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def data_digest(data: Any) -> str:
    """sha256 of plain data, in hexadecimal."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
