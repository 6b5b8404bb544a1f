"""Builds libvditc, once for each state of its sources, and what tests run of it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vditc.plugins.wheels import cache_home

SOURCES = Path(__file__).resolve().parents[1] / "runtimes" / "cpp"
# Programs of this virtual environment, cmake and ninja of PyPI, behind the system's.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
STAND_IN = SOURCES / "tests" / "stand_in"
BASELINE = SOURCES / "abi" / "vditc-1.txt"


def missing() -> str | None:
    """Why nothing can be built here; None if it can."""
    for program in ("cmake", "ninja", os.environ.get("CXX", "g++"), os.environ.get("CC", "gcc")):
        if shutil.which(program) is None:
            return f"no {program}"
    if importlib.util.find_spec("nlohmann_json") is None and not Path("/usr/include/nlohmann/json.hpp").exists():
        return "no nlohmann/json.hpp: pip install nlohmann-json, or apt install nlohmann-json3-dev"
    return None


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, seconds: float = 600) -> str:
    """Standard output; a failure shows the end of both streams."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **(env or {})}, timeout=seconds
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def json_include() -> list[str]:
    """The package of PyPI before the system's, which is not everywhere."""
    spec = importlib.util.find_spec("nlohmann_json")
    return [] if spec is None or spec.origin is None else [f"-DVDITC_JSON_INCLUDE={Path(spec.origin).parent / 'include'}"]


def page_blocks(language: str) -> list[str]:
    """Code of docs/cpp.md."""
    return re.findall(rf"```{language}\n(.*?)```", (SOURCES.parents[1] / "docs" / "cpp.md").read_text(), re.DOTALL)


def built(*options: str, compiler: Sequence[str] = ()) -> Path:
    """Build folder of the library and its test programs, installed below `installed`; skips the test where there is no compiler."""
    if why := missing():
        pytest.skip(why)
    # -O1: half of what -O3 takes to compile. Engines are there, on stand-ins of TensorRT and of a GPU's driver.
    options = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", f"-DTENSORRT_ROOT={STAND_IN}", *options)
    digest = hashlib.sha256(repr((options, compiler)).encode())
    for source in sorted(
        p for p in SOURCES.rglob("*") if p.is_file() and p.relative_to(SOURCES).parts[0] != "abi" and "corpus" not in p.parts
    ):
        digest.update(source.relative_to(SOURCES).as_posix().encode() + source.read_bytes())
    cache = cache_home().parent / "cpp"
    folder = cache / digest.hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that want it at a time build it once
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            prefix = f"-DCMAKE_INSTALL_PREFIX={folder / 'installed'}"
            run("cmake", "-G", "Ninja", "-S", SOURCES, "-B", folder, prefix, "-DVDITC_TESTS=ON", *json_include(), *options)
            run("cmake", "--build", folder, "--parallel", "2", "--target", "all", "install")
            (folder / "whole").touch()
    return folder
