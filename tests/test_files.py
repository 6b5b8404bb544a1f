from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from vditc.files import sha256, whole_file, write_text


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


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "× –")
    assert (tmp_path / "a.txt").read_bytes() == "× –".encode()


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(data[:size])
    assert sha256(tmp_path / "a") == hashlib.sha256(data[:size]).hexdigest()
