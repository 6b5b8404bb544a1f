"""`vditc collect`: an engine that a device built, in the bundle that its package came from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import device_case
import pytest
from command import vditc

from vditc.bundle import Bundle, list_files, write_manifest
from vditc.device import build as build_module
from vditc.device.build import build_package
from vditc.device.memory import BoardMemory
from vditc.errors import InputError, VditcError
from vditc.pipeline.collect import collect
from vditc.pipeline.device_package import package, plan_package
from vditc.runtimes.backend import EngineFacts

NAME = "jetson-orin-jp6"
DEVICE: dict[str, Any] = {"board": "Orin", "jetpack": "6.2+b77", "l4t": "36.4.3", "power_mode": "MAXN_SUPER (2)", "driver": "unknown: no"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return device_case.make_bundle(tmp_path / "b").path


@pytest.fixture
def built(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose engine was built, without a builder."""

    def build(known: Any, folder: Path, graph: Any, plugins: Any, limit: Any, digest: str, say: Any) -> dict[str, Any]:
        (folder / graph.plan).write_bytes(b"engine " + graph.name.encode())
        facts = EngineFacts(status="built", backend="tensorrt", version="10.3.0.30", plan_bytes=12, seconds=3.5, gemms={"int8": 2})
        return {"engine": facts.to_json()}

    monkeypatch.setattr(build_module, "_build", build)
    monkeypatch.setattr(build_module, "check_machine", lambda known: "10.3.0.30")
    monkeypatch.setattr(build_module, "device_facts", lambda: DEVICE)
    package(plan_package(Bundle.open(bundle), NAME), tmp_path / "p")
    build_package(tmp_path / "p" / "engines" / NAME, say=lambda text: None, board=BoardMemory.of_board(8))
    return tmp_path / "p"


@pytest.mark.parametrize("part", ["", f"engines/{NAME}"])
def test_the_manifest_has_the_engine(built: Path, bundle: Path, part: str) -> None:
    assert list(collect(built / part, bundle)) == [f"engines/{NAME}"]
    opened = Bundle.open(bundle)  # with every hash
    about = opened.manifest.targets[NAME]
    assert about["engine"] == {"status": "built", "backend": "tensorrt", "version": "10.3.0.30", "plan_bytes": 12, "gemms": {"int8": 2}}
    assert about["device"] == DEVICE and about["backend"] == "tensorrt"
    assert opened.file(f"engines/{NAME}/model.plan").read_bytes() == b"engine model"
    assert not list(bundle.rglob("*.partial"))
    collect(built, bundle)  # a second time changes nothing
    assert Bundle.open(bundle).manifest == opened.manifest


def test_people_see_it(built: Path, bundle: Path) -> None:
    shown = vditc("inspect", str(built))
    words = "built by TensorRT 10.3.0.30 on Orin, JetPack 6.2+b77, L4T 36.4.3, power mode MAXN_SUPER (2)"
    assert shown.code == 0 and words in shown.stdout and "model.plan: 0.00 MB" in shown.stdout
    assert json.loads(vditc("inspect", str(built / "engines" / NAME), "--json").stdout)["."]["built"]["device"] == DEVICE
    done = vditc("collect", str(built), str(bundle))
    assert done.code == 0 and "model.plan 0.00 MB; built on Orin, JetPack 6.2+b77" in done.stdout
    assert f"{NAME} built by tensorrt 10.3.0.30 on Orin, JetPack 6.2+b77" in vditc("inspect", str(bundle)).stdout


def test_another_bundle_is_left_alone(built: Path, tmp_path: Path) -> None:
    other = device_case.make_bundle(tmp_path / "other", device_case.with_versions(device_case.target(), "10.3", "10.9"))
    with pytest.raises(InputError, match=r"found an engine of package .* for jetson-orin-jp6; wanted one of"):
        collect(built, other.path)
    assert Bundle.open(other.path).manifest == other.manifest


def test_engines_that_are_not_whole(built: Path, bundle: Path) -> None:
    folder = built / "engines" / NAME
    (folder / "model.plan").write_bytes(b"engine Model")
    with pytest.raises(InputError, match=r"found model\.plan that is not as built\.json says"):
        collect(built, bundle)
    (folder / "built.json").write_text("{}")
    with pytest.raises(InputError, match="found wrong keys"):
        collect(built, bundle)
    (folder / "built.json").unlink()
    with pytest.raises(InputError, match=r"found no built\.json; wanted engines that a device built"):
        collect(built, bundle)
    assert Bundle.open(bundle).manifest.targets[NAME]["engine"]["status"] == "to build on the device"


def test_a_full_disk_leaves_the_bundle_as_it_was(built: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Bundle.open(bundle).manifest
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 5))
    with pytest.raises(VditcError, match="found 5 bytes free"):
        collect(built, bundle)
    assert Bundle.open(bundle).manifest == before


def test_a_nested_bundle_has_its_own_manifest(bundle: Path, tmp_path: Path, built: Path) -> None:
    """An expert's engine is recorded in both manifests. It is another model: another identity."""
    inner = device_case.make_bundle(bundle / "transformer_2", device_case.with_versions(device_case.target(), "10.3", "10.4"))
    outer = Bundle.open(bundle).manifest
    listed = {f"transformer_2/{n}": e for n, e in inner.manifest.files.items()}
    manifest = bundle / "transformer_2" / "manifest.json"
    listed["transformer_2/manifest.json"] = list_files(manifest.parent.parent)["transformer_2/manifest.json"]
    write_manifest(bundle, dataclasses.replace(outer, files={**outer.files, **listed}))
    package(plan_package(Bundle.open(bundle), NAME), tmp_path / "both")
    for folder in ("engines", "transformer_2/engines"):
        build_package(tmp_path / "both" / folder / NAME, say=lambda text: None, board=BoardMemory.of_board(8))
    assert len(collect(tmp_path / "both", bundle)) == 2
    for root in (bundle, bundle / "transformer_2"):
        assert Bundle.open(root).manifest.targets[NAME]["engine"]["status"] == "built"
