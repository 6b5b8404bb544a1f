"""The kernels for the CPU: their own sources, compiled by g++ over an emulator of CUDA's threads (`native/emulator.h`).

The library has the C interface of the real one (`native/vditc_plugins.h`) and computes on host memory, slowly: it is what tests compare
with the oracles where there is no GPU. It is built once for each state of the sources.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vditc.errors import InputError
from vditc.plugins.wheels import cache_home

SOURCES = Path(__file__).resolve().parent
FLAGS = (
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",  # "#pragma unroll" is nvcc's
    "-DVDITC_EMULATED",
    f"-I{SOURCES}",
)
_REAL_ONLY = "cutlass_*"  # CUTLASS is nvcc's alone


def emulated_library(cache: Path | None = None, *, extra: Sequence[str] = ()) -> Path:
    """Path of the library, built if its sources changed. `extra`: more flags of g++. InputError without g++ or with an error of it.

    It has the plugins of TensorRT too, around the emulated kernels: a host of theirs hands them host memory.
    """
    units = sorted(p for suffix in ("cpp", "cu") for p in SOURCES.glob(f"*/*.{suffix}") if not p.match(_REAL_ONLY))
    headers = sorted(SOURCES.glob("*/*.h"))
    digest = hashlib.sha256(repr((FLAGS, extra)).encode())
    for source in (*units, *headers):
        digest.update(source.read_bytes())
    folder = cache or cache_home()
    out = folder / f"libvditc_plugins_emulated-{digest.hexdigest()[:16]}.so"
    if out.exists():
        return out
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise InputError(found=f"no {compiler}", wanted="a C++17 compiler", where="PATH", fix="install g++, or set CXX")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "emulated.lock").open("w") as lock, tempfile.TemporaryDirectory(dir=folder) as work:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that want it at a time build it once
        if out.exists():
            return out
        jobs = []
        for unit in units:
            made = Path(work) / f"{unit.parent.name}.{unit.name}.o"
            command = [compiler, *FLAGS, *extra, "-x", "c++", "-c", str(unit), "-o", str(made)]
            jobs.append((unit, made, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
        for unit, _, job in jobs:
            _, said = job.communicate()
            if job.returncode:
                raise InputError(found=said.strip()[-2000:], wanted="sources that compile", where=str(unit), fix="see the message")
        linked = Path(work) / "out.so"
        subprocess.run([compiler, "-shared", *extra, *(str(made) for _, made, _ in jobs), "-o", str(linked), "-ldl"], check=True)
        linked.rename(out)
    return out
