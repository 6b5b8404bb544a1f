"""A package built under an aarch64 Python, in emulation: everything but the GPU, whose driver and TensorRT are stubs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import aarch64
import device_case
import pytest

from vditc.bundle import Bundle
from vditc.device.build import read_engine
from vditc.errors import InputError
from vditc.pipeline.collect import collect
from vditc.pipeline.device_package import package, plan_package
from vditc.plugins.emulated import emulated_library
from vditc.plugins.library import Library

NAME = "jetson-orin-jp6"
GCC, GXX = "aarch64-linux-gnu-gcc-12", "aarch64-linux-gnu-g++-12"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which(GXX) is None, reason=f"no {GXX}")]


@pytest.fixture(scope="module")
def python() -> Path:
    return aarch64.python()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return device_case.fake_driver(tmp_path_factory.mktemp("driver"), compiler=GCC)


def unpacked(tmp_path: Path) -> Path:
    """The package of a bundle for an aarch64 device, out of a tar."""
    bundle = device_case.make_bundle(tmp_path / "b", device_case.target(machine="aarch64"))
    package(plan_package(bundle, NAME), tmp_path / "p.tar")
    subprocess.run(["tar", "xf", "p.tar"], cwd=tmp_path, check=True)
    return tmp_path / NAME


def test_a_package_builds_and_comes_back(python: Path, driver: Path, tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    run = device_case.build(root, driver, "--memory", "8", PYTHON=str(python))
    assert run.returncode == 0, run.stderr
    engine = read_engine(root / "engines" / NAME)
    assert engine["engine"]["status"] == "built" and engine["device"]["python"].startswith("3.11.")
    assert engine["device"]["driver_cuda"] == "12.6"
    asked = json.loads((root / "engines" / NAME / "model.plan").read_text())
    assert asked["pools"]["WORKSPACE"] > 0
    collect(root, tmp_path / "b")
    assert Bundle.open(tmp_path / "b").manifest.targets[NAME]["engine"]["status"] == "built"
    assert "model.plan is there" in device_case.build(root, driver, "--memory", "8", PYTHON=str(python)).stderr


def test_damage_is_seen_there(python: Path, driver: Path, tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    data = root / "lowered" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    run = device_case.build(root, driver, "--memory", "8", PYTHON=str(python))
    assert run.returncode == 2 and "found lowered/model.onnx.data with sha256" in run.stderr


def test_the_plugin_library_loads_there(python: Path, tmp_path: Path) -> None:
    """The library's own sources, kernels emulated, compiled for aarch64: it links, its interface answers, and this machine refuses it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", GXX)
        library = emulated_library(tmp_path.parent / "aarch64", extra=("-march=armv8-a",))
    folder = unpacked(tmp_path) / "engines" / NAME
    code = "import sys; from pathlib import Path; from vditc.plugins.library import Library; Library(Path(sys.argv[1])); print('loaded')"
    environment = {**os.environ, "PYTHONPATH": str(folder / "vditc_device.pyz")}
    run = subprocess.run([python, "-c", code, library], capture_output=True, text=True, check=False, env=environment)
    assert run.stdout == "loaded\n", run.stderr
    with pytest.raises(InputError, match=r"wanted libvditc_plugins\.so"):
        Library(library)
