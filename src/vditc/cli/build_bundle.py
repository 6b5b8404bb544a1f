"""`vditc build BUNDLE`: its options, and what became of each job as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vditc.cli.app import RichProgress, console
from vditc.cli.options import memory_bytes
from vditc.errors import InputError

if TYPE_CHECKING:
    from vditc.build_jobs import BuildJob
    from vditc.pipeline.local_builds import Builds

JobsOption = Annotated[int | None, typer.Option("--jobs", min=1, help="engines that are built at a time on this machine [default: 1]")]
BuilderMemoryOption = Annotated[
    float | None, typer.Option("--memory", help="GiB that all builders together may take [default: what is free]")
]
ClusterOption = Annotated[
    str | None, typer.Option("--cluster", metavar="ADDRESS|local:N", help="build on the workers of a Dask scheduler: tcp://HOST:8786")
]
SendOption = Annotated[bool, typer.Option("--send", help="send files to workers and back, which do not see the bundle's folder")]
WaitOption = Annotated[
    float | None, typer.Option("--wait", min=0, help="seconds for which a job waits for a worker that can build it [default: 60]")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="build once more what has failed")]
FallbackOption = Annotated[
    bool, typer.Option("--fallback", help="layers that do not land go down a recorded ladder, as with compile (docs/engines.md)")
]
VerifyOption = Annotated[bool, typer.Option(help="compare graphs that are lowered for new targets, pass by pass")]


def refuse_options(given: Mapping[str, Any], what: str, why: str) -> None:
    """InputError for an option of the other kind of build."""
    for option, value in given.items():
        if value:
            raise InputError(found=f"{option} {value}", wanted=f"no {option} with {what}", where="vditc build", fix=f"{what} {why}")


def build_bundle(
    bundle: Path,
    targets: tuple[str, ...],
    *,
    engine: tuple[str, ...],
    jobs: int | None,
    memory: float | None,
    cluster: str | None,
    send: bool,
    wait: float | None,
    retry_failed: bool,
    fallback: bool,
    verify: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Build, and exit with 1 if a job has failed."""
    from vditc.pipeline.engine_jobs import EngineJobs

    progress = RichProgress()
    builds: Builds
    if cluster is None:
        refuse_options({"--send": send, "--wait": wait}, "builds on this machine", "are for --cluster; leave it out")
        from vditc.pipeline.local_builds import LocalBuilds

        builds = LocalBuilds(jobs or 1, memory_bytes(memory), progress.note)
    else:
        refuse_options({"--jobs": jobs, "--memory": memory}, "builds on a cluster", "are told to `vditc worker`; leave it out")
        from vditc.pipeline.cluster_builds import ClusterBuilds

        builds = ClusterBuilds(cluster, progress.note, send=send, **({} if wait is None else {"wait": wait}))
    asked = EngineJobs(
        bundle=bundle, targets=targets, engine=engine, retry_failed=retry_failed, force=force, fallback=fallback, verify=verify
    )
    done = asked.run(builds, progress)
    failed = [job for job in done if job.state == "failed"]
    if as_json:
        print(json.dumps({"bundle": str(bundle), "jobs": [dataclasses.asdict(job) for job in done]}))
    else:
        _show(done)
        for job in failed:
            console.print(f"{job.name}: {job.reason}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _show(jobs: list[BuildJob]) -> None:
    table = Table("part", "target", "state", "engine", "where", "seconds")
    for job in jobs:
        table.add_row(
            job.part, job.target, job.state, job.status or "-", job.where or "-", "-" if job.seconds is None else f"{job.seconds:g}"
        )
    console.print(table)
