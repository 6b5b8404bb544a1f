"""The plugin library for GPUs, compiled here and never run: exports, what is compiled again, what kernels use, what errors say.

Tests without `slow` compile all but CUTLASS's kernels for the GPUs of x86_64; the slow ones those too, and other platforms.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import vditc

from vditc.errors import InputError, VditcError
from vditc.files import sha256
from vditc.plugins import build as build_module
from vditc.plugins import nvrtc
from vditc.plugins.build import (
    ARCHITECTURES,
    CUTLASS_ARCHITECTURES,
    FACTS,
    LIBRARY,
    PATTERNS,
    SOURCES,
    TIMES,
    Built,
    Wanted,
    build,
    library_path,
    units,
)
from vditc.plugins.library import ABI_VERSION, Library
from vditc.plugins.toolkit import find_cutlass, find_nvcc, find_program, find_toolkit, host_machine
from vditc.plugins.wheels import cache_home

SMALL = Wanted.of("x86_64", ["80"], cutlass=False)
MEGABYTES = 8  # of the whole library, so that a bundle for each platform stays small beside its weights
# Bytes of a thread's stack: QuantizeToken keeps rows there that are wider than registers.
STACK = {"vditc::quantize_token": 1040}


def toolkit() -> None:
    """Skip without compilers."""
    try:
        find_toolkit(host_machine(), cache_home())
        find_program("cmake"), find_program("ninja")
    except InputError as error:
        pytest.skip(str(error))


def exported(library: Path) -> set[str]:
    text = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in text.splitlines()}


def undefined(library: Path) -> set[str]:
    text = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in text.splitlines()}


def declared() -> set[str]:
    """The C functions of the interface."""
    header = (SOURCES / "native" / "vditc_plugins.h").read_text()
    return set(re.findall(r"^VDITC_API [^(]*?\b(vditc_\w+)\(", header, re.MULTILINE))


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the library's ground and one file of kernels: their own copy, to be changed by tests."""
    to = tmp_path_factory.mktemp("sources")
    for name in PATTERNS:
        for path in SOURCES.glob(name):
            folder, keep = path.parent.name, path.suffix == ".h" or path.parent == SOURCES
            if keep or folder in ("native", "nvrtc") or (folder, path.name) == ("qlinear", "expand.cu"):
                made = to / path.relative_to(SOURCES)
                made.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, made)
    return to


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty at first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def small(sources: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The small library, built once."""
    toolkit()
    return build(SMALL, tmp_path_factory.mktemp("built"), sources=sources, cache=cache, jobs=2)


def test_library_of_one_architecture(small: Built) -> None:
    assert small.compiled >= 3
    # The ground's functions alone: its operators' are in files that this library has not.
    memory = {f"vditc_device_{does}" for does in ("allocate", "free", "copy")}
    assert exported(small.path) == {"vditc_abi_version", "vditc_last_error", "vditc_device_sm", *memory}
    assert not [name for name in undefined(small.path) if name.startswith(("cuda", "cu", "_ZSt", "_ZNSt", "vditc"))]
    assert small.facts["sha256"] == sha256(small.path) and small.facts["bytes"] == small.path.stat().st_size
    assert json.loads(small.path.with_name(FACTS).read_text()) == small.facts
    assert set(small.facts["needs"]) <= {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux-x86-64.so.2"}
    assert tuple(map(int, small.facts["glibc"].split("."))) <= (2, 35)  # Ubuntu 22.04
    assert not any("seconds" in key for key in small.facts)


def test_kernels_use_no_stack(small: Built) -> None:
    kernels = small.facts["kernels"]
    assert len(kernels) >= 4 and {k["architecture"] for k in kernels} == {"80"}
    assert all("vditc::qlinear::" in k["kernel"] and k["registers"] > 8 for k in kernels)
    assert not [k for k in kernels if k["stack"] or k["spill_stores"] or k["spill_loads"]]


def test_a_library_for_more_gpus_does_where_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same sources and compilers; the one for the fewest GPUs. Nothing is compiled here."""

    def keep(made: Path, kept: Path, made_of: dict[str, Any], digest: str) -> None:
        kept.mkdir(parents=True)
        (kept / LIBRARY).write_text(" ".join(made_of["architectures"]))
        (kept / TIMES).write_text("{}")
        (kept / FACTS).write_text(json.dumps({**made_of, "abi": ABI_VERSION, "sha256": sha256(kept / LIBRARY)}))

    made_of = {"cuda": "13.0.0", "cxx": "g++", "cutlass": None}
    monkeypatch.setattr(build_module, "_settings", lambda *_: (made_of, []))
    monkeypatch.setattr(build_module, "_compile", lambda *_: 1)
    monkeypatch.setattr(build_module, "_keep", keep)

    def of(*gpus: str, wider: bool = True) -> tuple[int, str]:
        found = build(Wanted.of("x86_64", gpus), tmp_path / "out", wider=wider, cache=tmp_path / "cache")
        return found.compiled, found.path.read_text()

    assert of("80", "86", "89", "90a") == (1, "80 86 89 90a") and of("80", "89") == (0, "80 86 89 90a")
    assert of("80", "89", wider=False) == (1, "80 89") and of("89") == (0, "80 89")
    assert of("80", "100a") == (1, "80 100a")
    made_of["cuda"] = "13.1.0"
    assert of("80") == (1, "80")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty or relative XDG_CACHE_HOME is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home() == tmp_path / "vditc" / "plugins"
    for said in ("", "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", said)
        assert cache_home() == Path.home() / ".cache" / "vditc" / "plugins"


def test_nothing_is_compiled_twice(small: Built, sources: Path, cache: Path, tmp_path: Path) -> None:
    again = build(SMALL, tmp_path, sources=sources, cache=cache)
    assert again.compiled == 0 and again.facts == small.facts and again.path.read_bytes() == small.path.read_bytes()
    assert library_path("x86_64", tmp_path) == again.path
    # A copy with other times is the same sources.
    copied = shutil.copytree(sources, tmp_path / "copied", copy_function=shutil.copyfile)
    assert build(SMALL, tmp_path, sources=copied, cache=cache).compiled == 0
    # A library that was damaged is put back.
    again.path.write_bytes(b"no library")
    assert build(SMALL, tmp_path, sources=sources, cache=cache).path.read_bytes() == small.path.read_bytes()


def test_a_changed_source_is_compiled_alone(small: Built, sources: Path, cache: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(sources, tmp_path / "changed")
    status = changed / "native" / "status.cpp"
    status.write_text(status.read_text().replace("VDITC_ABI_VERSION; }", "VDITC_ABI_VERSION + 41; }"))
    other = build(SMALL, tmp_path, sources=changed, cache=cache)
    assert other.compiled == 1
    assert other.facts["digest"] != small.facts["digest"] and other.facts["sources"] != small.facts["sources"]
    assert other.facts["kernels"] == small.facts["kernels"]
    assert other.path.read_bytes() != small.path.read_bytes()
    with pytest.raises(InputError, match=r"found version 42 of its interface; wanted version 1"):
        Library(other.path)
    # And back: the old sources' library is still there.
    assert build(SMALL, tmp_path, sources=sources, cache=cache).compiled == 0


def test_errors_of_the_compiler_are_said(small: Built, sources: Path, cache: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(sources, tmp_path / "broken")
    status = broken / "native" / "status.cpp"
    status.write_text(status.read_text() + "\nint unfinished(\n")
    with pytest.raises(VditcError, match=r"(?s)status\.cpp:\d+.*error.*see .*build\.log") as caught:
        build(SMALL, tmp_path, sources=broken, cache=cache)
    assert "compile_log.py" not in str(caught.value)
    assert not (tmp_path / "x86_64").exists()


def test_without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"found no nvcc; wanted nvcc 13\.0; .*pip install 'vditc\[plugins\]'"):
        find_nvcc()
    run = vditc("plugins", "build", "-o", str(tmp_path))
    assert run.code == 2 and "no nvcc" in run.stderr and "Traceback" not in run.stderr
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"CUDA_HOME=.*gone"):
        find_nvcc()


def test_nvcc_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "nvcc"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.85'\n")
    old.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"found nvcc 12\.6\.85; wanted 13\.0 or newer"):
        find_toolkit(host_machine(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arch", "8.9"), r"found '8\.9'"),
        (("--arch", "80,70"), r"found '70'"),
        (("--platform", "riscv64"), "found riscv64"),
        (("--cuda", "11"), r"found \w+-cuda11"),
        (("--tensorrt", "/nowhere"), r"found no NvInfer\.h"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], said: str) -> None:
    run = vditc("plugins", "build", *arguments)
    assert run.code == 2 and re.search(said, run.stderr), run.stderr


def test_path_of_what_was_not_built(tmp_path: Path) -> None:
    run = vditc("plugins", "path", "-o", str(tmp_path))
    assert run.code == 2 and "vditc plugins build" in run.stderr


def test_units(tmp_path: Path) -> None:
    for name in ("cutlass_sm80.cu", "cutlass_sm90.cu", "cutlass_sm100_b.cu", "cutlass_absent.cpp", "launch.cu", "emulator_x.cpp"):
        (tmp_path / "op").mkdir(exist_ok=True)
        (tmp_path / "op" / name).touch()

    def of(architectures: list[str], **others: Any) -> dict[str, tuple[str, ...]]:
        return dict(units(Wanted.of("x86_64", architectures, **others), tmp_path))

    ground = {"op/cutlass_absent.cpp": (), "op/launch.cu": ("90a", "87", "110a", "120a")}
    assert of(["90a", "87", "110a", "120a"]) == {
        **ground,
        "op/cutlass_sm80.cu": ("87", "120a"),
        "op/cutlass_sm90.cu": ("90a",),
        "op/cutlass_sm100_b.cu": ("110a",),
    }
    assert of(["90a", "87", "110a", "120a"], cutlass=False) == ground
    assert "op/cutlass_sm90.cu" not in of(["90"])  # wgmma is in sm_90a's code alone
    assert not any("cutlass_sm" in name for name in of(["80"], cuda=12))


def test_cmake_and_python_agree() -> None:
    text = (SOURCES / "CMakeLists.txt").read_text()
    for generation, accepted in CUTLASS_ARCHITECTURES.items():
        assert re.search(rf"set\(accepted_{generation} ([^)]*)\)", text)[1].split() == list(accepted)  # type: ignore[index]
    default = re.search(r'set\(VDITC_ARCHITECTURES "([^"]*)"', text)[1].split(";")  # type: ignore[index]
    assert set(default) == {*ARCHITECTURES["x86_64"], *ARCHITECTURES["aarch64"]}


def test_list_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    listed = json.loads(vditc("plugins", "build", "--list", "--arch", "80,90a", "--platform", "x86_64", "--json").stdout)["units"]
    assert listed["qlinear/expand.cu"] == ["80", "90a"] and listed["native/status.cpp"] == []
    assert "native/emulator.cpp" not in listed


def check_whole(built: Built, architectures: tuple[str, ...]) -> None:
    """Of a library of all sources: exports, kernels for every GPU, no spills, size."""
    assert declared() <= exported(built.path)
    others = exported(built.path) - declared()
    assert others <= {"getCreators", "getPluginCreators", "setLoggerFinder", "vditc_register_plugins"}, others
    kernels = built.facts["kernels"]
    assert {k["architecture"] for k in kernels} == set(architectures)
    spilled = [k for k in kernels if k["spill_stores"] or k["spill_loads"]]
    assert not spilled, "\n".join(f"{k['architecture']} {k['spill_stores']} {k['kernel'][:200]}" for k in spilled)
    deep = [k for k in kernels if k["stack"] > max((most for name, most in STACK.items() if name in k["kernel"]), default=0)]
    assert not deep, "\n".join(f"{k['architecture']} {k['stack']} {k['kernel'][:200]}" for k in deep)
    assert built.facts["bytes"] <= MEGABYTES * 1e6


@pytest.mark.parametrize("architectures", [("80", "120a"), pytest.param(ARCHITECTURES["x86_64"], marks=pytest.mark.slow)], ids=len)
def test_hand_written_kernels(architectures: tuple[str, ...], tmp_path: Path) -> None:
    """A minute of a core for two generations, six for every GPU, once for every state of the sources.

    The README's test takes the two that this one built, or the other way round.
    """
    toolkit()
    wanted = Wanted.of("x86_64", list(architectures), cutlass=False)
    check_whole(build(wanted, tmp_path), wanted.architectures)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["x86_64", "aarch64"])
def test_whole_library(platform: str, tmp_path: Path) -> None:
    toolkit()
    wanted = Wanted.of(platform)
    try:
        find_toolkit(wanted.machine, cache_home())
        find_cutlass(cache_home())
    except InputError as error:
        pytest.skip(str(error))
    built = build(wanted, tmp_path, jobs=os.cpu_count())
    check_whole(built, wanted.architectures)
    assert tuple(map(int, built.facts["glibc"].split("."))) <= (2, 35)


@pytest.mark.slow
def test_library_for_jetpack_6(tmp_path: Path) -> None:
    wanted = Wanted.of("aarch64", cuda=12)
    try:
        nvrtc.settings(wanted, cache_home())
    except InputError as error:
        pytest.skip(str(error))
    built = build(wanted, tmp_path)
    check_whole(built, wanted.architectures)
    assert built.path.parent.name == "aarch64-cuda12"
    header = subprocess.run(["readelf", "-h", built.path], capture_output=True, text=True, check=True).stdout
    assert "AArch64" in header
    assert set(built.facts["needs"]) <= {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux-aarch64.so.1"}
    assert tuple(map(int, built.facts["glibc"].split("."))) <= (2, 35)
