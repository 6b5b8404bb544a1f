from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from vditc import files
from vditc.errors import VditcError
from vditc.files import copy_range, room_for, sha256, whole_file, write_text


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"12")
        assert not path.exists() and temporary.parent == path.parent  # one file system: the rename is atomic
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"12"


def test_failed_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file(path) as temporary:
        temporary.write_text("first")
        with pytest.raises(VditcError, match="a: found another process that writes it"):
            write_text(path, "second")
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_text("much longer than what comes")
    write_text(tmp_path / "a", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "new"}


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "× –")
    assert (tmp_path / "a.txt").read_bytes() == "× –".encode()


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(data[:size])
    assert sha256(tmp_path / "a") == hashlib.sha256(data[:size]).hexdigest()


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(VditcError, match=r"a: found [0-9,]+ bytes free; wanted 1,000,000,000,000,000 bytes free"),
        room_for(tmp_path / "a", 10**15),
    ):
        pytest.fail("the block ran")


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    message = r"found a full disk \([0-9,]+ bytes were free at the start\); wanted 5 bytes free"
    with pytest.raises(VditcError, match=message) as caught, whole_file(path) as temporary, room_for(path, 5):
        temporary.write_bytes(b"12")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_other_failures_of_a_disk_are_not_a_full_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"), room_for(tmp_path / "a", 5):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("native", ["kernel", "other file system", "none", "nothing copied"])
def test_ranges_are_copied_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: str) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EXDEV, "another file system")

    if native == "other file system":
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    if native == "nothing copied":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    if native == "none":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(files, "_PIECE", 7)
    data = bytes(range(100))
    (tmp_path / "from").write_bytes(data)
    (tmp_path / "to").write_bytes(b"-" * 10)
    with (tmp_path / "from").open("rb") as source, (tmp_path / "to").open("r+b") as to:
        copy_range(source.fileno(), 20, to.fileno(), 3, 50)
        with pytest.raises(EOFError, match="20 bytes early"):
            copy_range(source.fileno(), 90, to.fileno(), 60, 30)
    assert (tmp_path / "to").read_bytes()[:53] == b"---" + data[20:70]
