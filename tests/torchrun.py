"""Commands in real processes that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from command import Run

import vditc

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(Path(vditc.__file__).parents[1])}


def run(ranks: int, *arguments: str, launch: Sequence[str] = ()) -> Run:
    """Run one command line to its end, on one thread: sums depend on the number of threads. `launch`: what `accelerate launch` is told."""
    if launch:
        told = ["--num_processes", str(ranks), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        start = ["-m", "accelerate.commands.launch", *told, "--main_process_port", "0", *launch]
    else:
        start = _start(ranks) if ranks > 1 else []
    return _run(*start, "-m", "vditc", *arguments)


def script(ranks: int, file: str, *arguments: str) -> Run:
    """The same of a script."""
    return _run(*_start(ranks), file, *arguments)


def _start(ranks: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def _run(*command: str) -> Run:
    """Once more where a process aborted: rarely, threads of gloo let go of a tensor just when Python does (pytorch/pytorch#190489)."""
    for left in (1, 0):
        done = subprocess.run([sys.executable, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
        if not (left and "SIGABRT" in done.stderr):
            break
        print(done.stderr, file=sys.stderr)
    return Run(done.returncode, done.stdout, done.stderr)
