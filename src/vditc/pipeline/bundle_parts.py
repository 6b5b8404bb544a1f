"""The parts of a bundle that have graphs and engines: its transformer, and the nested bundle of every further expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vditc.bundle import MANIFEST, Bundle, FileEntry, Manifest
from vditc.bundle_update import WORK, commit
from vditc.errors import InputError
from vditc.files import room_for, sha256, write_text


@dataclasses.dataclass
class Part:
    """`folder` within the outer bundle, "" for the outer one itself; `manifest` as it is on disk."""

    bundle: Path
    folder: str
    manifest: Manifest

    @property
    def root(self) -> Path:
        """The part's own bundle."""
        return self.bundle / self.folder

    @property
    def name(self) -> str:
        """As people call it: transformer, transformer_2."""
        return self.folder or str(self.manifest.model.get("part") or "transformer")


def parts_of(path: Path) -> list[Part]:
    """The outer bundle first. InputError as `Bundle.open`; hashes are left to who reads the files."""
    outer = Bundle.open(path, hashes=False)
    nested = [PurePosixPath(name).parent.as_posix() for name in outer.manifest.files if PurePosixPath(name).name == MANIFEST]
    return [Part(path, "", outer.manifest), *(Part(path, folder, Bundle.open(path / folder, hashes=False).manifest) for folder in nested)]


def with_target(manifest: Manifest, target: str, about: Mapping[str, Any]) -> Manifest:
    """The manifest that says `about` of a target."""
    return dataclasses.replace(manifest, targets={**manifest.targets, target: about})


def with_component_engine(manifest: Manifest, component: str, target: str, graph: str, facts: Mapping[str, Any]) -> Manifest:
    """The manifest that says `facts` (engine, device) of a component's graph for a target; InputError where it knows no such graph."""
    about = manifest.components.get(component, {}).get("targets", {}).get(target, {"graphs": {}})
    if graph not in about["graphs"]:
        raise InputError(
            found=f"an engine of {component}/{graph} for {target}",
            wanted="graphs that the manifest has for its components",
            where="manifest",
            fix="compile the bundle again",
        )
    known = {key: value for key, value in about["graphs"][graph].items() if key != "device"}
    graphs = {**about["graphs"], graph: {**known, **facts}}
    return with_component_target(manifest, component, target, {**about, "graphs": graphs})


def with_component_target(manifest: Manifest, component: str, target: str, about: Mapping[str, Any]) -> Manifest:
    """The manifest that says `about` of a target of a component."""
    known = manifest.components[component]
    changed = {**known, "targets": {**known["targets"], target: about}}
    return dataclasses.replace(manifest, components={**manifest.components, component: changed})


def update(parts: list[Part], part: Part, said: Manifest, staged: Mapping[str, Path], dropped: set[str]) -> None:
    """Make `staged` (name in the part -> file, anywhere in the bundle) files of the part, and `said` its manifest but for its files.

    Files that are `dropped` are listed no more, and then removed. Whole or not at all; VditcError for a full disk.
    """
    entries = {name: FileEntry(path.stat().st_size, sha256(path)) for name, path in staged.items()}
    kept = {name: entry for name, entry in part.manifest.files.items() if name not in dropped}
    manifest = dataclasses.replace(said, files={**kept, **entries})
    renames = {_in_outer(part, name): path for name, path in staged.items()}
    changed = [(part, manifest)]
    if part.folder:  # whose files the outer manifest lists too
        inner = part.root / WORK / MANIFEST
        _write(inner, manifest)
        listed = {_in_outer(part, name): entry for name, entry in {**kept, **entries}.items()}
        listed[_in_outer(part, MANIFEST)] = FileEntry(inner.stat().st_size, sha256(inner))
        outer = parts[0]
        others = {name: entry for name, entry in outer.manifest.files.items() if not name.startswith(f"{part.folder}/")}
        changed.append((outer, dataclasses.replace(outer.manifest, files={**others, **listed})))
    for one, new in changed:
        _write(one.root / WORK / MANIFEST, new)
        renames[_in_outer(one, MANIFEST)] = one.root / WORK / MANIFEST
    commit(part.bundle, renames)
    for one, new in changed:
        one.manifest = new
    for name in dropped - set(entries):
        (part.root / name).unlink(missing_ok=True)


def _write(path: Path, manifest: Manifest) -> None:
    text = manifest.to_text()
    path.parent.mkdir(exist_ok=True)
    with room_for(path, len(text.encode())):
        write_text(path, text)


def _in_outer(part: Part, name: str) -> str:
    return f"{part.folder}/{name}" if part.folder else name
