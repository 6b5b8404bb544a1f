"""libvditc's engines and TensorRT's own headers, where there are any (TENSORRT_ROOT), and a library without either."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cpp_build import SOURCES, built, json_include, missing, run
from cpp_engines import TARGET, Device, engine_bundle
from cpp_library import Library, LibraryError

ROOT = Path(os.environ.get("TENSORRT_ROOT", "/nowhere"))
INCLUDE = next((folder for folder in (ROOT / "include", ROOT) if (folder / "NvInferRuntime.h").is_file()), None)
CUDA = next((f for f in (Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include",) if (f / "cuda_runtime_api.h").is_file()), None)


@pytest.mark.skipif(INCLUDE is None, reason="no NvInferRuntime.h: set TENSORRT_ROOT to TensorRT's folder")
@pytest.mark.skipif(CUDA is None, reason="no cuda_runtime_api.h, which TensorRT's headers include")
@pytest.mark.parametrize("source", sorted(path.name for path in (SOURCES / "src" / "tensorrt").glob("*.cpp")))
def test_compiles_with_headers_of_tensorrt(source: str) -> None:
    folders = [f"-I{SOURCES / 'include'}", f"-I{SOURCES / 'src'}", "-isystem", str(INCLUDE), "-isystem", str(CUDA)]
    run("g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *folders, SOURCES / "src" / "tensorrt" / source)


@pytest.mark.skipif(missing() is not None, reason="nothing to build with")
def test_a_folder_without_headers(tmp_path: Path) -> None:
    command = ["cmake", "-G", "Ninja", "-S", str(SOURCES), "-B", str(tmp_path / "b"), f"-DTENSORRT_ROOT={tmp_path}", *json_include()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "found no NvInferRuntime.h in" in done.stderr and "wanted TensorRT 10.3 or later" in done.stderr


@pytest.mark.slow
def test_a_library_without_engines(tmp_path: Path) -> None:
    """One line of the build says so; it is smaller, samples all the same, and says what a target wants."""
    folder = built("-DTENSORRT_ROOT=")
    said = run("cmake", "-S", SOURCES, "-B", folder)
    assert "engines: none, for TENSORRT_ROOT is not set" in said
    assert (folder / "libvditc.so").stat().st_size < (built() / "libvditc.so").stat().st_size
    Device()
    library, root = Library(folder / "libvditc.so"), engine_bundle(tmp_path / "b")
    with library.bundle(root) as bundle:
        with library.session(bundle):
            pass
        for backend in (TARGET.encode(), None):
            with pytest.raises(
                LibraryError, match=r"VDITC_ERROR_UNSUPPORTED: .*wanted a library that was built with TensorRT; .*TENSORRT_ROOT"
            ), library.session(bundle, backend=backend):
                pass
