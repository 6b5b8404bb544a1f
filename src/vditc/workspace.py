"""The unfinished bundle: `OUT.partial`, with a note of every stage that is done, renamed to OUT at the end.

A killed run leaves it behind. With `resume`, stages whose files are still as they were written are not run again; since
every stage is deterministic, the finished bundle is the same as an uninterrupted run's, byte for byte.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vditc.errors import InputError
from vditc.files import sha256, write_text

NOTES = ".stages.json"
SCRATCH = ".work"


@dataclasses.dataclass
class Workspace:
    """Where a compile works."""

    out: Path
    job: str  # digest of everything that the result depends on
    stages: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The unfinished bundle."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def scratch(self) -> Path:
        """Files that are not part of the bundle, kept for a resumed run."""
        return self.path / SCRATCH

    @classmethod
    def start(cls, out: Path, job: str, *, resume: bool, force: bool) -> Workspace:
        """Refuse to overwrite; begin, or go on with, the unfinished bundle."""
        space = cls(out, job)
        if out.exists() and not force:
            raise InputError(
                found=f"{out} exists", wanted="a path that does not exist", where="-o", fix="choose another, or --force to replace it"
            )
        if space.path.exists() and not resume and not force:
            raise InputError(
                found=f"{space.path}, left by an interrupted run",
                wanted="no unfinished bundle",
                where="-o",
                fix="--resume to go on with it, or --force to start again",
            )
        if resume and space.path.exists():
            space._read()
        elif space.path.exists():
            shutil.rmtree(space.path)
        space.scratch.mkdir(parents=True, exist_ok=True)
        space._write()
        return space

    def stage(self, name: str, run: Callable[[], Any], outputs: tuple[str, ...]) -> Any:
        """Run a stage unless it is done; returns its facts (plain data), fresh or remembered.

        `outputs` are the shell patterns of the files that it writes.
        """
        if name in self.stages and all(self._intact(n, d) for n, d in self.stages[name]["files"].items()):
            return self.stages[name]["facts"]
        began = time.monotonic()
        facts = json.loads(json.dumps(run()))  # as a resumed run would read them
        written = sorted({p for pattern in outputs for p in self.path.glob(pattern) if p.is_file()})
        files = {p.relative_to(self.path).as_posix(): sha256(p) for p in written}
        self.stages[name] = {"facts": facts, "files": files, "seconds": round(time.monotonic() - began, 2)}
        self._write()
        return facts

    def finish(self) -> None:
        """Rename the unfinished bundle to its final place; the bundle it replaces goes last."""
        shutil.rmtree(self.scratch)
        (self.path / NOTES).unlink()
        old = self.out.with_name(self.out.name + ".old")
        if self.out.exists():
            self.out.rename(old)
        self.path.rename(self.out)
        if old.exists():
            shutil.rmtree(old)

    def discard(self) -> None:
        """Remove the unfinished bundle: bad input leaves nothing behind."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _intact(self, name: str, wanted: str) -> bool:
        file = self.path / name
        return file.is_file() and sha256(file) == wanted

    def _read(self) -> None:
        try:
            data = json.loads((self.path / NOTES).read_text())
        except (OSError, ValueError):
            data = {"job": None, "stages": {}}  # killed before the first note: nothing to go on with
        if data["job"] not in (None, self.job):
            raise InputError(
                found=f"{self.path} of another job",
                wanted="the same model, recipe, targets and options",
                where="--resume",
                fix="repeat the first command's options, or --force to start again",
            )
        self.stages = data["stages"]

    def _write(self) -> None:
        write_text(self.path / NOTES, json.dumps({"job": self.job, "stages": self.stages}, sort_keys=True))
