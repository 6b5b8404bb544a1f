"""A package of a whole pipeline: its own scripts build the transformer, the text encoder and the VAE decoder, and all come back."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import component_case
import device_case
import pytest
from command import vditc

from vditc.bundle import Bundle, Manifest
from vditc.errors import InputError
from vditc.pipeline.bundle_parts import with_component_engine
from vditc.pipeline.device_package import package, plan_package

NAME = "jetson-orin-jp6"
ENGINES = [f"components/text_encoder/engines/{NAME}/model", *(f"components/vae/engines/{NAME}/{g}" for g in ("first1", "next"))]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle, `b`, and its package `p` as the device left it."""
    root = tmp_path_factory.mktemp("pipeline")
    device_case.make_bundle(root / "b")
    component_case.add_components(root / "b", [device_case.target()])
    package(plan_package(Bundle.open(root / "b"), NAME), root / "p")
    board = root / "board"
    for path, text in {
        "dpkg-query": "printf 6.2+b77",
        "nvpmodel": "printf 'NV Power Mode: MAXN_SUPER\\n2\\n'",
        "jetson_clocks": "printf 'GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=918000000\\n'",
    }.items():
        board.mkdir(exist_ok=True)
        (board / path).write_text(f"#!/bin/sh\n{text}\n")
        (board / path).chmod(0o755)
    environment = device_case.environment(device_case.fake_driver(root / "driver"))
    environment["PATH"] = f"{board}:{environment['PATH']}"
    command = ["sh", str(root / "p/build.sh"), "--memory", "8"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert run.returncode == 0, run.stderr
    assert sorted(p.parent.relative_to(root / "p").as_posix() for p in (root / "p").rglob("built.json")) == [*ENGINES, f"engines/{NAME}"]
    return root


def facts(manifest: Manifest) -> list[dict[str, Any]]:
    """Of every engine: the transformer's, and those of the components."""
    graphs = [g for about in manifest.components.values() for g in about["targets"][NAME]["graphs"].values()]
    return [dict(manifest.targets[NAME]), *graphs]


def test_every_engine_comes_back_with_its_facts(built: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built / "b", tmp_path / "b"))
    assert {f["engine"]["status"] for f in facts(Bundle.open(bundle).manifest)} == {"to build on the device"}
    done = vditc("collect", str(built / "p"), str(bundle))
    assert done.code == 0, done.stderr
    assert all(f"{bundle}/{folder}: model.plan" in done.stdout for folder in (*ENGINES, f"engines/{NAME}"))
    opened = Bundle.open(bundle)  # with every hash
    for found in facts(opened.manifest):
        assert (found["engine"]["status"], found["engine"]["version"]) == ("built", "10.3.0") and "seconds" not in found["engine"]
        device = found["device"]
        assert (device["jetpack"], device["power_mode"], device["driver_cuda"]) == ("6.2+b77", "MAXN_SUPER (2)", "12.6")
        assert device["clocks"]["GPU"] == {"min": 306.0, "max": 918.0, "now": 918.0} and device["driver"].startswith("unknown: ")
    for folder in (*ENGINES, f"engines/{NAME}"):
        for name in ("model.plan", "engine.json", "built.json", "timing.cache"):
            assert opened.file(f"{folder}/{name}").read_bytes() == (built / "p" / folder / name).read_bytes()
    assert opened.manifest.components["vae"]["targets"][NAME]["graphs"]["next"]["lowered"] == f"next.{NAME}.onnx"
    assert vditc("collect", str(built / "p"), str(bundle)).code == 0  # a second time changes nothing
    assert Bundle.open(bundle).manifest == opened.manifest
    shown = vditc("inspect", str(bundle)).stdout
    assert f"vae/next for {NAME} built by tensorrt 10.3.0 on " in shown and "JetPack 6.2+b77, power mode MAXN_SUPER (2)" in shown
    assert "text_encoder/model" in shown and "bf16" in shown


def test_one_engine_of_a_component_comes_back(built: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built / "b", tmp_path / "b"))
    assert vditc("collect", str(built / "p" / ENGINES[2]), str(bundle)).code == 0
    manifest = Bundle.open(bundle).manifest
    assert [f["engine"]["status"] for f in facts(manifest)] == [*["to build on the device"] * 3, "built"]
    with pytest.raises(InputError, match="found an engine of vae/whole for jetson-orin-jp6"):
        with_component_engine(manifest, "vae", NAME, "whole", {})


def test_a_damaged_engine_of_a_component(built: Path, tmp_path: Path) -> None:
    """Nothing is taken over, not even the engines that are whole."""
    bundle, packed = (Path(shutil.copytree(built / name, tmp_path / name)) for name in ("b", "p"))
    plan = packed / ENGINES[1] / "model.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    run = vditc("collect", str(packed), str(bundle))
    assert run.code == 2 and f"{ENGINES[1]}: found model.plan that is not as built.json says" in run.stderr
    assert Bundle.open(bundle).manifest == Bundle.open(built / "b").manifest
