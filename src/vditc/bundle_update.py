"""Changes to a finished bundle: by one command at a time, whole or not at all.

New files lie under hidden names in the bundle until all of them are there. Which name each gets is noted in `.build/commit.json`; then
they are renamed, manifests last, and the note goes. A command that was killed while it renamed leaves the note, and the next one ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vditc.bundle import MANIFEST
from vditc.errors import VditcError
from vditc.files import write_text

WORK = ".build"  # in a bundle: what commands that change it note there
_NOTE = f"{WORK}/commit.json"


@contextlib.contextmanager
def updating(bundle: Path) -> Iterator[None]:
    """Holds the bundle for this process, and ends what a killed one was renaming. VditcError when another process holds it."""
    (bundle / WORK).mkdir(exist_ok=True)
    with (bundle / WORK / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise VditcError(
                found=f"process {lock.read().strip() or 'unknown'}, which is building engines of this bundle",
                wanted="one command at a time",
                where=str(bundle),
                fix="wait for it, or end it; what it has finished is kept",
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _finish(bundle)
        yield


def commit(bundle: Path, staged: Mapping[str, Path]) -> None:
    """Give files of the bundle their names: name -> where it lies now, in the same bundle. The caller holds `updating`."""
    _finish(bundle)  # where a full disk or the like ended the one before
    write_text(bundle / _NOTE, json.dumps({name: path.relative_to(bundle).as_posix() for name, path in staged.items()}))
    _finish(bundle)


def _finish(bundle: Path) -> None:
    note = bundle / _NOTE
    if not note.is_file():
        return
    renames: dict[str, str] = json.loads(note.read_text())
    # A manifest after the files that it lists; the outer one, whose name has no folder, last.
    for name in sorted(renames, key=lambda n: (Path(n).name == MANIFEST, -len(Path(n).parts))):
        if (staged := bundle / renames[name]).exists():  # else it has its name
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            staged.replace(bundle / name)
    note.unlink()
