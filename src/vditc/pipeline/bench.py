"""How fast a bundle's backends are, against each other and the full-precision model, in one run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vditc.bundle import Bundle
from vditc.errors import InputError, VditcError
from vditc.lora import Lora, fuse
from vditc.model_dir import ModelDir
from vditc.pipeline.guidance_passes import PORTABLE
from vditc.pipeline.machine import machine_facts, package_versions
from vditc.progress import Progress
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.graph_inputs import graph_sizes
from vditc.timing import FULL, Figures, Timing, calls_and_clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchJob:
    """What to measure. `sizes`: of the profile's axes; what is left out has the profile's best size."""

    bundle: Bundle
    backends: tuple[str, ...] = ()  # none: all that run here
    against: Path | None = None  # the full-precision model
    loras: tuple[str, ...] = ()
    device: str = "auto"  # of the full-precision model
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    runs: int = 10
    warmup: int = 2
    layers: int = 3  # runs for the shares of layers; 0: none
    apart: bool = False


def bench(job: BenchJob, progress: Progress) -> Timing:
    """Figures of every contestant, the one that ratios are of first: the full-precision model, or the portable graph.

    Each runs in a process of its own. They take turns step by step, so that a machine that slows down slows all of them; `apart`, for
    models that do not fit into memory together, one after the other.
    """
    requests = _requests(job)
    done: list[Figures] = []
    total = len(requests) * (job.warmup + job.runs)
    with tempfile.TemporaryDirectory() as folder, progress.task("measure", total) as advance:
        for group in [[r] for r in requests.items()] if job.apart else [list(requests.items())]:
            with contextlib.ExitStack() as stack:
                workers = [stack.enter_context(_Worker(name, request, Path(folder))) for name, request in group]
                for i in range(job.warmup + job.runs):
                    for worker in workers:
                        worker.step(i % len(worker.request["timesteps"]), counted=i >= job.warmup)
                        advance()
                done += [worker.figures(job.layers) for worker in workers]
    return _timing(job, requests, done)


def _timing(job: BenchJob, requests: Mapping[str, Mapping[str, Any]], done: list[Figures]) -> Timing:
    manifest, sizes = job.bundle.manifest, next(iter(requests.values()))["sizes"]
    calls, clips = calls_and_clips(manifest.sampling["guidance_scale"], sizes.get("batch", 1))
    return Timing(
        model=manifest.model["class"],
        model_digest=manifest.model["digest"],
        recipe=manifest.recipe["name"],
        recipe_digest=manifest.recipe["digest"],
        sizes=sizes,
        steps=manifest.sampling["steps"],
        calls=calls,
        clips=clips,
        runs=job.runs,
        warmup=job.warmup,
        profiled=job.layers,
        apart=job.apart,
        machine=machine_facts(),
        packages=package_versions(),
        taken=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        of=tuple(done),
    )


def _requests(job: BenchJob) -> dict[str, dict[str, Any]]:
    """Name -> what its worker is told; InputError for what cannot run."""
    manifest = job.bundle.manifest
    sizes = {axis: best for axis, (_, best, _) in manifest.profile.items()}
    if unknown := sorted(set(job.sizes) - set(sizes)):
        raise InputError(found=f"sizes of {', '.join(unknown)}", wanted=", ".join(sizes), where="--sizes", fix="name axes of the profile")
    sizes |= job.sizes
    graph_sizes(job.bundle.file("model.onnx")).check(sizes, "--sizes")
    about = {"sizes": sizes, "timesteps": manifest.sampling["schedule"]["timesteps"]}
    found: dict[str, dict[str, Any]] = {}
    if job.against is not None:
        part = manifest.model["part"]
        source = fuse(ModelDir.open(job.against, part), [Lora.parse(text) for text in job.loras])
        if source.digest != manifest.model["digest"]:
            raise InputError(
                found=f"model {source.digest[:16]}…",
                wanted=f"the bundle's model {manifest.model['digest'][:16]}…",
                where=str(job.against),
                fix="give the model that the bundle was compiled from, and its --lora options",
            )
        model = {"model": str(job.against.resolve()), "part": part, "loras": list(job.loras), "device": job.device}
        found[FULL] = {**about, **model}
    for backend in job.backends or _here(job.bundle):
        found[backend] = {**about, "bundle": str(job.bundle.path.resolve()), "backend": backend}
    return found


def _here(bundle: Bundle) -> list[str]:
    """The portable graph, and every engine for this machine's GPU."""
    arch = compute_capability()
    built = [n for n, t in bundle.manifest.targets.items() if t["engine"]["status"] == "built" and arch in t["arch"]]
    return [PORTABLE, *built]


class _Worker:
    """A contestant's process."""

    def __init__(self, name: str, request: dict[str, Any], folder: Path) -> None:
        self.name, self.request, self._seconds, self._first = name, request, list[float](), 0.0
        file = folder / f"{len(list(folder.iterdir()))}.json"
        file.write_text(json.dumps(request))
        self._log = file.with_suffix(".log").open("w+")
        command = [sys.executable, "-m", "vditc.pipeline.bench_worker", str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True)

    def __enter__(self) -> Self:
        self._opened = self._answer()["open_seconds"]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def step(self, step: int, *, counted: bool) -> None:
        """Run one step."""
        seconds = self._ask({"step": step})["seconds"]
        self._first = self._first or seconds
        if counted:
            self._seconds.append(seconds)

    def figures(self, runs: int) -> Figures:
        """Of all counted steps; the process ends."""
        layers = self._ask({"layers": runs})["layers"] if runs else None
        memory = self._ask({"end": True})
        return Figures(
            name=self.name,
            step_seconds=tuple(self._seconds),
            first_seconds=self._first,
            open_seconds=self._opened,
            modules=layers,
            **memory,
        )

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer, or its lack, says why
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = " | ".join(self._log.read().strip().splitlines()[-4:]) or "it wrote nothing"
            raise VditcError(
                found=f"a process that ended with {self._process.wait()} ({said})",
                wanted="figures",
                where=f"vditc bench, {self.name}",
                fix="a killed process usually means too little memory: measure --apart",
            )
        answer: dict[str, Any] = json.loads(line)
        if error := answer.get("error"):
            raise VditcError(**error)
        return answer
