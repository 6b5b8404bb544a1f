"""Headers and libraries out of wheels of PyPI, unpacked in the cache and never installed.

What a build needs of another machine's toolkit (its CUDA runtime), and CUTLASS, whose wheel would bring packages that nobody here imports,
cannot be dependencies of an extra.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from vditc.errors import InputError

CUTLASS = "nvidia-cutlass==4.2.0.0"  # 4.2 of the headers, BSD-3-Clause


def cache_home() -> Path:
    """Where builds and wheels are kept: XDG_CACHE_HOME/vditc/plugins.

    Of that variable an empty path counts as none, and a relative one is to be ignored (XDG Base Directory Specification 0.8).
    """
    said = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (said if said.is_absolute() else Path.home() / ".cache") / "vditc" / "plugins"


def unpacked(requirement: str, cache: Path, *, machine: str | None = None, instead: str) -> Path:
    """Folder of a wheel's files, fetched by pip the first time. `machine`: of another machine's wheel, as aarch64.

    InputError when pip cannot have it; `instead` says what a person can do then.
    """
    name = re.sub(r"[~=]=", "-", requirement) + (f"-{machine}" if machine else "")
    folder = cache / "wheels" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    platform = [f"--platform=manylinux2014_{machine}", "--only-binary=:all:"] if machine else []
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", f"{work}/wheel", *platform, requirement]
        run = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(work, "wheel").glob("*.whl"))
        if run.returncode or not wheels:
            said = (run.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise InputError(
                found=said, wanted=f"the wheel {requirement}", where=f"pip download for {machine or 'this machine'}", fix=instead
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(f"{work}/files")
        try:
            Path(work, "files").rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def tree_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """sha256 over the names and bytes of a folder's files that match, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()}):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
