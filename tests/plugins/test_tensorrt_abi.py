"""Our declarations of TensorRT's plugin interface, against its headers where there are any (TENSORRT_ROOT)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import vditc.plugins.emulated

SOURCES = vditc.plugins.emulated.SOURCES
ROOT = Path(os.environ.get("TENSORRT_ROOT", "/nowhere"))
INCLUDE = next((p for p in (ROOT / "include", ROOT) if (p / "NvInfer.h").is_file()), None)
CUDA = next(
    (p for p in map(Path, ("/usr/local/cuda/include", *sorted(map(str, Path("/usr/local").glob("cuda-*/include"))))) if p.is_dir()), None
)
needs_headers = pytest.mark.skipif(INCLUDE is None, reason="no NvInfer.h: set TENSORRT_ROOT to TensorRT's folder")
needs_cuda = pytest.mark.skipif(CUDA is None, reason="no cuda_runtime_api.h below /usr/local, which NvInfer.h includes")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def compiled(source: Path, out: Path, *flags: str) -> None:
    command = ["g++", "-std=c++17", f"-I{SOURCES}", f"-isystem{INCLUDE}", f"-isystem{CUDA}", *flags, str(source), "-o", str(out)]
    job = subprocess.run(command, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stderr[-3000:]


@needs_headers
@needs_cuda
def test_layouts_and_virtual_functions_are_tensorrts(tmp_path: Path) -> None:
    compiled(Path(__file__).with_name("tensorrt_abi.cpp"), tmp_path / "abi", "-w")
    assert subprocess.run([tmp_path / "abi"], capture_output=True, text=True, check=True).stdout == ""


@needs_headers
@needs_cuda
@pytest.mark.parametrize("source", [p.relative_to(SOURCES) for p in sorted(SOURCES.glob("*/plugin*.cpp"))], ids=str)
def test_sources_compile_with_tensorrts_headers(source: Path, tmp_path: Path) -> None:
    compiled(
        SOURCES / source,
        tmp_path / "made.o",
        "-c",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DVDITC_TENSORRT_HEADERS",
        "-Wno-deprecated-declarations",
    )
