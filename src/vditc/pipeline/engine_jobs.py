"""`vditc build BUNDLE`: an engine for every part and target, job by job, collected into the bundle as they come."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vditc.build_jobs import FILE, BuildJob, JobList
from vditc.build_options import BuildOptions, check_targets
from vditc.bundle import Bundle
from vditc.bundle_update import WORK, updating
from vditc.errors import InputError, VditcError
from vditc.files import data_digest
from vditc.pipeline.bundle_parts import Part, parts_of
from vditc.pipeline.component_engine import component_engines
from vditc.pipeline.engine_part import EnginePart
from vditc.pipeline.engine_task import check_files, target_digest
from vditc.pipeline.local_builds import Builds, Event, Order
from vditc.pipeline.transformer_engine import TransformerEngine
from vditc.progress import Progress
from vditc.target import Target

ALL = "all"
_OVER = ("built", "portable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineJobs:
    """What is asked for. `targets`: as people name them, ALL for those of the bundle, none for those of its list of jobs.

    `engine`: [TARGET:]OPTIONS of `vditc.build_options`; left out, those of the list, or those that the bundle was compiled
    with. `fallback`: layers that do not land go down the ladder of `vditc.pipeline.fallback`.
    `retry_failed`: jobs that have failed begin anew; `force`: the whole list does. `verify`: graphs that are lowered here are compared.
    """

    bundle: Path
    targets: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()
    retry_failed: bool = False
    force: bool = False
    fallback: bool = False
    verify: bool = True

    def run(self, builds: Builds, progress: Progress) -> list[BuildJob]:
        """Build what is not done; returns the jobs that were asked for. A job that fails ends no other.

        InputError for a target that does not run what the bundle holds, and for a list of jobs of another bundle, before any work.
        VditcError when another command builds engines of this bundle.
        """
        parts_of(self.bundle)  # nothing is written into what is no bundle
        with updating(self.bundle):
            return _Run(self, builds, progress, parts_of(self.bundle)).run()


class _Run:
    """One command, which holds the bundle."""

    def __init__(self, asked: EngineJobs, builds: Builds, progress: Progress, parts: list[Part]) -> None:
        self.asked, self.builds, self.progress = asked, builds, progress
        if asked.force:
            (asked.bundle / FILE).unlink(missing_ok=True)
        self.parts: list[EnginePart] = [*(TransformerEngine(parts, part) for part in parts), *component_engines(parts)]
        self.list = JobList.read(asked.bundle, _depends_on(self.parts))
        self.targets = self._targets(parts[0].manifest.targets)
        check_targets(asked.engine, [target.name for target in self.targets.values()])
        self.orders: list[Order] = []
        self.began: dict[str, float] = {}

    def run(self) -> list[BuildJob]:
        for part in self.parts:
            for folder in part.root.glob(f"{WORK}-*/"):
                shutil.rmtree(folder)  # of a command that was killed
        wanted = [self._job(part, said, target) for said, target in self.targets.items() for part in self.parts]
        for job in wanted:
            part, target = self._of(job)
            if part.about(target.name) is None:
                listed = self._listed(part, target)
                part.prepare(target, self.progress, fallback=job.fallback or (listed is not None and listed.fallback))
        jobs = self.list.add(wanted, retry_failed=self.asked.retry_failed)
        open_jobs = [job for job in jobs if not self._done(job)]
        self.orders += [order for job in open_jobs if (order := self._ordered(job)) is not None]
        with (
            self.progress.task("build engines", len(jobs), len(jobs) - len(self.orders)) as advance,
            contextlib.closing(self.builds.run(self.orders)) as events,  # so that no build goes on behind an error
        ):
            for event in events:
                if self._take(event):
                    advance()
        return jobs

    def _targets(self, known: Mapping[str, Any]) -> dict[str, Target]:
        """What was said -> target; InputError for names that are unknown, or of one target twice."""
        said = list(self.asked.targets) or [job.said for job in self.list.jobs if job.part == self.parts[0].name]
        if not said:
            raise InputError(
                found="no target", wanted=f"--target, once for each, or --target {ALL}", where="vditc build", fix="see `vditc targets`"
            )
        if ALL in said:
            own = [name for name in known if name not in {Target.load(one).name for one in said if one != ALL}]
            said = [one for one in said if one != ALL] + own
        found = {one if one in known else _absolute(one): _loaded(one, known) for one in said}
        if len({target.name for target in found.values()}) != len(said):
            raise InputError(found=f"targets {', '.join(said)}", wanted="each once", where="--target", fix="leave out what is repeated")
        return found

    def _job(self, part: EnginePart, said: str, target: Target) -> BuildJob:
        about, own = part.about(target.name), part.options(target.name)
        chosen = self._options(part, target, own)
        options, other = str(chosen), bool(self.asked.engine) and about is not None and chosen != own
        made_of = {"target": target_digest(target), "options": options, "files": {} if about is None else part.inputs(about)}
        return BuildJob(
            options=options,
            part=part.name,
            target=target.name,
            said=said,
            key=data_digest(made_of),
            anew=self.asked.force or other,
            fallback=self.asked.fallback,
        )

    def _options(self, part: EnginePart, target: Target, own: BuildOptions) -> BuildOptions:
        """InputError for what the target does not do."""
        if self.asked.engine:
            options = BuildOptions.for_target(self.asked.engine, target.name)
            if options.memory is not None and options.segments is None:
                raise InputError(
                    found="--engine memory", wanted="--memory GIB", where="vditc build", fix="say it for all builders together"
                )
        elif (listed := self._listed(part, target)) is not None:
            options = BuildOptions.parse(listed.options)
        else:
            options = own
        target.check_options(options)
        return part.asked_options(options)

    def _listed(self, part: EnginePart, target: Target) -> BuildJob | None:
        return next((job for job in self.list.jobs if (job.part, job.target) == (part.name, target.name)), None)

    def _of(self, job: BuildJob) -> tuple[EnginePart, Target]:
        return next(p for p in self.parts if p.name == job.part), next(t for t in self.targets.values() if t.name == job.target)

    def _done(self, job: BuildJob) -> bool:
        """Whether there is nothing to do, or a failure that is not tried again."""
        if job.state == "failed":
            return True
        part, target = self._of(job)
        about = part.about(target.name)
        if about is None:
            return False
        status = about["engine"]["status"]
        portable = "lowered" not in about  # a component in ONNX Runtime: there is nothing to build anew
        if status in _OVER and (job.state == "done" or not job.anew or portable):
            if job.state != "done":
                self.list.mark(job, "done", status=status, where="an earlier command")
            return True
        return False

    def _ordered(self, job: BuildJob) -> Order | None:
        """What is to be built; None for a job that failed before that, or has nothing to build."""
        part, target = self._of(job)
        try:
            if part.about(target.name) is None:
                part.lower(target, verify=self.asked.verify, progress=self.progress)
                job.key = self._job(part, job.said, target).key
                if self._done(job):
                    return None
            return self._order(part, target, job)
        except (VditcError, OSError) as error:
            self._fail(job, str(error))
            return None

    def _order(self, part: EnginePart, target: Target, job: BuildJob) -> Order:
        out = part.out(target.name, uuid.uuid4().hex[:8])
        memory = part.memory(target.name, BuildOptions.parse(job.options))
        return Order(job.name, part.request(target, job.said, job.options, out), target, memory)

    def _take(self, event: Event) -> bool:
        """Note what happened; whether a job has ended."""
        job = next(j for j in self.list.jobs if j.name == event.order.name)
        if event.result is None:
            self.began[job.name] = time.monotonic()
            self.list.mark(job, "running", where=event.where)
            return False
        part, target = self._of(job)
        out, ended = part.root / event.order.request.out, True
        try:
            if "error" not in event.result:
                files = event.result["files"]
                check_files(out, files, "repeat the command with --retry-failed; if it happens again, check disk and network")
                part.collect(target.name, event.result["facts"], event.order.request.options, out, files)
                seconds = round(time.monotonic() - self.began[job.name], 2)
                self.list.mark(job, "done", status=event.result["facts"]["status"], where=event.where, seconds=seconds)
            elif job.fallback and event.result.get("layers") and part.falls_back(target, event.result["layers"], self.progress):
                part.lower(target, verify=self.asked.verify, progress=self.progress)
                job.key = self._job(part, job.said, target).key
                self.list.mark(job, "pending")
                self.orders.append(self._order(part, target, job))
                ended = False
            else:
                self._fail(job, str(event.result["error"]), event.where)
        except (VditcError, OSError) as error:
            self._fail(job, str(error), event.where)
        # The log of a failure stays.
        hidden = part.root / Path(event.order.request.out).parts[0]
        shutil.rmtree(out if job.state == "failed" else hidden, ignore_errors=True)
        return ended

    def _fail(self, job: BuildJob, reason: str, where: str = "") -> None:
        self.progress.note(f"{job.name} failed: {reason}")
        self.list.mark(job, "failed", reason=reason, where=where)


def _depends_on(parts: Sequence[EnginePart]) -> dict[str, str]:
    found = {}
    for part in parts:
        for name in part.portable():
            Bundle(part.bundle.root, part.bundle.manifest).file(name)  # whether it is listed
            found[f"{part.name}/{Path(name).name}"] = part.bundle.manifest.files[name].sha256
        found[f"{part.name}'s profile"] = data_digest(part.bundle.manifest.profile)
    return found


def _loaded(said: str, known: Mapping[str, Any]) -> Target:
    about = known.get(said)
    if about is not None and about["built_in"] is None:
        raise InputError(
            found=f"target {said}, which the bundle has from a file",
            wanted="that file",
            where="--target",
            fix=f"name it: --target {said}.toml",
        )
    return Target.load(said)


def _absolute(said: str) -> str:
    return str(Path(said).resolve()) if said.endswith(".toml") else said
