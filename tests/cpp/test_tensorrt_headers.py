"""libvditc's engines and TensorRT's own headers, where there are any (TENSORRT_ROOT), and a library without either."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from cpp_build import SOURCES, STAND_IN, built, json_include, missing, run
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


@pytest.mark.skipif(CUDA is None or not (CUDA / "cuda.h").is_file(), reason="no cuda.h")
def test_functions_of_the_driver(tmp_path: Path) -> None:
    """Names as cuda.h has them, for the versions that are asked for; what they take is compared by the compiler."""
    source = (SOURCES / "src" / "engines" / "cuda.cpp").read_text()
    asked = re.findall(r'get\(made\.(\w+), "(\w+)"\)', source)
    assert len(asked) == source.count("get(made.") and len(asked) > 30
    table = source[source.index("struct DriverFunctions {") :].partition("};")[0]
    lines = ['#include "cuda.h"', "#include <type_traits>", "using DeviceAddress = uint64_t; struct CUgraph_opaque;", table + "};"]
    lines.insert(1, "#include <cstdint>\n#include <string>")
    for member, function in asked:
        # Types of the same size and kind: enumerations are int, handles of graphs are pointers.
        lines.append(f'static_assert(same<decltype(DriverFunctions::{member}), decltype(&{function})>::value, "{function}");')
    alike = """
template <class A, class B> struct like : std::is_same<A, B> {};
template <class A, class B> struct like<A*, B*> : std::true_type {};
template <> struct like<int, CUresult> : std::true_type {};
template <> struct like<unsigned, CUstreamCaptureMode> : std::true_type {};
template <> struct like<int, CUdevice_attribute> : std::true_type {};
template <> struct like<DeviceAddress, CUdeviceptr> : std::true_type {};
template <class A, class B> struct same : std::false_type {};
template <class R, class... A, class S, class... B> struct same<R (*)(A...), S (*)(B...)> {
  static constexpr bool value = like<R, S>::value && (like<A, B>::value && ...);
};
"""
    lines.insert(4, alike)
    (tmp_path / "table.cpp").write_text("\n".join(lines))
    run("g++", "-std=c++17", "-fsyntax-only", f"-I{CUDA}", tmp_path / "table.cpp")


@pytest.mark.skipif(missing() is not None, reason="nothing to build with")
def test_a_folder_without_headers(tmp_path: Path) -> None:
    command = ["cmake", "-G", "Ninja", "-S", str(SOURCES), "-B", str(tmp_path / "b"), f"-DTENSORRT_ROOT={tmp_path}", *json_include()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "found no NvInferRuntime.h in" in done.stderr and "wanted TensorRT 10.3 or later" in done.stderr


@pytest.mark.skipif(missing() is not None, reason="nothing to build with")
def test_headers_of_a_distribution(tmp_path: Path) -> None:
    """On a Jetson they are in /usr/include/aarch64-linux-gnu."""
    place = run("gcc", "-print-multiarch").strip()
    if not place:
        pytest.skip("a compiler without folders for architectures")
    (tmp_path / "usr" / "include").mkdir(parents=True)
    (tmp_path / "usr" / "include" / place).symlink_to(STAND_IN / "include")
    said = run("cmake", "-G", "Ninja", "-S", SOURCES, "-B", tmp_path / "b", f"-DTENSORRT_ROOT={tmp_path / 'usr'}", *json_include())
    assert f"engines: with the headers in {tmp_path / 'usr' / 'include' / place}" in said


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
            with (
                pytest.raises(
                    LibraryError, match=r"VDITC_ERROR_UNSUPPORTED: .*wanted a library that was built with TensorRT; .*TENSORRT_ROOT"
                ),
                library.session(bundle, backend=backend),
            ):
                pass
