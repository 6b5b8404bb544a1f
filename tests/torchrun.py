"""Real processes of `python -m vditc`, alone or under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import vditc

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(vditc.__file__).parents[1])}


def run(*arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run one command line to its end."""
    start = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *start, "-m", "vditc", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
