"""`vditc package`: what is taken out of a bundle, that it is whole and enough, and what stops it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import device_case
import numpy as np
import onnx
import pytest
from command import vditc
from onnx import numpy_helper

from vditc.bundle import Bundle
from vditc.device.package import DevicePackage
from vditc.errors import InputError, VditcError
from vditc.pipeline import device_package
from vditc.pipeline.device_files import specifier
from vditc.pipeline.device_package import package, plan_package
from vditc.version_range import VersionRange

NAME = "jetson-orin-jp6"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return device_case.make_bundle(tmp_path / "b")


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def weights(graph: Path) -> dict[str, Any]:
    return {
        t.name: numpy_helper.to_array(t, base_dir=str(graph.parent)) for t in onnx.load(graph, load_external_data=False).graph.initializer
    }


def test_a_folder_is_what_the_device_needs(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_package(bundle, NAME)
    expected = plan.sizes
    assert package(plan, out) == expected == {name: len(data) for name, data in sorted(files(out).items())}
    assert sorted(expected) == sorted(
        [
            "build.sh",
            *(f"engines/{NAME}/{n}" for n in ("SHA256SUMS", "build.sh", "device.json", "requirements.txt", "vditc_device.pyz")),
            f"lowered/{NAME}.onnx",
            "lowered/model.onnx.data",
        ]
    )
    assert os.access(out / "build.sh", os.X_OK) and os.access(out / "engines" / NAME / "build.sh", os.X_OK)
    made = device_case.read(out)
    made.check_files(out / "engines" / NAME)
    assert made.identity == device_case.read(bundle.path).identity
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out / "engines" / NAME, check=True)


def test_data_that_the_graph_does_not_read_stays_behind(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    package(plan_package(bundle, NAME), out)
    before, after = ((root / "lowered" / "model.onnx.data").stat().st_size for root in (bundle.path, out))
    assert after == before - device_case.UNREAD
    graph = f"lowered/{NAME}.onnx"
    ours, theirs = weights(out / graph), weights(bundle.path / graph)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert np.array_equal(ours[name], value), name
    assert onnx.load(out / graph) == onnx.load(bundle.path / graph)


def test_data_that_is_read_is_taken_as_it_is(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_package, "WORTH", 0.5)
    package(plan_package(bundle, NAME), tmp_path / "out")
    for name in (f"lowered/{NAME}.onnx", "lowered/model.onnx.data", f"engines/{NAME}/device.json", f"engines/{NAME}/SHA256SUMS"):
        assert (tmp_path / "out" / name).read_bytes() == (bundle.path / name).read_bytes()


def test_a_tar_holds_the_same(bundle: Bundle, tmp_path: Path) -> None:
    plan = plan_package(bundle, NAME)
    sizes = package(plan, tmp_path / "a.tar")
    package(plan, tmp_path / "b.tar")
    package(plan, tmp_path / "out")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    subprocess.run(["tar", "xf", "a.tar"], cwd=tmp_path, check=True)
    assert files(tmp_path / NAME) == files(tmp_path / "out") and len(sizes) == len(files(tmp_path / "out"))
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar.getmembers()} == {(0, 0, 0, "")}
        assert {m.name for m in tar.getmembers() if m.mode & 0o100} == {f"{NAME}/build.sh", f"{NAME}/engines/{NAME}/build.sh"}


def test_segments_share_one_data_file(tmp_path: Path) -> None:
    bundle = device_case.make_bundle(tmp_path / "b", parts=2)
    out = tmp_path / "out"
    package(plan_package(bundle, NAME), out)
    for i in range(2):
        graph = f"lowered/{NAME}_{i}.onnx"
        ours, theirs = weights(out / graph), weights(bundle.path / graph)
        assert all(np.array_equal(ours[name], value) for name, value in theirs.items())


def test_it_builds_there_alone(bundle: Bundle, tmp_path: Path) -> None:
    """From a tar, in a folder that has nothing else, by its own script."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    package(plan_package(bundle, NAME), tmp_path / "a.tar")
    shutil.rmtree(bundle.path)
    (device := tmp_path / "device").mkdir()
    subprocess.run(["tar", "xf", "../a.tar"], cwd=device, check=True)
    driver = device_case.fake_driver(tmp_path / "driver")
    environment = device_case.environment(driver)
    run = subprocess.run(
        ["sh", f"{NAME}/build.sh", "--memory", "8"], cwd=device, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert (device / NAME / "engines" / NAME / "built.json").is_file()


def test_a_truncated_tar(bundle: Bundle, tmp_path: Path) -> None:
    """tar itself complains, and what it unpacked all the same does not build: device.json comes behind the data that it lists."""
    package(plan_package(bundle, NAME), tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) * 3 // 4])
    assert subprocess.run(["tar", "xf", "cut.tar"], cwd=tmp_path, capture_output=True, check=False).returncode != 0
    run = device_case.build(tmp_path / NAME, None)
    assert run.returncode == 2 and "build.sh: found device.json or vditc_device.pyz damaged or missing" in run.stderr


@pytest.mark.parametrize("out", ["out", "out.tar"])
@pytest.mark.parametrize("damage", ["tampered", "cut"])
def test_a_damaged_bundle_leaves_nothing(bundle: Bundle, tmp_path: Path, out: str, damage: str) -> None:
    path = bundle.path / "engines" / NAME / "vditc_device.pyz"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"!" if damage == "tampered" else data[:-1])
    found = "found engines/.*pyz with sha256" if damage == "tampered" else "found a file that ends 1 bytes early"
    with pytest.raises(InputError, match=found):
        package(plan_package(bundle, NAME), tmp_path / out)
    assert not [p for p in tmp_path.iterdir() if p.name != "b"]


@pytest.mark.parametrize("out", ["out", "out.tar"])
def test_a_full_disk(bundle: Bundle, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_package(bundle, NAME)

    def full(self: object, name: str, content: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    for sink in (device_package._Folder, device_package._Tar):
        monkeypatch.setattr(sink, "put", full)
    with pytest.raises(VditcError, match=r"found a full disk .*wanted [\d,]+ bytes free"):
        package(plan, tmp_path / out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 5))
    with pytest.raises(VditcError, match=r"found 5 bytes free; wanted [\d,]+ bytes free"):
        package(plan, tmp_path / out)
    assert not [p for p in tmp_path.iterdir() if p.name != "b"]


def test_what_is_there_is_replaced_on_demand_alone(bundle: Bundle, tmp_path: Path) -> None:
    plan, out = plan_package(bundle, NAME), tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()  # of a killed run
    package(plan, out)
    (out / "more").write_text("x")
    with pytest.raises(InputError, match="exists; wanted a path that does not exist"):
        package(plan, out)
    package(plan, out, force=True)
    assert not (out / "more").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["b", "out"]


def test_targets_that_are_not_for_a_device(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=f"found target 'cpu'; wanted one of {NAME}, whose engines a device builds"):
        plan_package(bundle, "cpu")


def test_every_model_of_a_bundle_comes_along(bundle: Bundle, tmp_path: Path) -> None:
    """An expert or a component has the same folders below its own."""
    inner = device_case.make_bundle(bundle.path / "transformer_2")
    listed = {f"transformer_2/{name}": entry for name, entry in inner.manifest.files.items()}
    whole = dataclasses.replace(bundle.manifest, files={**bundle.manifest.files, **listed})
    plan = plan_package(Bundle(bundle.path, whole), NAME)
    package(plan, tmp_path / "out")
    for root in (tmp_path / "out", tmp_path / "out" / "transformer_2"):
        DevicePackage.read(root / "engines" / NAME).check_files(root / "engines" / NAME)
    script = (tmp_path / "out" / "build.sh").read_text().splitlines()
    assert [line for line in script if line.startswith("sh ")] == [f'sh {p}engines/{NAME}/build.sh "$@"' for p in ("", "transformer_2/")]


def test_the_command_says_sizes_before_and_after(bundle: Bundle, tmp_path: Path) -> None:
    asked = vditc("package", str(bundle.path), "--target", NAME)
    assert asked.code == 0 and "bytes in 8 files" in asked.stdout and "a board of 8 GB: fits" in asked.stdout
    assert not (tmp_path / "p").exists() and "wrote" not in asked.stdout
    made = vditc("package", str(bundle.path), "--target", NAME, "-o", str(tmp_path / "p"))
    total = sum(len(data) for data in files(tmp_path / "p").values())
    assert made.stdout.startswith(asked.stdout) and made.stdout.endswith(f"wrote {tmp_path / 'p'}: {total:,} bytes\n")
    assert f"{total:,}  bytes in 8 files" in made.stdout
    facts = json.loads(vditc("package", str(bundle.path), "--target", NAME, "-o", str(tmp_path / "p.tar"), "--json").stdout)
    assert facts["bytes"] == total and facts["files"]["lowered/model.onnx.data"] > 0 and NAME in next(iter(facts["memory"]))
    again = vditc("package", str(bundle.path), "--target", NAME, "-o", str(tmp_path / "p"))
    assert again.code == 2 and "exists; wanted a path that does not exist" in again.stderr
    shown = vditc("inspect", str(tmp_path / "p"))
    assert f"for {NAME} (sm_87, TensorRT 10.3)" in shown.stdout and "not built: sh build.sh on the device" in shown.stdout


def test_versions_as_pip_reads_them() -> None:
    for least, greatest, wanted in (
        ("10.3", "10.3", ">=10.3,<10.4"),
        ("10.3", "11", ">=10.3,<12"),
        ("10.16", "11.4", ">=10.16,<11.5"),
        ("1", None, ">=1"),
    ):
        assert specifier(VersionRange(least, greatest)) == wanted


def test_a_lowered_graph_alone_becomes_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`vditc build` where the target's GPU is not."""
    lowered = device_case.save_lowered(tmp_path, "l.onnx")
    out, sizes = tmp_path / "engine", "batch=1:2:2,tokens=4:8:8,text_tokens=3"
    run = vditc("build", str(lowered), "--target", NAME, "--profile", sizes, "-o", str(out), "--json")
    assert run.code == 0 and json.loads(run.stdout) == {"status": "to build on the device", "backend": "tensorrt"}
    made = DevicePackage.read(out)
    made.check_files(out)
    assert made.activations is None and made.root == "." and made.library is None
    assert set(made.files) >= {"lowered/l.onnx", "lowered/model.onnx.data", "build.sh"}
    assert made.graphs[0].shapes["hidden_states"] == [[1, 4, 128], [2, 8, 128], [2, 8, 128]]
