"""The unfinished bundle: `OUT.partial`, with a note of every stage that is done, renamed to OUT at the end.

A killed run leaves it behind. With `resume`, stages whose files are still as they were written are not run again; since
every stage is deterministic, the finished bundle is the same as an uninterrupted run's, byte for byte.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
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
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)  # the same part by part, for people
    stages: dict[str, Any] = dataclasses.field(default_factory=dict)
    inner: str = ""  # of a bundle in the bundle

    @property
    def root(self) -> Path:
        """The unfinished bundle."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def path(self) -> Path:
        """The same, or the bundle in it that this workspace is for."""
        return self.root / self.inner

    @property
    def scratch(self) -> Path:
        """Files that are not part of the bundle, kept for a resumed run."""
        return self.root / SCRATCH / self.inner

    def within(self, inner: str) -> Workspace:
        """That of a bundle in this one, with stages of its own: begun, gone on with, finished and discarded with this one."""
        space = dataclasses.replace(self, inner=inner)
        space.scratch.mkdir(parents=True, exist_ok=True)
        return space

    @classmethod
    def start(cls, out: Path, job: str, about: Mapping[str, str] | None = None, *, resume: bool, force: bool) -> Workspace:
        """Refuse to overwrite; begin, or go on with, the unfinished bundle. `about`: what a resumed job is told to differ in."""
        space = cls(out, job, about or {})
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

    def stage(self, name: str, run: Callable[[], Any], outputs: tuple[str, ...], key: Any = None) -> Any:
        """Run a stage unless it is done; returns its facts (plain data), fresh or remembered.

        `outputs` are the shell patterns of the files that it writes. `key`: plain data that the stage depends on and the job's digest
        does not hold, since a job that is resumed may say it otherwise.
        """
        name = self._named(name)
        done = self.stages.get(name)
        if done is not None and done.get("key") == key and all(self._intact(n, d) for n, d in done["files"].items()):
            return done["facts"]
        began = time.monotonic()
        facts = json.loads(json.dumps(run()))  # as a resumed run would read them
        written = sorted({p for pattern in outputs for p in self.path.glob(pattern) if p.is_file()})
        files = {p.relative_to(self.path).as_posix(): sha256(p) for p in written}
        self.stages[name] = {"facts": facts, "files": files, "seconds": round(time.monotonic() - began, 2)}
        self.stages[name] |= {} if key is None else {"key": key}
        self._write()
        return facts

    def written_by(self, name: str) -> dict[str, str]:
        """Files of a stage that is done -> sha256."""
        files: dict[str, str] = self.stages[self._named(name)]["files"]
        return files

    def finish(self) -> None:
        """Rename the unfinished bundle to its final place; the bundle it replaces goes last."""
        shutil.rmtree(self.root / SCRATCH)
        (self.root / NOTES).unlink()
        old = self.out.with_name(self.out.name + ".old")
        if self.out.exists():
            self.out.rename(old)
        self.root.rename(self.out)
        if old.exists():
            shutil.rmtree(old)

    def discard(self) -> None:
        """Remove the unfinished bundle: bad input leaves nothing behind."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _named(self, stage: str) -> str:
        return f"{self.inner}: {stage}" if self.inner else stage

    def _intact(self, name: str, wanted: str) -> bool:
        file = self.path / name
        return file.is_file() and sha256(file) == wanted

    def _read(self) -> None:
        try:
            data = json.loads((self.root / NOTES).read_text())
        except (OSError, ValueError):
            data = {"job": None, "stages": {}}  # killed before the first note: nothing to go on with
        if data["job"] not in (None, self.job):
            began = data.get("about", {})
            parts = [part for part in {**began, **self.about} if began.get(part) != self.about.get(part)]
            changes = [f"{part}: began with {began.get(part, 'none')}, now {self.about.get(part, 'none')}" for part in parts]
            raise InputError(
                found=f"{self.root} of another job" + "".join(f"; {change}" for change in changes),
                wanted="the same model, recipe, targets and options",
                where="--resume",
                fix="repeat the first command's options, or --force to start again",
            )
        self.stages = data["stages"]

    def _write(self) -> None:
        write_text(self.root / NOTES, json.dumps({"job": self.job, "about": self.about, "stages": self.stages}, sort_keys=True))
