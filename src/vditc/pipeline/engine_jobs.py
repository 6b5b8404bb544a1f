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
from vditc.build_memory import available_memory
from vditc.build_options import AUTO, BuildOptions, check_targets
from vditc.bundle_update import WORK, updating
from vditc.errors import InputError, VditcError
from vditc.files import data_digest
from vditc.memory import builder_memory
from vditc.pipeline.bundle_parts import Part, parts_of, update
from vditc.pipeline.engine_task import GRAPHS, EngineRequest, check_files, target_digest
from vditc.pipeline.local_builds import Builds, Event, Order
from vditc.pipeline.new_target import NewTarget
from vditc.plugins.build import LIBRARY
from vditc.progress import Progress
from vditc.runtimes.trt_process import TIMING_CACHE
from vditc.target import Target

ALL = "all"
_RUN = ("seconds", "peak_rss_bytes")  # differ from run to run: no part of a manifest
_OVER = ("built", "portable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineJobs:
    """What is asked for. `targets`: as people name them, ALL for those of the bundle, none for those of its list of jobs.

    `engine`: [TARGET:]OPTIONS of `vditc.build_options`; left out, those of the list, or those that the bundle was compiled with.
    `retry_failed`: jobs that have failed begin anew; `force`: the whole list does. `verify`: graphs that are lowered here are compared.
    """

    bundle: Path
    targets: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()
    retry_failed: bool = False
    force: bool = False
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
        self.asked, self.builds, self.progress, self.parts = asked, builds, progress, parts
        if asked.force:
            (asked.bundle / FILE).unlink(missing_ok=True)
        self.list = JobList.read(asked.bundle, _depends_on(parts))
        self.targets = self._targets()
        check_targets(asked.engine, [target.name for target in self.targets.values()])
        self.new: dict[str, NewTarget] = {}  # by the job's name
        self.began: dict[str, float] = {}

    def run(self) -> list[BuildJob]:
        for part in self.parts:
            for folder in part.root.glob(f"{WORK}-*/"):
                shutil.rmtree(folder)  # of a command that was killed
        wanted = [self._job(part, said, target) for said, target in self.targets.items() for part in self.parts]
        for job in wanted:
            part, target = self._of(job)
            if target.name not in part.manifest.targets:
                self.new[job.name] = NewTarget.check(part, target, self.progress)
        jobs = self.list.add(wanted, retry_failed=self.asked.retry_failed)
        open_jobs = [job for job in jobs if not self._done(job)]
        orders = [order for job in open_jobs if (order := self._ordered(job)) is not None]
        with (
            self.progress.task("build engines", len(jobs), len(jobs) - len(orders)) as advance,
            contextlib.closing(self.builds.run(orders)) as events,  # so that no build goes on behind an error
        ):
            for event in events:
                if self._take(event):
                    advance()
        return jobs

    def _targets(self) -> dict[str, Target]:
        """What was said -> target; InputError for names that are unknown, or of one target twice."""
        known = self.parts[0].manifest.targets
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

    def _job(self, part: Part, said: str, target: Target) -> BuildJob:
        about = part.manifest.targets.get(target.name)
        options = str(self._options(part, target))
        other = bool(self.asked.engine) and about is not None and BuildOptions.parse(options).to_json() != about.get("build", {})
        made_of = {"target": target_digest(target), "options": options, "files": {} if about is None else _inputs(part, about)}
        return BuildJob(
            options=options, part=part.name, target=target.name, said=said, key=data_digest(made_of), anew=self.asked.force or other
        )

    def _options(self, part: Part, target: Target) -> BuildOptions:
        """InputError for what the target does not do."""
        listed = next((job for job in self.list.jobs if (job.part, job.target) == (part.name, target.name)), None)
        if self.asked.engine:
            options = BuildOptions.for_target(self.asked.engine, target.name)
            if options.memory is not None and options.segments is None:
                raise InputError(
                    found="--engine memory", wanted="--memory GIB", where="vditc build", fix="say it for all builders together"
                )
        elif listed is not None:
            options = BuildOptions.parse(listed.options)
        else:
            said = part.manifest.targets.get(target.name, {}).get("build", {})
            options = BuildOptions.from_json({name: value for name, value in said.items() if name != "memory"})
        target.check_options(options)
        return options

    def _of(self, job: BuildJob) -> tuple[Part, Target]:
        return next(p for p in self.parts if p.name == job.part), next(t for t in self.targets.values() if t.name == job.target)

    def _done(self, job: BuildJob) -> bool:
        """Whether there is nothing to do, or a failure that is not tried again."""
        if job.state == "failed":
            return True
        part, _ = self._of(job)
        engine = part.manifest.targets.get(job.target, {}).get("engine", {})
        if engine.get("status") in _OVER and (job.state == "done" or not job.anew):
            if job.state != "done":
                self.list.mark(job, "done", status=engine["status"], where="an earlier command")
            return True
        return False

    def _ordered(self, job: BuildJob) -> Order | None:
        """What is to be built; None for a job that failed before that."""
        part, target = self._of(job)
        try:
            if (new := self.new.get(job.name)) is not None:
                check_files(part.root, _files(part, ("model.onnx", "model.onnx.data")), "copy the bundle again, or compile it again")
                new.lower(self.parts, verify=self.asked.verify, progress=self.progress)
                job.key = self._job(part, job.said, target).key
            return self._order(part, target, job)
        except (VditcError, OSError) as error:
            self._fail(job, str(error))
            return None

    def _order(self, part: Part, target: Target, job: BuildJob) -> Order:
        about = part.manifest.targets[target.name]
        attention, cache = about.get("attention", target.compute), f"engines/{target.name}/{TIMING_CACHE}"
        request = EngineRequest(
            root=str(part.root.resolve()),
            target=job.said,
            target_digest=target_digest(target.attending(attention) if attention != target.compute else target),
            attention=attention,
            lowered=about["lowered"],
            library=about.get("plugins", {}).get("library"),
            profile=part.manifest.profile,
            options=job.options,
            inputs=_files(part, (*_inputs(part, about), *([cache] if cache in part.manifest.files else []))),
            out=f"{WORK}-{uuid.uuid4().hex[:8]}/{target.name}",
        )
        return Order(job.name, request, target, _memory(part, about, BuildOptions.parse(request.options)))

    def _take(self, event: Event) -> bool:
        """Note what happened; whether a job has ended."""
        job = next(j for j in self.list.jobs if j.name == event.order.name)
        if event.result is None:
            self.began[job.name] = time.monotonic()
            self.list.mark(job, "running", where=event.where)
            return False
        if "error" in event.result:
            self._fail(job, str(event.result["error"]), event.where)
        else:
            try:
                self._collect(event.order, event.result)
                seconds = round(time.monotonic() - self.began[job.name], 2)
                self.list.mark(job, "done", status=event.result["facts"]["status"], where=event.where, seconds=seconds)
            except (VditcError, OSError) as error:
                self._fail(job, str(error), event.where)
        out = Path(event.order.request.root) / event.order.request.out
        shutil.rmtree(out.parent if job.state == "done" else out, ignore_errors=True)  # the log of a failure stays
        return True

    def _collect(self, order: Order, result: Mapping[str, Any]) -> None:
        """The engine's files into the bundle, as they left the builder."""
        request = order.request
        part = next(p for p in self.parts if str(p.root.resolve()) == request.root)
        out, folder = part.root / request.out, f"engines/{order.target.name}"
        check_files(out, result["files"], "repeat the command with --retry-failed; if it happens again, check disk and network")
        lowered = Path(order.request.lowered)
        staged = {
            (lowered.parent / Path(name).name).as_posix() if name.startswith(f"{GRAPHS}/") else f"{folder}/{name}": out / name
            for name in result["files"]
        }
        earlier = (f"{folder}/", f"{lowered.with_suffix('')}.segment_")
        dropped = {name for name in part.manifest.files if name.startswith(earlier)} - set(staged)
        engine = {key: value for key, value in result["facts"].items() if key not in _RUN}
        options = BuildOptions.parse(request.options).to_json()
        about = {**part.manifest.targets[order.target.name], "engine": engine, "build": options}
        update(self.parts, part, order.target.name, about, staged, dropped)

    def _fail(self, job: BuildJob, reason: str, where: str = "") -> None:
        self.progress.note(f"{job.name} failed: {reason}")
        self.list.mark(job, "failed", reason=reason, where=where)


def _depends_on(parts: Sequence[Part]) -> dict[str, str]:
    found = {}
    for part in parts:
        for name in ("model.onnx", "model.onnx.data"):
            found[f"{part.name}/{name}"] = part.manifest.files[name].sha256
        found[f"{part.name}'s profile"] = data_digest(part.manifest.profile)
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


def _inputs(part: Part, about: Mapping[str, Any]) -> dict[str, str]:
    """Files that an engine is built from -> sha256: the graph, the data files that may belong to it, the plugin library."""
    lowered, library = about["lowered"], about.get("plugins", {}).get("library")
    names = (lowered, f"{lowered}.data", "lowered/model.onnx.data", *([library] if library else []))
    return {name: part.manifest.files[name].sha256 for name in names if name in part.manifest.files}


def _files(part: Part, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(part.manifest.files[name]) for name in names}


def _memory(part: Part, about: Mapping[str, Any], options: BuildOptions) -> int:
    """About how many bytes the builder takes: what the manifest says, or by the size of what it reads; of segments the greatest."""
    if about["backend"] == "onnxruntime":
        return 0
    weights = sum(part.manifest.files[name].bytes for name in _inputs(part, about) if Path(name).name != LIBRARY)
    whole = int(about["memory"]["builder"]) if "memory" in about else builder_memory(len(part.manifest.layers), weights)
    if options.segments is None:
        return whole
    if options.segments == AUTO:
        return min(whole, options.memory or available_memory())
    return builder_memory(0, 0) + whole // int(options.segments)
