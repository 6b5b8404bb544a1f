"""`vditc worker`: a Dask worker that says what it can build."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from vditc.cli.app import app, console
from vditc.cli.options import JsonOption, memory_bytes
from vditc.target import Target


@app.command("worker", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def worker_command(
    context: typer.Context,
    scheduler: Annotated[str | None, typer.Argument(metavar="[SCHEDULER]", help="tcp://HOST:8786; left out: only say what it has")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="engines at a time; TensorRT's one after another, on the GPU")] = 1,
    memory: Annotated[float | None, typer.Option("--memory", help="GiB that builders may take [default: what is free]")] = None,
    target: Annotated[list[str] | None, typer.Option("--target", help="file of a target that is not built in, to build too")] = None,
    as_json: JsonOption = False,
) -> None:
    """Build engines here for `vditc build BUNDLE --cluster SCHEDULER`. Further options go to Dask's worker: --tls-ca-file, --name, ..."""
    from vditc.pipeline.cluster_worker import own_resources

    found = own_resources([Target.load(one) for one in target or ()], memory_bytes(memory))
    if scheduler is None:
        if as_json:
            print(json.dumps(found))
        for name, count in {} if as_json else found.items():
            console.print(f"{name}={count:.0f}", markup=False, highlight=False, soft_wrap=True)
        return
    import distributed.cli.dask_worker  # missed here rather than in the new process

    words = [sys.executable, "-m", distributed.cli.dask_worker.__name__, scheduler, "--nworkers", "1", "--nthreads", str(jobs)]
    words += ["--memory-limit", "0", "--no-dashboard", "--resources", " ".join(f"{name}={count:.0f}" for name, count in found.items())]
    sys.stdout.flush()
    os.execv(sys.executable, [*words, *context.args])
