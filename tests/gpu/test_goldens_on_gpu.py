"""Golden files on the GPU, and nothing read or written where it must not be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden_cases import FOLDER

from vditc.plugins.golden_file import Golden, goldens_in
from vditc.plugins.goldens import check_golden
from vditc.plugins.library import Library

SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


@pytest.mark.parametrize("golden", goldens_in(FOLDER), ids=lambda g: g.name)
def test_every_tactic_gives_what_numpy_gave(library: Library, golden: Golden) -> None:
    outcomes = check_golden(library, golden)
    assert [str(o) for o in outcomes if o.wrong] == []
    assert any(o.skipped is None for o in outcomes), [str(o) for o in outcomes]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer_finds_nothing(tool: str, library_file: Path) -> None:
    """On the smallest problems of every operator: the tool is slow."""
    if not Path(SANITIZER).is_file():
        pytest.skip("compute-sanitizer is not installed")
    names = [
        "qlinear_w8a8_gated",
        "qlinear_w3a8",
        "qlinear_w4a4_packed",
        "qlinear_w4a4_low",
        "qlinear_w8a8_odd",
        "quantize_token",
        "qattention",
    ]
    goldens = [sys.executable, "-m", "vditc.plugins.goldens", "--library", str(library_file), "--goldens", str(FOLDER)]
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "86", *goldens, *(f"--only={name}" for name in names)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ)
    said = ran.stdout + ran.stderr
    if "Device not supported" in said or "Unable to" in said.partition("ERROR SUMMARY")[0]:
        pytest.skip(f"compute-sanitizer cannot work here: {said[-300:]}")
    assert ran.returncode == 0 and "ERROR SUMMARY: 0 errors" in said.replace("RACECHECK SUMMARY: 0 hazards", "ERROR SUMMARY: 0 errors"), (
        said[-6000:]
    )
