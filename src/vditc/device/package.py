"""`device.json`: everything that building on a device must know of a target's graphs, so that it reads no ONNX.

    ROOT/engines/<target>/device.json   and beside it build.sh, vditc_device.pyz, requirements.txt, SHA256SUMS; later *.plan, built.json
                                        (what came of it), engine.json (for loading, vditc.runtimes.built_with) and timing.cache
    ROOT/lowered/...                    the graphs and their data
    ROOT/plugins/<platform>/...         the plugin library, where the graphs need it

ROOT is a bundle, or what `vditc package` made of one; `device.json` names it relative to its own folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vditc.build_options import DEFAULTS, BuildOptions
from vditc.bundle import FileEntry
from vditc.errors import InputError
from vditc.files import sha256
from vditc.runtimes.precision import Expectation

SCHEMA = 1
DEVICE, SUMS, ARCHIVE, SCRIPT = "device.json", "SHA256SUMS", "vditc_device.pyz", "build.sh"
SOURCES = "plugin_sources.tar"
BUILT = "built.json"
AGAIN = "copy the package again, or make it again with `vditc package`"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceGraph:
    """One engine. `lowered` is relative to ROOT; `shapes`: input -> least, best and greatest shape.

    `weights`: bytes of the graph's constants, `builder`: of the builder's peak, an estimate (vditc.memory). `blocks`: of a
    segment, the model's blocks that it holds.
    """

    name: str
    lowered: str
    shapes: dict[str, list[list[int]]]
    expectation: Expectation
    weights: int
    builder: int
    blocks: tuple[str, ...] = ()

    @property
    def plan(self) -> str:
        """Name of the engine's file."""
        return f"{self.name}.plan"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicePackage:
    """What `device.json` says. `identity`: of graphs, profile, target and options; a package keeps that of the bundle that it was made of.

    `activations`: bytes at the profile's largest sizes, an estimate, None where nobody knows. `library`: the plugin library,
    relative to ROOT, None where the graphs need none. `files`: of ROOT, all that building reads but `device.json` itself. `options`: how
    engines are built.
    """

    identity: str
    vditc: str
    target: str
    description: str
    arch: tuple[str, ...]
    runtime: str
    versions: tuple[str, str | None]
    machine: str
    module: str
    profile: Mapping[str, list[int]]
    activations: int | None
    root: str
    graphs: tuple[DeviceGraph, ...]
    library: str | None
    files: Mapping[str, FileEntry]
    options: BuildOptions = DEFAULTS
    schema: int = SCHEMA

    @property
    def weights(self) -> int:
        """Bytes of all graphs' constants."""
        return sum(graph.weights for graph in self.graphs)

    def to_text(self) -> str:
        """Sorted, indented JSON."""
        return json.dumps({**dataclasses.asdict(self), "options": self.options.to_json()}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, folder: Path) -> DevicePackage:
        """Of `folder`/device.json; InputError when it is missing, of another schema, or points outside of ROOT."""
        path = folder / DEVICE
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise _unread(path, f"no readable file ({error.strerror})") from error
        except ValueError as error:
            raise _unread(path, f"no JSON ({error})") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise InputError(found=f"schema {found}", wanted=f"schema {SCHEMA}", where=str(path), fix="use the vditc that made the package")
        try:
            graphs = tuple(
                DeviceGraph(**{**one, "expectation": Expectation.from_json(one["expectation"]), "blocks": tuple(one["blocks"])})
                for one in data["graphs"]
            )
            files = {str(n): FileEntry(int(e["bytes"]), str(e["sha256"])) for n, e in data["files"].items()}
            least, greatest = data["versions"]
            options = BuildOptions.from_json(data.get("options", {}))
            known = {"graphs": graphs, "files": files, "arch": tuple(data["arch"]), "versions": (str(least), greatest), "options": options}
            read = cls(**{**data, **known})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _unread(path, f"wrong keys ({error!r})") from error
        for name in (*read.files, *(graph.lowered for graph in graphs), *([read.library] if read.library else [])):
            _inside(name, path)
        if set(PurePosixPath(read.root).parts) - {".."}:
            raise _outside(read.root, path)
        return read

    def check_files(self, folder: Path) -> None:
        """InputError for the first file that is missing, of another size or of another sha256. Sizes are looked at first."""
        root = folder / self.root
        for name, entry in self.files.items():
            size = (root / name).stat().st_size if (root / name).is_file() else None
            if size != entry.bytes:
                found = f"no {name}" if size is None else f"{name} of {size:,} bytes"
                raise InputError(found=found, wanted=f"{entry.bytes:,} bytes", where=f"package {folder}", fix=AGAIN)
        for name, entry in self.files.items():
            if (digest := sha256(root / name)) != entry.sha256:
                raise InputError(
                    found=f"{name} with sha256 {digest[:16]}…", wanted=f"{entry.sha256[:16]}…", where=f"package {folder}", fix=AGAIN
                )


def _inside(name: str, path: Path) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise _outside(name, path)


def _outside(name: str, path: Path) -> InputError:
    return InputError(found=f"path {name!r}", wanted="a path inside of the package", where=str(path), fix="do not use this package")


def _unread(path: Path, found: str) -> InputError:
    return InputError(found=found, wanted="what vditc compile or vditc package wrote", where=str(path), fix=AGAIN)
