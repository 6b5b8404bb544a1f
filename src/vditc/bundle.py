"""A bundle: a directory with everything that one compiled model needs, listed and hashed in `manifest.json`.

manifest.json                 this file's `Manifest`
calibration.safetensors       codes and scales
model.onnx  model.onnx.data   portable Q/DQ graph
model.refit.json              where each of its weights comes from
lowered/<target>.onnx         graph for one target
plugins/<platform>/           the plugin library of engines that need it
engines/<target>/             model.plan, engine.json (what built it), layers.json, timing.cache, or the script that builds it on the device
components/                   scheduler, and text encoder and codec when vditc can run them
report/                       for people; not hashed, for it holds times
transformer_2/                of a model of two experts: the second one's bundle; its files are listed here too, and hashed once
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vditc.errors import InputError
from vditc.files import sha256, write_text
from vditc.threads import for_each

SCHEMA = 1
MANIFEST = "manifest.json"
UNLISTED = "report"  # the only folder whose files are not hashed
CLIPS = "report/clips.safetensors"  # finished clips of the verification, float32 [clips, F, H, W]


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
    sampling: Mapping[str, Any]  # steps, guidance_scale, latent_shape, schedule (one-step table), solver, step_cache
    inputs: list[Mapping[str, Any]]  # name, dtype, dims, fill of the inputs of model.onnx
    profile: Mapping[str, list[int]]
    graph: Mapping[str, Any]  # node counts and bytes of model.onnx
    targets: Mapping[str, Any]  # target -> backend, lowered, its inputs, plugins (or why none), passes, build (options), fallback, engine
    quality: Mapping[str, Any] | None  # numbers of `verify`
    gate: Mapping[str, Any]  # thresholds and whether they were met
    tools: Mapping[str, str]
    files: Mapping[str, FileEntry]
    schema: int = SCHEMA
    # text_encoder, vae, ... -> class, how its weights are stored, nodes of its graphs, and for each target the lowered graphs and engines
    components: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # name of a further expert -> path of its bundle, boundary (share of the training timesteps below which it runs), first_step
    experts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_text(self) -> str:
        """Sorted, indented JSON; what only some bundles have is left out of the others."""
        data = dataclasses.asdict(self)
        return json.dumps({n: v for n, v in data.items() if n not in _OPTIONAL or v}, indent=1, sort_keys=True) + "\n"


_OPTIONAL = ("components", "experts")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A checked bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, *, hashes: bool = True) -> Bundle:
        """Read the manifest and check every listed file (its hash too, unless told otherwise); InputError when anything is off."""
        bundle = cls(path, _read(path / MANIFEST))
        files = bundle.manifest.files
        for name, entry in files.items():
            file = _inside(path, name)
            if not file.is_file():
                raise _damaged(path, f"no file {name}", "every file that the manifest lists")
            if file.stat().st_size != entry.bytes:
                raise _damaged(path, f"{name} of {file.stat().st_size} bytes", f"{entry.bytes} bytes")

        def check(name: str) -> None:
            if (digest := sha256(path / name)) != files[name].sha256:
                raise _damaged(path, f"{name} with sha256 {digest[:16]}…", f"{files[name].sha256[:16]}…")

        if hashes:
            for_each(check, sorted(files, key=lambda name: -files[name].bytes))  # the largest first, so that no core waits long
        for expert in bundle.experts.values():
            expert._check_within(bundle)
        return bundle

    @functools.cached_property
    def experts(self) -> Mapping[str, Bundle]:
        """The bundles of further experts, by name, in the order in which they walk; {} where one transformer walks all steps."""
        try:
            folders = {name: str(about["path"]) for name, about in self.manifest.experts.items()}
            for about in self.manifest.experts.values():
                if not 0 < about["first_step"] < len(self.manifest.sampling["schedule"]["timesteps"]):
                    raise ValueError(f"first_step {about['first_step']}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(self.path, f"wrong experts ({error})", "path and first_step of each") from error
        inside = {name: _inside(self.path, folder) for name, folder in folders.items()}
        return {name: Bundle(folder, _read(folder / MANIFEST)) for name, folder in inside.items()}

    def _check_within(self, outer: Bundle) -> None:
        """Every file is one that `outer`, which has checked them, lists with the same hash."""
        within = self.path.relative_to(outer.path).as_posix()
        if f"{within}/{MANIFEST}" not in outer.manifest.files:
            raise _damaged(outer.path, f"{within}/{MANIFEST}, which the manifest does not list", "every file of the expert")
        for name, entry in self.manifest.files.items():
            _inside(self.path, name)
            if outer.manifest.files.get(f"{within}/{name}") != entry:
                raise _damaged(outer.path, f"another {within}/{name} in the expert's manifest", "one entry for a file")

    def file(self, name: str) -> Path:
        """Path of a listed file."""
        if name not in self.manifest.files:
            raise _damaged(self.path, f"no {name} in the manifest", f"one of {', '.join(self.manifest.files)}")
        return self.path / name


def rung_text(rung: Mapping[str, Any]) -> str:
    """One entry of a target's `fallback`, for people."""
    layers = rung["layers"]
    names = f"{', '.join(layers[:3])}{f' and {len(layers) - 3} more' if len(layers) > 3 else ''}"
    return f"falls back from {rung['from']} to {rung['to']}: {names} ({rung['reason']})"


def list_files(root: Path, experts: Mapping[str, Manifest] | None = None) -> dict[str, FileEntry]:
    """Hash every file of a bundle that the manifest must list. `experts`: folder -> manifest, whose files have been hashed."""
    known = {f"{folder}/{name}": entry for folder, manifest in (experts or {}).items() for name, entry in manifest.files.items()}
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    # Hidden names are notes of an unfinished bundle, and files that a killed process did not finish.
    kept = [n for n in names if n != MANIFEST and PurePosixPath(n).parts[0] != UNLISTED and not f"/{n}".count("/.")]
    return {n: known.get(n) or FileEntry((root / n).stat().st_size, sha256(root / n)) for n in kept}


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, the last file of a bundle."""
    write_text(root / MANIFEST, manifest.to_text())


def read_manifest(root: Path) -> Manifest:
    """What `manifest.json` says, its files not looked at; InputError when it is no manifest of this schema."""
    return _read(root / MANIFEST)


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
    except (ValueError, RecursionError) as error:
        raise InputError(found=f"no JSON ({error})", wanted="a manifest", where=str(path), fix="compile the bundle again") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found, by = (data.get("schema"), data.get("vditc")) if isinstance(data, dict) else (type(data).__name__, None)
        fix = "use a matching vditc" if by is None else f"use vditc {by}, which wrote it"
        raise InputError(found=f"schema {found}", wanted=f"schema {SCHEMA}", where=str(path), fix=fix)
    try:
        files = {str(n): FileEntry(int(e["bytes"]), str(e["sha256"])) for n, e in data.pop("files").items()}
        return Manifest(files=files, **data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            found=f"a manifest with wrong keys ({error})", wanted="a whole manifest", where=str(path), fix="compile again"
        ) from error
