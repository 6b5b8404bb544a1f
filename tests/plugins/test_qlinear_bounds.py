"""No kernel of QLinear reads or writes outside of what it was given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vditc.plugins.emulated import emulated_library

CASE = Path(__file__).resolve().parents[1] / "qlinear_bounds.py"


@pytest.mark.slow
def test_under_the_address_sanitizer() -> None:
    sanitizer = subprocess.run(["g++", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout.strip()
    if not Path(sanitizer).is_absolute():
        pytest.skip("g++ has no libasan")
    library = emulated_library(extra=("-fsanitize=address",))
    options = "detect_leaks=0:detect_stack_use_after_return=0"  # Python leaks; fibres have stacks of their own
    environment = {**os.environ, "LD_PRELOAD": sanitizer, "ASAN_OPTIONS": options, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, str(CASE), str(library)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("launches\n")
