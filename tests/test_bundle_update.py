"""A bundle that is changed by a command which is killed at any moment."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from vditc.bundle import MANIFEST, Bundle, Manifest, list_files, write_manifest
from vditc.bundle_update import WORK, updating
from vditc.errors import InputError, VditcError
from vditc.pipeline.bundle_parts import Part, parts_of, update, with_target


def make(root: Path, part: str = "transformer") -> Manifest:
    (root / "engines/h100").mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"graph")
    (root / "engines/h100/build.sh").write_bytes(b"script")
    (root / "engines/h100/engine.json").write_bytes(b"old facts")
    empty: dict[str, Any] = {}
    manifest = Manifest(
        vditc="0",
        model={"part": part},
        recipe=empty,
        layers=empty,
        kept=empty,
        mean_bits=8.0,
        sampling=empty,
        inputs=[],
        profile={"frames": [1, 2, 3]},
        graph=empty,
        targets={"h100": {"engine": {"status": "to build on the device"}}},
        quality=None,
        gate=empty,
        tools={},
        files=list_files(root),
    )
    write_manifest(root, manifest)
    return manifest


def two(root: Path) -> Path:
    make(root / "transformer_2", "transformer_2")
    make(root)
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return two(tmp_path / "b")


def change(parts: list[Part], part: Part, names: tuple[str, ...]) -> None:
    (part.root / WORK).mkdir(exist_ok=True)
    staged = {}
    for name in names:
        staged[f"engines/h100/{name}"] = part.root / WORK / name
        staged[f"engines/h100/{name}"].write_text(f"new {name}")
    update(parts, part, with_target(part.manifest, "h100", {"engine": {"status": "built"}}), staged, {"engines/h100/build.sh"})


def state(root: Path, part: str) -> str:
    """Which of the two bundles it is, whole and with all hashes right."""
    manifest = Bundle.open(root).manifest
    assert Bundle.open(root / part).manifest.files.items() <= {n.removeprefix(f"{part}/"): e for n, e in manifest.files.items()}.items()
    files = {name for name in Bundle.open(root / part).manifest.files if name.startswith("engines/")}
    status = Bundle.open(root / part).manifest.targets["h100"]["engine"]["status"]
    assert files == {f"engines/h100/{'model.plan' if status == 'built' else 'build.sh'}", "engines/h100/engine.json"}
    return str(status)


def changed_until(last: int, bundle: Path, folder: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> int:
    """Change files of a part, and be killed when so many renames are done; returns how many there were, or were tried."""
    done, replace = 0, Path.replace

    def killed(self: Path, target: Path) -> Path:
        nonlocal done
        if (done := done + 1) > last:
            raise KeyboardInterrupt
        return replace(self, target)

    with updating(bundle):
        parts = parts_of(bundle)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", killed)
            change(parts, next(p for p in parts if p.folder == folder), names)
    return done


def test_a_first_engine_never_breaks_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are new and the manifest comes last: what a kill leaves opens, before any other command."""
    found = set()
    for last in range(9):
        bundle = two(tmp_path / str(last))
        done = changed_until(last, bundle, "", ("model.plan", "layers.json"), monkeypatch)
        found.add(Bundle.open(bundle).manifest.targets["h100"]["engine"]["status"])
        if done <= last:
            break
    assert found == {"to build on the device", "built"}


@pytest.mark.parametrize("folder", ["", "transformer_2"])
def test_killed_at_every_rename(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the next command the bundle is the old or the new one, never something between."""
    found: list[str] = []
    for last in range(9):
        bundle = two(tmp_path / str(last))

        done = changed_until(last, bundle, folder, ("model.plan", "engine.json"), monkeypatch)  # a new one, and one in another's place
        with updating(bundle):  # the next command
            found.append(state(bundle, folder or "."))
        assert not (bundle / WORK / "commit.json").exists()
        if done <= last:
            break
    assert done <= last and found[0] == "to build on the device" and found[-1] == "built"
    assert found == sorted(found, reverse=True) and found.count("built") >= 4  # the note, two files, one manifest or two
    assert not (bundle / folder / "engines/h100/build.sh").exists()


def test_one_command_at_a_time(bundle: Path) -> None:
    with (
        updating(bundle),
        pytest.raises(VditcError, match=rf"found process {os.getpid()}, which is building engines of this bundle"),
        updating(bundle),
    ):
        pass
    with updating(bundle):
        pass


def test_parts(bundle: Path) -> None:
    assert [(part.name, part.folder) for part in parts_of(bundle)] == [("transformer", ""), ("transformer_2", "transformer_2")]
    (bundle / "transformer_2" / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match=r"transformer_2/manifest.json"):
        parts_of(bundle)
