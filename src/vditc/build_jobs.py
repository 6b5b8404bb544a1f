"""The list of engines that `vditc build BUNDLE` is to build: what is done, what failed and why. `.build/jobs.json` in the bundle.

One job is the engine of one part (a transformer, one of two experts, a text encoder, a graph of a VAE decoder) for one target. The list is
written whenever a job changes, so a command that was killed goes on with what is not done.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from vditc.bundle_update import WORK
from vditc.errors import InputError
from vditc.files import write_text

State = Literal["pending", "running", "done", "failed"]
SCHEMA = 1
FILE = f"{WORK}/jobs.json"


@dataclasses.dataclass(kw_only=True)
class BuildJob:
    """One engine. `key`: digest of what it is built from; `said`: target as it was named; `where`: what builds or built it.

    `options`: how, as `vditc.build_options` writes them.
    """

    part: str
    target: str
    said: str
    key: str
    options: str = ""
    state: State = "pending"
    status: str = ""  # of a built engine: vditc.runtimes.backend.Status
    reason: str = ""  # of a failure
    where: str = ""
    seconds: float | None = None
    anew: bool = False  # also where the bundle has the engine
    fallback: bool = False  # layers that do not land go down the ladder of vditc.pipeline.fallback

    @property
    def name(self) -> str:
        """ "transformer for h100"."""
        return f"{self.part} for {self.target}"


@dataclasses.dataclass
class JobList:
    """The jobs of one bundle, in the order in which they were asked for."""

    path: Path
    bundle: Mapping[str, str]  # what every engine depends on -> its digest
    jobs: list[BuildJob]

    @classmethod
    def read(cls, root: Path, bundle: Mapping[str, str]) -> JobList:
        """The list of the bundle at `root`, or an empty one. InputError when it is damaged, or of a bundle that has changed since."""
        path = root / FILE
        if not path.exists():
            return cls(path, bundle, [])
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            jobs = [BuildJob(**job) for job in data["jobs"]]
            if data["schema"] != SCHEMA or any(job.state not in get_args(State) for job in jobs):
                raise ValueError(f"schema {data['schema']}, states {sorted({job.state for job in jobs})}")
            before = dict(data["bundle"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                found=f"no list of jobs ({error!r})", wanted="what an earlier build wrote", where=str(path), fix="--force begins a new list"
            ) from error
        if changed := [name for name in {**before, **bundle} if before.get(name) != bundle.get(name)]:
            words = "; ".join(f"{n}: {before.get(n, 'none')[:12]} then, {bundle.get(n, 'none')[:12]} now" for n in changed)
            raise InputError(
                found=f"a bundle that has changed since its list of jobs was made ({words})",
                wanted="the same graphs and profile",
                where=str(root),
                fix="--force begins a new list",
            )
        for job in jobs:
            if job.state == "running":  # the command that ran it was killed
                job.state = "pending"
        return cls(path, bundle, jobs)

    def add(self, wanted: Iterable[BuildJob], *, retry_failed: bool = False) -> list[BuildJob]:
        """Take jobs into the list; returns its own entries for them.

        One that is built from something else now is done anew, and one that has failed where a fallback was not asked for and is now.
        """
        found = []
        for job in wanted:
            known = next((j for j in self.jobs if (j.part, j.target) == (job.part, job.target)), None)
            if known is None:
                self.jobs.append(job)
            elif known.key != job.key or (known.state == "failed" and (retry_failed or (job.fallback and not known.fallback))):
                self.jobs[self.jobs.index(known)] = job
                job.anew = job.anew or known.anew or known.key != job.key
                job.fallback = job.fallback or known.fallback
            else:
                known.fallback = job.fallback or known.fallback
                job = known
            found.append(job)
        self.write()
        return found

    def mark(self, job: BuildJob, state: State, **changes: Any) -> None:
        """Note what became of a job; `changes` are fields of it. Of an earlier end nothing stays."""
        job.state, job.reason, job.status, job.seconds = state, "", "", None
        for name, value in changes.items():
            setattr(job, name, value)
        self.write()

    def write(self) -> None:
        """Write the file."""
        data = {"schema": SCHEMA, "bundle": dict(self.bundle), "jobs": [dataclasses.asdict(job) for job in self.jobs]}
        write_text(self.path, json.dumps(data, indent=1) + "\n")
