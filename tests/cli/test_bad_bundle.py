"""Bundles that were changed, cut off or written by a newer vditc, and full disks: one line from every command, nothing left behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import component_case
import device_case
import pytest
from command import Run, vditc

import vditc as library
from vditc.bundle import MANIFEST, Bundle, list_files, write_manifest
from vditc.errors import InputError
from vditc.files import whole_file

NAME = device_case.target().name
PLUGINS = "plugins/x86_64/libvditc_plugins.so"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a text encoder and a decoder, and the plugin library of an engine."""
    root = device_case.make_bundle(tmp_path_factory.mktemp("whole") / "wan.bundle").path
    component_case.add_components(root, [device_case.target()])
    for name in ("model.onnx", "model.onnx.data"):
        (root / name).write_bytes(b"portable")
    (root / PLUGINS).parent.mkdir(parents=True)
    (root / PLUGINS).write_bytes(b"library")
    write_manifest(root, dataclasses.replace(Bundle.open(root, hashes=False).manifest, files=list_files(root)))
    return root


def tampered(root: Path, name: str) -> None:
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def newer(root: Path) -> None:
    data = json.loads((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(json.dumps({**data, "schema": 2, "vditc": "9.1", "surprise": {}}))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tampered graph": (lambda root: tampered(root, "model.onnx"), "found model.onnx with sha256 "),
    "tampered part": (lambda root: tampered(root, "components/vae/first1.onnx"), "found components/vae/first1.onnx with sha256 "),
    "truncated weights": (
        lambda root: os.truncate(root / "lowered/model.onnx.data", 9),
        "found lowered/model.onnx.data of 9 bytes; wanted ",
    ),
    "truncated manifest": (lambda root: os.truncate(root / MANIFEST, 200), "found no JSON ("),
    "no plugin library": (lambda root: (root / PLUGINS).unlink(), f"found no file {PLUGINS}; wanted every file that the manifest lists"),
    "newer schema": (newer, "manifest.json: found schema 2; wanted schema 1; use vditc 9.1, which wrote it"),
}
COMMANDS: dict[str, list[str]] = {
    "run": ["run", "BUNDLE", "--prompt", "a cat", "-o", "out.safetensors"],
    "run an engine": ["run", "BUNDLE", "--prompt", "a cat", "--backend", NAME, "-o", "out.safetensors"],
    "verify": ["verify", "BUNDLE"],
    "inspect": ["inspect", "BUNDLE"],
    "eval": ["eval", "BUNDLE", "--against", "model"],
    "bench": ["bench", "BUNDLE"],
    "build": ["build", "BUNDLE", "--target", "cpu"],
    "package": ["package", "BUNDLE", "--target", NAME, "-o", "package"],
}
# Hashes are of those files alone that these read, when they read them.
LATER = {("build", "tampered graph"), ("build", "tampered part"), ("package", "tampered graph"), ("package", "tampered part")}


@pytest.mark.parametrize(("command", "damage"), [(c, d) for c in COMMANDS for d in DAMAGES if (c, d) not in LATER])
def test_every_command_refuses_a_damaged_bundle(
    whole: Path, tmp_path: Path, command: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "wan.bundle")
    DAMAGES[damage][0](Path("wan.bundle"))
    said = one_line(vditc(*["wan.bundle" if word == "BUNDLE" else word for word in COMMANDS[command]]), 2)
    assert DAMAGES[damage][1] in said and "wan.bundle" in said
    assert left(tmp_path) == ["wan.bundle"] and not (tmp_path / "wan.bundle/.build").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_so_does_the_module_for_pipelines(whole: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(whole, root := tmp_path / "wan.bundle")
    DAMAGES[damage][0](root)
    with pytest.raises(InputError) as error:
        library.load(root)
    assert DAMAGES[damage][1] in str(error.value)


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def one_line(run: Run, code: int) -> str:
    said = [line for line in run.stderr.splitlines() if line.strip()]
    assert run.code == code and len(said) == 1 and said[0].startswith("vditc: error: "), run
    return said[0]


def test_a_manifest_without_the_portable_graph(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, root := tmp_path / "wan.bundle")
    data = json.loads((root / MANIFEST).read_text())
    del data["files"]["model.onnx.data"]
    (root / MANIFEST).write_text(json.dumps(data))
    assert "found no model.onnx.data in the manifest; wanted one of " in one_line(vditc("build", str(root), "--target", "cpu"), 2)


def test_packages_read_what_they_take(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, root := tmp_path / "wan.bundle")
    tampered(root, f"components/vae/first1.{NAME}.onnx")
    said = one_line(vditc("package", str(root), "--target", NAME, "-o", str(tmp_path / "p")), 2)
    assert f"found components/vae/first1.{NAME}.onnx with sha256 " in said and left(tmp_path) == ["wan.bundle"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("named", [True, False])
def test_a_disk_that_fills_up_is_one_line(whole: Path, tmp_path: Path, number: int, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file it is: a write into an open one does not say its name."""

    def full(*_: Any) -> None:
        if not named:
            raise OSError(number, os.strerror(number))
        with whole_file(tmp_path / "device.json") as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("vditc.pipeline.device_package.plan_package", full)
    said = one_line(vditc("package", str(whole), "--target", NAME, "-o", str(tmp_path / "p")), 1)
    where = tmp_path / "device.json" if named else "vditc package"
    assert f"{where}: found a full disk; wanted room for what is written; free some space" in said
    assert left(tmp_path) == []
