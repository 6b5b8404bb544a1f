"""Commands in real processes that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from command import Run

import vditc

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(vditc.__file__).parents[1])}


def run(ranks: int, *arguments: str) -> Run:
    """Run one command line to its end, on one thread: sums depend on the number of threads."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *start, "-m", "vditc", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    return Run(done.returncode, done.stdout, done.stderr)
