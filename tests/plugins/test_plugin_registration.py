"""How a process without `load_library` gets the plugins: LD_PRELOAD, VDITC_REGISTER_PLUGINS, and `vditc_register_plugins`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vditc.plugins.catalogue import OPERATORS
from vditc.plugins.emulated import SOURCES, emulated_library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
ALL = " ".join(f"vditc.{name}" for name in OPERATORS)
PROGRAM = """
import ctypes, sys
registry = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL) if sys.argv[1] else None
library = ctypes.CDLL(sys.argv[2])
if registry is not None:
    registry.registered.restype = ctypes.c_char_p
    print("before", registry.registered().decode().strip())
print("done", library.vditc_register_plugins(), library.vditc_register_plugins())
if registry is not None:
    print("after", registry.registered().decode().strip())
"""
# What Triton does: its backend, and TensorRT with it, is opened RTLD_LOCAL, and then the plugin library, of which nothing is called.
OPENER = """
import ctypes, os, sys
mode = os.RTLD_NOW | os.RTLD_LOCAL
registry = ctypes.CDLL(sys.argv[1], mode=mode) if sys.argv[1] else None
libraries = [ctypes.CDLL(path, mode=mode) for path in sys.argv[2:]]
if registry is not None:
    assert not hasattr(ctypes.CDLL(None), "getPluginRegistry")
    registry.registered.restype = ctypes.c_char_p
    print(registry.registered().decode().strip())
"""


@pytest.fixture(scope="module", params=[10, 11])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with TensorRT's functions around a registry of that version, and its name."""
    out = tmp_path_factory.mktemp("registry") / f"libnvinfer.so.{request.param}"
    source = Path(__file__).with_name("tensorrt_registry.cpp")
    flags = ("-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-DREGISTRY_MAJOR={request.param}", f"-I{SOURCES}")
    subprocess.run(["g++", *flags, str(source), "-o", str(out)], check=True)
    return out


def run(registry: str, *preload: Path) -> list[str]:
    environment = {**os.environ, "LD_PRELOAD": " ".join(map(str, preload))}
    command = [sys.executable, "-c", PROGRAM, registry, str(emulated_library())]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_library_that_is_loaded_registers_nothing_by_itself(registry: Path) -> None:
    """IPluginRegistry::loadLibrary does it then, and fails for what is there already."""
    assert run(str(registry)) == ["before ", f"done {len(OPERATORS)} 0", f"after {ALL}"]


def test_a_library_that_is_preloaded_registers_once(registry: Path) -> None:
    assert run(str(registry), emulated_library(), registry) == [f"before {ALL}", "done 0 0", f"after {ALL}"]


def test_without_tensorrt_nothing_happens() -> None:
    assert run("", emulated_library()) == ["done -1 -1"]


def opened(named: Path | None, registry: str, *libraries: Path) -> tuple[str, str]:
    """What is registered in a process that opens the libraries, and its errors."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "VDITC_REGISTER_PLUGINS")}
    if named is not None:
        environment["VDITC_REGISTER_PLUGINS"] = str(named)
    command = [sys.executable, "-c", OPENER, registry, *map(str, libraries)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def test_a_library_that_is_named_registers_when_it_is_opened(registry: Path, tmp_path: Path) -> None:
    library = emulated_library()
    (link := tmp_path / "link.so").symlink_to(library)
    for name in (library, link):
        assert opened(name, str(registry), library) == (ALL, "")
    assert opened(None, str(registry), library) == ("", "")


def test_a_copy_of_it_registers_nothing(registry: Path, tmp_path: Path) -> None:
    """As TensorRT writes one of a plan that holds the library: loadLibrary registers that one."""
    copy = Path(shutil.copy(emulated_library(), tmp_path))
    assert opened(emulated_library(), str(registry), copy) == ("", "")
    assert opened(copy, str(registry), emulated_library(), copy) == (ALL, "")
    assert opened(copy, str(registry), copy, copy) == (ALL, "")


def test_a_library_that_is_named_and_finds_no_tensorrt_says_so() -> None:
    found, said = opened(emulated_library(), "", emulated_library())
    assert found == "" and "vditc: error: found no TensorRT in the process" in said and "VDITC_REGISTER_PLUGINS" in said
