"""The interface of libvditc as a promise: symbols, prototypes, layouts; and as something that is built, installed and linked."""

from __future__ import annotations

import ctypes
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import cpp_engines
import cpp_library
import pytest
from cpp_build import BASELINE, SOURCES, built, missing, page_blocks, run

ROOT = SOURCES.parents[1]
HEADER = SOURCES / "include" / "vditc" / "vditc.h"
DATA = SOURCES / "tests" / "data"
FUZZED = ("manifest", "safetensors", "path", "scheduler", "decoder", "tokenizer")
MEGABYTES = 3  # of the library without its symbols
pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def code() -> str:
    """The header without comments and preprocessor lines."""
    return re.sub(r"^#.*(?:\\\n.*)*", "", re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL), flags=re.MULTILINE)


def interface(work: Path) -> str:
    """All that a program which was compiled against the header relies on, as text."""
    text = code()
    prototypes = sorted(" ".join(p.split()) for p in re.findall(r"VDITC_API ([^;]+);", text))
    constants = re.findall(r"\b(VDITC_\w+) = (-?\d+)", text)
    structures = re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, re.DOTALL)
    callbacks = sorted(" ".join(c.split()) for c in re.findall(r"typedef (\w+ \(\*\w+\)[^;]+);", text))
    lines = ["#include <stdio.h>", "#include <stddef.h>", '#include "vditc/vditc.h"', "int main(void) {"]
    for name, body in structures:
        lines.append(f'  printf("struct {name} %zu\\n", sizeof({name}));')
        fields = re.findall(r"(\w+)(?:\[\w+\])*\s*(?=[;,])", re.sub(r"\(\*(\w+)\)\([^)]*\)", r" \1", body))
        lines += [f'  printf("  {f} %zu %zu\\n", offsetof({name}, {f}), sizeof((({name}*)0)->{f}));' for f in fields]
    (work / "layout.c").write_text("\n".join([*lines, "  return 0;", "}", ""]))
    run(os.environ.get("CC", "gcc"), "-std=c99", f"-I{HEADER.parents[1]}", work / "layout.c", "-o", work / "layout")
    layouts, symbols = run(work / "layout").splitlines(), exported(built() / "libvditc.so")
    return "\n".join([*prototypes, *callbacks, *(f"{n} = {v}" for n, v in constants), *layouts, *symbols]) + "\n"


def exported(library: Path) -> list[str]:
    """Symbols with their versions."""
    said = run("readelf", "--dyn-syms", "--wide", library)
    names = [line.split()[-1] for line in said.splitlines() if re.search(r"\b(GLOBAL|WEAK)\b.*\bDEFAULT\b\s+\d", line)]
    return sorted(f"symbol {name}" for name in names if name != "VDITC_1")


def test_nothing_that_was_promised_has_changed(tmp_path: Path) -> None:
    found = interface(tmp_path)
    if os.environ.get("VDITC_WRITE_BASELINE"):  # something was added: read the difference before it is committed
        BASELINE.write_text(found)
    assert found == BASELINE.read_text(), "programs that were compiled before rely on this: add functions and fields, change none"


def test_the_library_shows_its_interface_alone() -> None:
    declared = re.findall(r"VDITC_API [^;(]*?\b(vditc_\w+)\(", code())
    assert len(declared) > 40 and exported(built() / "libvditc.so") == sorted(f"symbol {name}@@VDITC_1" for name in declared)
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", run("readelf", "-d", built() / "libvditc.so")))
    assert needed <= {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert "SONAME" in run("readelf", "-d", built() / "libvditc.so") and (built() / "libvditc.so.1").exists()


def test_the_library_is_small(tmp_path: Path) -> None:
    run("strip", "-o", tmp_path / "stripped.so", built() / "libvditc.so")
    assert (tmp_path / "stripped.so").stat().st_size < MEGABYTES * 2**20


def test_python_lays_structures_out_alike(tmp_path: Path) -> None:
    """Or the tests through ctypes would test something else."""
    sizes = dict(re.findall(r"^struct (\w+) (\d+)$", BASELINE.read_text(), re.MULTILINE))
    kinds = [kind for kind in vars(cpp_library).values() if isinstance(kind, type) and issubclass(kind, ctypes.Structure)]
    assert len(kinds) == len(sizes)
    for kind in kinds:
        name = "vditc_" + re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
        assert ctypes.sizeof(kind) == int(sizes[name]), name


@pytest.mark.parametrize(
    ("compiler", "flags"), [("gcc", ("-std=c99", "-x", "c")), ("gcc", ("-std=c17", "-x", "c")), ("g++", ("-std=c++11", "-x", "c++"))]
)
def test_the_header_alone_compiles(compiler: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    strict = (
        ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wstrict-prototypes")
        if "c" in flags
        else ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
    )
    (tmp_path / "x").write_text('#include "vditc/vditc.h"\n')
    run(compiler, *flags, *strict, f"-I{HEADER.parents[1]}", "-c", tmp_path / "x", "-o", tmp_path / "x.o")


def test_programs_of_ctest() -> None:
    """In C, in C++, of what the interface does not show, and the examples."""
    said = run("ctest", "--test-dir", built(), "--output-on-failure", "--timeout", "60")
    assert "100% tests passed" in said and "out of 8" in said


def test_the_bundle_of_ctest_is_todays(tmp_path: Path) -> None:
    """`python tests/cpp_engines.py runtimes/cpp/tests/data` writes it."""
    cpp_engines.save_data(tmp_path)
    names = sorted(p.relative_to(DATA).as_posix() for p in DATA.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(DATA, tmp_path, names, shallow=False)[0] == names


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"project(vditc VERSION {version} " in (SOURCES / "CMakeLists.txt").read_text()
    assert cpp_library.Library().raw.vditc_version().decode() == version
    assert re.findall(r"VDITC_ABI_VERSION (\d+)u", HEADER.read_text()) == re.findall(
        r"set\(VDITC_ABI (\d+)\)", (SOURCES / "CMakeLists.txt").read_text()
    )


def moved(to: Path) -> Path:
    """The install tree, elsewhere: nothing in it may know where it was."""
    shutil.copytree(built() / "installed", to, symlinks=True)
    for file in to.rglob("*"):
        if file.suffix in (".cmake", ".pc"):
            assert str(built()) not in file.read_text(), file
    return to


def test_a_project_finds_the_package(tmp_path: Path) -> None:
    prefix = moved(tmp_path / "prefix")
    (tmp_path / "host").mkdir()
    for name in ("interface.cpp", "check.h", "status_of.h"):
        shutil.copy(SOURCES / "tests" / name, tmp_path / "host")
    (tmp_path / "host" / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(host LANGUAGES CXX)\nset(CMAKE_CXX_STANDARD 17)\n"
        f"add_executable(host interface.cpp)\n{page_blocks('cmake')[0]}find_package(Threads REQUIRED)\n"
        "target_link_libraries(host PRIVATE Threads::Threads)\n"
    )
    run("cmake", "-G", "Ninja", "-S", tmp_path / "host", "-B", tmp_path / "out", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "out")
    run(tmp_path / "out" / "host", DATA / "bundle", DATA / "conditioning.safetensors", cwd=tmp_path)


def test_a_makefile_finds_the_package(tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    prefix = moved(tmp_path / "prefix")
    library = next(prefix.glob("lib*/**/libvditc.so")).parent
    env = {"PKG_CONFIG_PATH": str(library / "pkgconfig"), "LD_LIBRARY_PATH": str(library)}
    flags = run("pkg-config", "--cflags", "--libs", "vditc", env=env).split()
    run("gcc", SOURCES / "tests" / "interface.c", *flags, "-lm", "-o", tmp_path / "host")
    run(tmp_path / "host", DATA / "bundle", DATA / "conditioning.safetensors", cwd=tmp_path, env=env)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """No nlohmann/json: one line says what to install."""
    off = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in ("nlohmann_json", "Python3")]
    command = ["cmake", "-G", "Ninja", "-S", str(SOURCES), "-B", str(tmp_path), "-DCMAKE_IGNORE_PATH=/usr/include;/usr/local/include", *off]
    job = subprocess.run(command, capture_output=True, text=True, check=False)
    assert job.returncode != 0 and "apt install nlohmann-json3-dev, pip install nlohmann-json" in " ".join(job.stderr.split())


ASAN = ("-DVDITC_SANITIZE=address,undefined", "-DVDITC_FUZZ=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DBUILD_SHARED_LIBS=OFF")


@pytest.mark.parametrize("target", FUZZED)
def test_changes_of_the_corpus(target: str, tmp_path: Path) -> None:
    """A minute of all targets, without coverage; `make test-all` has libFuzzer."""
    folder = built(*ASAN)
    run(folder / "tests" / f"vditc_fuzz_{target}", "-max_total_time=10", SOURCES / "tests" / "corpus" / target, cwd=tmp_path)


SANITIZERS = {"address,undefined": {"UBSAN_OPTIONS": "halt_on_error=1"}, "thread": {"TSAN_OPTIONS": "halt_on_error=1"}}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers_find_nothing(sanitizer: str) -> None:
    folder = built(f"-DVDITC_SANITIZE={sanitizer}", "-DCMAKE_BUILD_TYPE=Debug")
    run("ctest", "--test-dir", folder, "--output-on-failure", "--timeout", "300", env=SANITIZERS[sanitizer])


@pytest.mark.slow
def test_sanitizers_find_nothing_in_what_is_called_from_python() -> None:
    """Every error path of the tests beside this one, with AddressSanitizer and UBSan."""
    folder = built("-DVDITC_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug")
    runtime = [run("gcc", f"-print-file-name={name}").strip() for name in ("libasan.so", "libubsan.so")]
    env = {
        "LD_PRELOAD": " ".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "VDITC_CPP_LIBRARY": str(folder),
    }
    parts = ("bundles", "sampling", "schedulers", "decoding", "tokenizers", "encoding", "engines", "part_engines")
    names = [Path(__file__).with_name(f"test_{part}.py") for part in parts]
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names, cwd=ROOT, env=env, seconds=1800)


@pytest.mark.slow
@pytest.mark.parametrize("target", FUZZED)
def test_fuzzers_find_nothing(target: str, tmp_path: Path) -> None:
    clang = next((name for name in ("clang++", "clang++-14", "clang++-16", "clang++-18") if shutil.which(name)), None)
    if clang is None:
        pytest.skip("no clang++")
    compilers = (f"-DCMAKE_CXX_COMPILER={clang}", f"-DCMAKE_C_COMPILER={clang.replace('++', '')}")
    folder = built(*compilers, *ASAN)
    seconds, corpus = os.environ.get("VDITC_FUZZ_SECONDS", "150"), SOURCES / "tests" / "corpus" / target
    out = tmp_path / "corpus"
    out.mkdir()
    run(
        folder / "tests" / f"vditc_fuzz_{target}",
        f"-max_total_time={seconds}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        out,
        corpus,
        cwd=tmp_path,
        seconds=900,
    )


@pytest.mark.slow
def test_aarch64(tmp_path: Path) -> None:
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("no aarch64-linux-gnu-g++: apt install g++-aarch64-linux-gnu")
    folder = built(f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'cmake' / 'toolchains' / 'aarch64-linux-gnu.cmake'}")
    assert "AArch64" in run("readelf", "-h", folder / "libvditc.so")
    if shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static"):
        run("ctest", "--test-dir", folder, "--output-on-failure", "--timeout", "300")
