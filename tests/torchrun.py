"""Commands in real processes that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from command import Run
from command import vditc as alone

import vditc

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(vditc.__file__).parents[1])}


def run(ranks: int, *arguments: str) -> Run:
    """Run one command line to its end; in this process if it is one rank."""
    if ranks == 1:
        return alone(*arguments)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "vditc"]
    command = [sys.executable, *start, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    return Run(done.returncode, done.stdout, done.stderr)
