"""A bundle: a directory with everything that one compiled model needs, listed and hashed in `manifest.json`.

manifest.json                 this file's `Manifest`
calibration.safetensors       codes and scales
model.onnx  model.onnx.data   portable Q/DQ graph
model.refit.json              where each of its weights comes from
lowered/<target>.onnx         graph for one target
plugins/<platform>/           the plugin library of engines that need it
engines/<target>/             engine, or the script that builds it on the device
components/                   scheduler, and text encoder and codec when vditc can run them
report/                       for people; not hashed, for it holds times
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vditc.errors import InputError
from vditc.files import sha256, write_text

SCHEMA = 1
MANIFEST = "manifest.json"
UNLISTED = "report"  # the only folder whose files are not hashed


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A file of the bundle."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says; every value is plain JSON data. Holds no times, so that equal runs give equal bytes."""

    vditc: str  # version that wrote it
    model: Mapping[str, Any]  # class, adapter, digest, loras (name, sha256, scale), weights (count), checkpoint_bytes, config
    recipe: Mapping[str, Any]  # name, digest, description, method
    layers: Mapping[str, Any]  # layer -> role, weight, activation (in words), bits (stored, per weight), input (range, if observed)
    kept: Mapping[str, Any]  # layer left in floating point -> role, reason
    mean_bits: float
    sampling: Mapping[str, Any]  # steps, guidance_scale, sigmas, timesteps, latent_shape
    inputs: list[Mapping[str, Any]]  # name, dtype, dims of the inputs of model.onnx
    profile: Mapping[str, list[int]]
    graph: Mapping[str, Any]  # node counts and bytes of model.onnx
    targets: Mapping[str, Any]  # target -> backend, status, lowered, its inputs, plugins (library, operators, or why none), passes, engine
    quality: Mapping[str, Any] | None  # numbers of `verify`
    gate: Mapping[str, Any]  # thresholds and whether they were met
    tools: Mapping[str, str]
    files: Mapping[str, FileEntry]
    schema: int = SCHEMA

    def to_text(self) -> str:
        """Sorted, indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A checked bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, *, hashes: bool = True) -> Bundle:
        """Read the manifest and check every listed file (its hash too, unless told otherwise); InputError when anything is off."""
        manifest = _read(path / MANIFEST)
        for name, entry in manifest.files.items():
            file = _inside(path, name)
            if not file.is_file():
                raise _damaged(path, f"no file {name}", "every file that the manifest lists")
            if file.stat().st_size != entry.bytes:
                raise _damaged(path, f"{name} of {file.stat().st_size} bytes", f"{entry.bytes} bytes")
            if hashes and (digest := sha256(file)) != entry.sha256:
                raise _damaged(path, f"{name} with sha256 {digest[:16]}…", f"{entry.sha256[:16]}…")
        return cls(path, manifest)

    def file(self, name: str) -> Path:
        """Path of a listed file."""
        if name not in self.manifest.files:
            raise _damaged(self.path, f"no {name} in the manifest", f"one of {', '.join(self.manifest.files)}")
        return self.path / name


def list_files(root: Path) -> dict[str, FileEntry]:
    """Hash every file of a bundle that the manifest must list."""
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    # Hidden names are notes of an unfinished bundle.
    kept = [n for n in names if n != MANIFEST and PurePosixPath(n).parts[0] != UNLISTED and not n.startswith(".")]
    return {n: FileEntry((root / n).stat().st_size, sha256(root / n)) for n in kept}


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, the last file of a bundle."""
    write_text(root / MANIFEST, manifest.to_text())


def _damaged(path: Path, found: str, wanted: str) -> InputError:
    return InputError(found=found, wanted=wanted, where=f"bundle {path}", fix="copy the bundle again, or compile it again")


def _inside(root: Path, name: str) -> Path:
    """The file `name` of a bundle; InputError for a name that is absolute, climbs out, or goes through a link that does."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not (root / name).resolve().is_relative_to(root.resolve()):
        raise InputError(
            found=f"path {name!r}",
            wanted="a relative path inside the bundle",
            where=str(root / MANIFEST),
            fix="do not use this bundle: its manifest points outside",
        )
    return root / name


def _read(path: Path) -> Manifest:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            found=f"no readable manifest ({error.strerror})", wanted="a bundle", where=str(path), fix="compile one with `vditc compile`"
        ) from error
    except ValueError as error:
        raise InputError(found=f"no JSON ({error})", wanted="a manifest", where=str(path), fix="compile the bundle again") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(found=f"schema {found}", wanted=f"schema {SCHEMA}", where=str(path), fix="use a matching vditc")
    try:
        files = {str(n): FileEntry(int(e["bytes"]), str(e["sha256"])) for n, e in data.pop("files").items()}
        return Manifest(files=files, **data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            found=f"a manifest with wrong keys ({error})", wanted="a whole manifest", where=str(path), fix="compile again"
        ) from error
