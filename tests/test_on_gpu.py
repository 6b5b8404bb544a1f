"""benchmarks/on_gpu.sh without a GPU: what it would run, and its steps that the emulated library can stand in for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vditc.plugins.emulated import emulated_library

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def run(folder: Path, *steps: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"BUILD": str(folder / "build"), "OUT": str(folder / "out"), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *steps], capture_output=True, text=True, env={**os.environ, **own, **environment})


def test_what_would_run(tmp_path: Path) -> None:
    ran = run(tmp_path, "check", "bench", "keep", "rtx", DRY="1")
    assert (ran.returncode, ran.stderr) == (0, "")
    named = re.findall(r"^(tools|library|goldens|example|tests|bench [\w-]+|keep|rtx)\b", ran.stdout, re.MULTILINE)
    assert named == [
        *("tools", "library", "goldens", "example", "tests"),
        *(f"bench {case}" for case in ("quantize-token", "qattention", "block", "qlinear")),
        *("keep", "rtx", "rtx"),
    ]


def test_unknown_steps(tmp_path: Path) -> None:
    ran = run(tmp_path, "everything")
    assert ran.returncode == 2 and "found everything; wanted check, bench" in ran.stderr


def test_steps_with_a_carried_library(tmp_path: Path) -> None:
    """Golden files and the example run on it; a wrong file is a failure that does not keep the next step from running."""
    (tmp_path / "build").mkdir()
    shutil.copy(emulated_library(), tmp_path / "build" / "libvditc_plugins.so")
    ran = run(tmp_path, "library", "goldens", "example")
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.findall(r"^(.*?): done", summary, re.MULTILINE) == ["library (carried)", "goldens", "example"]
    assert "80 right, 0 wrong; tactics: any carrier int4 kernel unpack-128 unpack-64" in ran.stdout
    ran = run(tmp_path, "goldens", "example", PYTHON="false", LIMIT="60")
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert ran.returncode == 1 and "goldens: FAILED" in summary and "example: done" in summary
    ran = run(tmp_path, "example", LIMIT="0")
    assert ran.returncode == 1 and "example: not run, no time left" in ran.stdout
