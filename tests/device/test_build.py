"""`sh build.sh` of a package, with nothing of vditc but the package: TensorRT is a stub, the driver says which GPU there is."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import subprocess
import zipfile
from pathlib import Path

import device_case
import pytest

from vditc.build_options import BuildOptions
from vditc.device import build as build_module
from vditc.device.build import build_package, read_engine
from vditc.device.memory import BoardMemory
from vditc.device.package import BUILT, DEVICE, SUMS
from vditc.errors import InputError, VditcError
from vditc.plugins.emulated import emulated_library
from vditc.runtimes.built_with import BuiltWith

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
NAME = "jetson-orin-jp6"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return device_case.fake_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    device_case.make_bundle(tmp_path / "b")
    return tmp_path / "b"


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    device_case.make_bundle(tmp_path / "b", parts=3)
    return tmp_path / "b"


def said(run: subprocess.CompletedProcess[str], code: int) -> str:
    """What a build that stops says: one line, no traceback."""
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr.splitlines()[-1]


def test_builds_beside_the_script(root: Path, driver: Path) -> None:
    folder = root / "engines" / NAME
    before = {path for path in root.rglob("*") if path.is_file()}
    run = device_case.build(root, driver, "--memory", "8")
    assert run.returncode == 0, run.stderr
    assert {path.name for path in folder.iterdir() if path not in before} == {"model.plan", BUILT, "engine.json", "timing.cache", ".build"}
    asked = json.loads((folder / "model.plan").read_text())
    package = device_case.read(root)
    assert asked["shapes"] == package.graphs[0].shapes
    assert asked["shapes"]["hidden_states"] == [[1, 4, 128], [2, 8, 128], [2, 8, 128]]
    usable = BoardMemory.of_board(8).usable
    workspace = usable - package.graphs[0].builder - device_case.MEMORY.activations
    assert asked["pools"] == {"WORKSPACE": workspace, "TACTIC_DRAM": usable - package.graphs[0].builder}
    engine = read_engine(folder)
    assert engine["package"] == package.identity and engine["target"] == NAME
    assert engine["engine"]["status"] == "built" and engine["engine"]["version"] == "10.3.0"
    assert engine["engine"]["gemms"] == {"int8 x int8 -> float": 10}
    assert engine["engine"]["attentions"] == 2 and engine["device"]["power_mode"].startswith("unknown: ")
    assert engine["device"]["driver_cuda"] == "12.6" and engine["plugins"] is None
    assert run.stdout.startswith("wrote model.plan: 0.00 MB for jetson-orin-jp6; facts in built.json")
    assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=False).returncode == 0


def test_the_options_of_the_job_build_the_engine(tmp_path: Path, driver: Path) -> None:
    options = "level=5,workspace=1MiB,strip-weights,timing-cache=off,memory=8GiB"
    device_case.make_bundle(tmp_path / "b", options=options)
    folder = tmp_path / "b" / "engines" / NAME
    run = device_case.build(tmp_path / "b", driver)  # memory=8GiB, whatever this machine has
    assert run.returncode == 0, run.stderr
    asked = json.loads((folder / "model.plan").read_text())
    assert asked["IBuilderConfig.builder_optimization_level"] == 5 and asked["flags"] == ["STRIP_PLAN", "REFIT_IDENTICAL"]
    assert asked["pools"]["WORKSPACE"] == 1 << 20
    assert not (folder / "timing.cache").exists()
    said = BuiltWith.read(folder)
    assert said is not None and said.options == BuildOptions.parse(options) and said.version == "10.3.0"
    assert (folder / str(said.weights)).resolve() == tmp_path / "b" / "lowered" / f"{NAME}.onnx"
    plain = device_case.make_bundle(tmp_path / "plain").path
    assert device_case.read(plain).identity != device_case.read(tmp_path / "b").identity
    with pytest.raises(InputError, match="found engine option strip-weights for 2 graphs"):
        device_case.make_bundle(tmp_path / "cut", parts=2, options="strip-weights")


def test_what_is_there_is_not_built_again(root: Path, driver: Path) -> None:
    assert device_case.build(root, driver, "--memory", "8").returncode == 0
    plan = root / "engines" / NAME / "model.plan"
    first = plan.stat().st_mtime_ns
    assert "model.plan is there" in device_case.build(root, driver, "--memory", "8").stderr
    assert plan.stat().st_mtime_ns == first
    assert "building model.plan" in device_case.build(root, driver, "--memory", "8", "--force").stderr
    plan.write_bytes(b"another")
    assert "building model.plan" in device_case.build(root, driver, "--memory", "8").stderr
    read_engine(plan.parent)


def test_a_killed_build_goes_on(segments: Path, driver: Path) -> None:
    folder = segments / "engines" / NAME
    words = said(device_case.build(segments, driver, "--memory", "8", STUB_FAULT="kill:segment_01"), 1)
    assert "the builder process died of SIGKILL" in words and "too little memory" in words
    assert sorted(p.name for p in folder.glob("*.plan*")) == ["segment_00.plan"] and not (folder / BUILT).exists()
    assert not list(folder.glob(".*.partial"))
    again = device_case.build(segments, driver, "--memory", "8")
    assert again.returncode == 0
    assert [line.partition(",")[0] for line in again.stderr.splitlines()[1:4]] == [
        "segment_00.plan is there",
        "building segment_01.plan",
        "building segment_02.plan",
    ]
    engine = read_engine(folder)
    assert [part["name"] for part in engine["engine"]["segments"]] == ["segment_00", "segment_01", "segment_02"]
    assert [part["blocks"] for part in engine["engine"]["segments"]] == [["blocks.0"], ["blocks.1"], ["blocks.2"]]
    assert engine["engine"]["plan_bytes"] == sum(plan["bytes"] for plan in engine["plans"].values())
    assert engine["engine"]["attentions"] == 6


def test_half_an_engine_of_a_killed_parent_is_written_over(root: Path, driver: Path) -> None:
    folder = root / "engines" / NAME
    (folder / ".model.plan.partial").write_bytes(b"half")
    (folder / "model.plan").write_bytes(b"of unknown origin")
    assert device_case.build(root, driver, "--memory", "8").returncode == 0
    read_engine(folder)
    assert not list(folder.glob(".*.partial"))


def test_a_full_disk(root: Path, driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "engines" / NAME
    assert "found a full disk; wanted a disk that holds the whole engine" in said(
        device_case.build(root, driver, "--memory", "8", STUB_FAULT="full"), 1
    )
    assert not list(folder.glob("*.plan")) and not list(folder.glob(".*.partial"))
    monkeypatch.setattr(build_module, "check_machine", lambda package: "10.3")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(VditcError, match=r"found 0 bytes free; wanted [\d,]+ bytes free"):
        build_package(folder, say=lambda text: None, board=BoardMemory.of_board(8))


def test_another_precision_is_no_engine(root: Path, driver: Path) -> None:
    words = said(device_case.build(root, driver, "--memory", "8", STUB_FAULT="half"), 1)
    assert "10 of 12 quantized layers, attentions and plugins wrong" in words and "wanted int8 x int8" in words
    assert not list((root / "engines" / NAME).glob("*.plan"))


def test_another_gpu_and_no_gpu(root: Path, tmp_path: Path) -> None:
    other = device_case.fake_driver(tmp_path / "other", "sm_110")
    assert "found a GPU of sm_110; wanted sm_87" in said(device_case.build(root, other), 2)
    assert "found no NVIDIA GPU, or no driver; wanted sm_87" in said(device_case.build(root, None), 2)


def test_another_processor(tmp_path: Path, driver: Path) -> None:
    machine = {"x86_64": "aarch64", "aarch64": "x86_64"}[platform.machine()]
    device_case.make_bundle(tmp_path / "b", device_case.target(machine=machine))
    assert f"wanted {machine}; build on the device" in said(device_case.build(tmp_path / "b", driver), 2)


def test_another_tensorrt(root: Path, driver: Path) -> None:
    words = said(device_case.build(root, driver, STUB_RELEASE="10.16"), 2)
    assert "found tensorrt 10.16.0; wanted tensorrt 10.3" in words and "install the JetPack of this target" in words


def test_no_tensorrt(root: Path, driver: Path, tmp_path: Path) -> None:
    words = said(device_case.build(root, driver, PYTHONPATH=str(tmp_path)), 2)
    assert "found no usable tensorrt (ModuleNotFoundError: No module named 'tensorrt')" in words and "python3-libnvinfer" in words


def test_too_little_memory(root: Path, driver: Path) -> None:
    assert "usable; wanted 0.05 GiB to run it" in said(device_case.build(root, driver, "--memory", "1"), 2)
    assert "found 0.20 GiB usable" in said(device_case.build(root, driver, "--memory", "2.14"), 2)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("truncate", rf"found lowered/{NAME}\.onnx of [\d,]+ bytes; wanted [\d,]+ bytes"),
        ("missing", r"found no lowered/model\.onnx\.data; wanted [\d,]+ bytes"),
        ("tamper", r"found lowered/model\.onnx\.data with sha256 "),
    ],
)
def test_a_damaged_package_is_refused_before_any_work(root: Path, driver: Path, damage: str, found: str) -> None:
    graph, data = root / "lowered" / f"{NAME}.onnx", root / "lowered" / "model.onnx.data"
    match damage:
        case "truncate":
            graph.write_bytes(graph.read_bytes()[:-1])
        case "missing":
            data.unlink()
        case _:
            data.write_bytes(data.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match=found):
        device_case.read(root).check_files(root / "engines" / NAME)
    words = said(device_case.build(root, driver, "--memory", "8"), 2)
    assert words.startswith("vditc: error: package ") and "copy the package again" in words
    assert not list((root / "engines" / NAME).glob("*.plan"))


@pytest.mark.parametrize("name", [DEVICE, "vditc_device.pyz", SUMS])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_what_the_script_needs_is_damaged(root: Path, driver: Path, name: str, damage: str) -> None:
    path = root / "engines" / NAME / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 10 if name == SUMS else -3])
    run = device_case.build(root, driver)
    assert run.returncode == 2 and "build.sh: found device.json or vditc_device.pyz damaged or missing" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_old_python_says_so(root: Path, tmp_path: Path) -> None:
    """The archive's first file has no syntax of later versions."""
    with zipfile.ZipFile(root / "engines" / NAME / "vditc_device.pyz") as packed:
        main = packed.read("__main__.py").decode()
    code = main.replace("sys.version_info <", "(3, 8, 10) <").replace("sys.version_info[:2]", "(3, 8)")
    run = subprocess.run(["python3", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 1 and run.stderr.startswith("vditc: error: found Python 3.8; wanted 3.10 or newer")


@pytest.mark.parametrize("case", ["missing", "no library", "there"])
def test_the_plugin_library(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device_case.make_bundle(tmp_path / "b")
    package = device_case.read(tmp_path / "b")
    changed = dataclasses.replace(package, library="plugins/x/libvditc_plugins.so")
    path = tmp_path / "b" / "plugins" / "x" / "libvditc_plugins.so"
    folder = tmp_path / "b" / "engines" / NAME
    if case == "missing":
        with pytest.raises(InputError, match=r"libvditc_plugins\.so: found no file; wanted the plugin library; name it: --plugins LIB"):
            build_module._library(changed, folder, None)
        return
    path.parent.mkdir(parents=True)
    if case == "there":
        path.write_bytes(emulated_library().read_bytes())
        assert build_module._library(changed, folder, None) == path
        assert build_module._library(changed, folder, emulated_library()) == emulated_library().resolve()
        assert build_module._library(package, folder, path) is None  # nothing of this package needs it
    else:
        path.write_bytes(b"no library")
        with pytest.raises(InputError, match=r"wanted libvditc_plugins\.so"):
            build_module._library(changed, folder, None)


def test_a_package_that_points_outside(root: Path) -> None:
    path = root / "engines" / NAME / DEVICE
    text = path.read_text()
    for old, new in ((f"lowered/{NAME}.onnx", "../../etc/passwd"), ('"root": "../.."', '"root": "/"')):
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match="wanted a path inside of the package"):
            device_case.read(root)
    for broken, found in (
        ("{", "no JSON"),
        ("[]", "schema list"),
        (text.replace('"schema": 1', '"schema": 2'), "schema 2"),
        ("{}", "schema None"),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=found):
            device_case.read(root)
    path.write_text(text.replace('"builder"', '"bilder"'))
    with pytest.raises(InputError, match="wrong keys"):
        device_case.read(root)
