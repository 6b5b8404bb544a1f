"""`vditc collect`: takes engines that a device built into the bundle that their package was made of, and records how they were built."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vditc.bundle import MANIFEST, FileEntry, Manifest, read_manifest, write_manifest
from vditc.bundle_update import updating
from vditc.device.build import read_engine
from vditc.device.package import BUILT, DEVICE, DevicePackage
from vditc.errors import InputError
from vditc.files import room_for, sha256
from vditc.pipeline.bundle_parts import with_component_engine
from vditc.runtimes.built_with import NAME as BUILT_WITH
from vditc.runtimes.trt_process import TIMING_CACHE

_RUN = ("seconds", "peak_rss_bytes")  # differ from run to run: no part of a manifest


def collect(built: Path, bundle: Path) -> dict[str, Mapping[str, Any]]:
    """Copy the engines of `built`, a package or one of its engine folders, into `bundle`; folder there -> what its built.json says.

    InputError when nothing was built there, when an engine is not as its built.json says, or when it is of another bundle,
    profile or target; VditcError when the disk is full, or another command builds engines of the bundle. Engines are copied beside their
    places first, and a collect that was killed can be repeated.
    """
    read_manifest(bundle)  # nothing is written into what is no bundle
    with updating(bundle):
        return _collect(built, bundle)


def _collect(built: Path, bundle: Path) -> dict[str, Mapping[str, Any]]:
    manifest = read_manifest(bundle)
    folders = [PurePosixPath(name).parent for name in manifest.files if PurePosixPath(name).name == DEVICE]
    known = {DevicePackage.read(bundle / folder).identity: folder for folder in folders}
    engines: dict[PurePosixPath, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(built.rglob(BUILT)):
        said = read_engine(path.parent)
        if (folder := known.get(said["package"])) is None:
            raise InputError(
                found=f"an engine of package {said['package'][:16]}… for {said['target']}",
                wanted=f"one of {', '.join(f'{i[:16]}… ({f})' for i, f in known.items()) or 'none: no target is built on a device'}",
                where=f"{path}, for bundle {bundle}",
                fix="name the bundle that the package was made of",
            )
        engines[folder] = (path.parent, said)
    if not engines:
        raise InputError(found=f"no {BUILT}", wanted="engines that a device built", where=str(built), fix="run build.sh on the device")
    files: dict[str, FileEntry] = {}
    for folder, (source, said) in engines.items():
        files |= _copied(source, said, bundle, folder)
    for folder in engines:
        for name in (name for name in files if PurePosixPath(name).parent == folder):
            _beside(bundle / name).replace(bundle / name)
    # A nested bundle has a manifest of its own, which the outer one lists.
    for root in sorted({folder.parent.parent for folder in engines}, key=lambda p: -len(p.parts)):
        if root.parts and (bundle / root / MANIFEST).is_file():
            inner = {PurePosixPath(n).relative_to(root).as_posix(): e for n, e in files.items() if PurePosixPath(n).is_relative_to(root)}
            ours = {f.relative_to(root): said for f, (_, said) in engines.items() if f.is_relative_to(root)}
            write_manifest(bundle / root, _recorded(read_manifest(bundle / root), ours, inner))
            path = bundle / root / MANIFEST
            files[(root / MANIFEST).as_posix()] = FileEntry(path.stat().st_size, sha256(path))
    write_manifest(bundle, _recorded(manifest, {folder: said for folder, (_, said) in engines.items()}, files))
    return {folder.as_posix(): said for folder, (_, said) in engines.items()}


def _copied(source: Path, said: Mapping[str, Any], bundle: Path, folder: PurePosixPath) -> dict[str, FileEntry]:
    """Copies of an engine's files beside their places in the bundle, and what the manifest will say of them."""
    made = {}
    names = [*said["plans"], BUILT, BUILT_WITH, *([TIMING_CACHE] if (source / TIMING_CACHE).is_file() else [])]
    with room_for(bundle / folder / BUILT, sum((source / name).stat().st_size for name in names)):
        for name in names:
            temporary = _beside(bundle / folder / name)
            shutil.copyfile(source / name, temporary)
            made[(folder / name).as_posix()] = FileEntry(temporary.stat().st_size, sha256(temporary))
    return made


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _recorded(manifest: Manifest, engines: Mapping[PurePosixPath, Mapping[str, Any]], files: Mapping[str, FileEntry]) -> Manifest:
    """The manifest with the engines of its own targets and components, and the new files. Those of a nested bundle are for its own."""
    for folder, said in engines.items():
        engine = {key: value for key, value in said["engine"].items() if key not in _RUN}
        known = {"engine": engine, "device": said["device"]}
        match folder.parts:
            case ("engines", name) if name in manifest.targets:
                manifest = dataclasses.replace(manifest, targets={**manifest.targets, name: {**manifest.targets[name], **known}})
            case ("components", component, "engines", name, graph):
                manifest = with_component_engine(manifest, component, name, graph, known)
    return dataclasses.replace(manifest, files={**manifest.files, **files})
