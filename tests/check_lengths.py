"""Fails when a source file is longer than 600 lines (the soft limit is 300)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HARD = 600

files = subprocess.run(["git", "ls-files", "*.py", "*.cpp", "*.cu", "*.h"], check=True, capture_output=True, text=True).stdout.split()
long = {f: n for f in files if not Path(f).is_symlink() and (n := len(Path(f).read_text().splitlines())) > HARD}
for name, lines in long.items():
    print(f"{name}: {lines} lines; wanted at most {HARD}; split it by noun")
sys.exit(bool(long))
