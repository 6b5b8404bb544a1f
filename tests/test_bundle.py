from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vditc import bundle as bundle_module
from vditc.bundle import MANIFEST, Bundle, Manifest, list_files, write_manifest
from vditc.errors import InputError
from vditc.files import sha256


def make(root: Path) -> Path:
    (root / "lowered").mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"graph")
    (root / "lowered" / "cpu.onnx").write_bytes(b"lowered graph")
    (root / "report").mkdir()
    (root / "report" / "run.json").write_text("{}")
    empty: dict[str, Any] = {}
    manifest = Manifest(
        vditc="0",
        model=empty,
        recipe=empty,
        layers=empty,
        kept=empty,
        mean_bits=8.0,
        sampling=empty,
        inputs=[],
        profile={"frames": [1, 2, 3]},
        graph=empty,
        targets=empty,
        quality=None,
        gate=empty,
        tools={},
        files=list_files(root),
    )
    write_manifest(root, manifest)
    return root


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((root / MANIFEST).read_text())
    change(data)
    (root / MANIFEST).write_text(json.dumps(data))


def test_opens_what_was_written(tmp_path: Path) -> None:
    bundle = Bundle.open(make(tmp_path / "b"))
    assert list(bundle.manifest.files) == ["lowered/cpu.onnx", "model.onnx"]  # report/ is not hashed
    assert bundle.manifest.profile == {"frames": [1, 2, 3]}
    assert bundle.file("model.onnx").read_bytes() == b"graph"
    with pytest.raises(InputError, match=r"no model.plan in the manifest"):
        bundle.file("model.plan")


def test_changed_byte_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "b")
    (root / "model.onnx").write_bytes(b"grapH")
    Bundle.open(root, hashes=False)
    with pytest.raises(InputError, match=r"model\.onnx with sha256"):
        Bundle.open(root)


def test_missing_and_cut_files_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "b")
    (root / "model.onnx").write_bytes(b"gra")
    with pytest.raises(InputError, match=r"model\.onnx of 3 bytes; wanted 5 bytes"):
        Bundle.open(root, hashes=False)
    (root / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"no file model\.onnx"):
        Bundle.open(root, hashes=False)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "lowered/../../secret", "link/secret"])
def test_path_that_leaves_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    root = make(tmp_path / "b")
    (tmp_path / "secret").write_bytes(b"graph")
    (root / "link").symlink_to(tmp_path)
    edit(root, lambda d: d["files"].update({name: d["files"]["model.onnx"]}))
    with pytest.raises(InputError, match=r"wanted a relative path inside the bundle"):
        Bundle.open(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=99), "schema 99"),
        (lambda d: d.pop("layers"), "wrong keys"),
        (lambda d: d.update(surprise=1), "wrong keys"),
        (lambda d: d.update(files={"model.onnx": {}}), "wrong keys"),
    ],
)
def test_wrong_manifest_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    root = make(tmp_path / "b")
    edit(root, change)
    with pytest.raises(InputError, match=message):
        Bundle.open(root)


def test_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable manifest"):
        Bundle.open(tmp_path)
    for text in ("{", "[" * 200_000):  # deeper than Python reads
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(InputError, match="no JSON"):
            Bundle.open(tmp_path)


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """A bundle of two experts."""
    root = make(tmp_path / "experts")
    inner = Bundle.open(make(root / "second"))
    (root / "second" / "report" / "run.json").unlink()
    (root / "second" / "report").rmdir()
    manifest = Bundle.open(root).manifest
    schedule = {"schedule": {"timesteps": [3, 2, 1]}}
    about = {"second": {"path": "second", "boundary": 0.9, "first_step": 1}}
    files = list_files(root, {"second": inner.manifest})
    write_manifest(root, dataclasses.replace(manifest, sampling=schedule, experts=about, files=files))
    return root


def test_expert_in_a_bundle(experts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def noted(path: Path) -> str:
        hashed.append(path.relative_to(experts).as_posix())
        return sha256(path)

    monkeypatch.setattr(bundle_module, "sha256", noted)
    second = Bundle.open(experts).experts["second"]
    assert sorted(hashed) == sorted(
        ["lowered/cpu.onnx", "model.onnx", "second/lowered/cpu.onnx", "second/manifest.json", "second/model.onnx"]
    )  # each once
    assert second.file("model.onnx").read_bytes() == b"graph" and second.experts == {}
    assert Bundle.open(experts / "second").manifest == second.manifest
    assert "experts" not in json.loads((experts / "second" / MANIFEST).read_text())
    hashed.clear()
    again = list_files(experts, {"second": second.manifest})
    assert again == Bundle.open(experts, hashes=False).manifest.files and "second/model.onnx" not in hashed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "second" / "model.onnx").write_bytes(b"grapH"), r"second/model\.onnx with sha256"),
        (lambda root: (root / "second" / "model.onnx").unlink(), r"no file second/model\.onnx"),
        (lambda root: edit(root / "second", lambda d: d.update(mean_bits=7.0)), r"second/manifest\.json of \d+ bytes"),
        (lambda root: edit(root, lambda d: d["experts"]["second"].update(path="../experts/second")), "a relative path inside the bundle"),
        (lambda root: edit(root, lambda d: d["experts"]["second"].update(path="third")), "no readable manifest"),
        (lambda root: edit(root, lambda d: d["experts"]["second"].update(first_step=3)), r"wrong experts \(first_step 3\)"),
        (lambda root: edit(root, lambda d: d["experts"]["second"].pop("path")), "wrong experts"),
        (lambda root: edit(root, lambda d: d.update(experts=["second"])), "wrong experts"),
        (lambda root: edit(root, lambda d: d["files"].pop("second/manifest.json")), r"second/manifest\.json, which the manifest does not"),
        (lambda root: edit(root, lambda d: d["files"].pop("second/model.onnx")), r"another second/model\.onnx in the expert's manifest"),
    ],
)
def test_damaged_expert_is_refused(experts: Path, change: Callable[[Path], Any], words: str) -> None:
    change(experts)
    with pytest.raises(InputError, match=words):
        Bundle.open(experts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["files"].update({"../model.onnx": d["files"]["model.onnx"]}), "a relative path inside the bundle"),
        (lambda d: d["files"]["model.onnx"].update(bytes=6), r"another second/model\.onnx in the expert's manifest"),
    ],
)
def test_expert_whose_manifest_says_otherwise_is_refused(experts: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    """Its manifest is hashed as any file, so this one was written so."""
    edit(experts / "second", change)
    entry = list_files(experts)["second/manifest.json"]
    edit(experts, lambda d: d["files"].update({"second/manifest.json": dataclasses.asdict(entry)}))
    with pytest.raises(InputError, match=words):
        Bundle.open(experts)
