from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vditc.bundle import MANIFEST, Bundle, Manifest, list_files, write_manifest
from vditc.errors import InputError


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
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        Bundle.open(tmp_path)
