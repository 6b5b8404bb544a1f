"""Writes what a device needs beside the lowered graphs to build a target's engines: `vditc.device.package` says which files."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from vditc.adapter import InputSpec
from vditc.build_options import DEFAULTS, BuildOptions
from vditc.bundle import FileEntry
from vditc.device.package import ARCHIVE, DEVICE, SCRIPT, SOURCES, SUMS, DeviceGraph, DevicePackage
from vditc.errors import InputError
from vditc.files import data_digest, sha256, whole_file, write_text
from vditc.memory import Memory, builder_memory
from vditc.pipeline.device_archive import archive
from vditc.plugins import build as plugin_build
from vditc.profile import Profile
from vditc.runtimes.graph_precision import expected_precision, weight_bytes
from vditc.runtimes.trt_options import check_embedded
from vditc.runtimes.trt_process import shapes
from vditc.segments import NAME as SEGMENTS
from vditc.segments import Segments
from vditc.target import Target
from vditc.version_range import VersionRange

# The archive and device.json are checked here, everything else by the archive, which can say sizes.
_SCRIPT = """\
#!/bin/sh
# Builds the engine beside this script, on the device: {description} ({arch}), {runtime}.
# Needs python3 3.10 or newer with the package tensorrt, nothing else. `sh build.sh --help` lists the options; PYTHON names another Python.
set -eu
cd "$(dirname "$0")"
if ! grep -E ' ({device}|{archive})$' {sums} | sha256sum --check --status; then
    echo "build.sh: found {device} or {archive} damaged or missing; wanted the files of {sums}; copy the package again" >&2
    exit 2
fi
exec "${{PYTHON:-python3}}" {archive} build "$@"
"""
_REQUIREMENTS = """\
# What building on the device imports: TensorRT and Python's own library. No PyTorch, no ONNX, no numpy.
# JetPack's package python3-libnvinfer brings it for the system's python3; then there is nothing to install.
tensorrt{versions}
"""


@dataclasses.dataclass(frozen=True)
class Part:
    """A lowered graph that becomes one engine: the whole model, or a segment with the blocks that it holds.

    `profile`: of a segment's own inputs; None for the model's.
    """

    name: str
    lowered: Path
    inputs: tuple[InputSpec, ...]
    blocks: tuple[str, ...] = ()
    profile: Profile | None = None


def write_device_files(
    *,
    root: Path,
    folder: Path,
    parts: Sequence[Part],
    target: Target,
    profile: Profile,
    library: Path | None = None,
    memory: Memory | None = None,
    options: BuildOptions = DEFAULTS,
    out: Path | None = None,
    segments: Segments | None = None,
) -> DevicePackage:
    """Write into `folder`, which lies in `root` as the graphs and the plugin library do; what is there is replaced.

    `out`: where the files are written instead, by somebody who moves them to `folder`.
    `memory`: an estimate for all parts; without it nobody knows the activations. `segments`: how several parts run as one.
    InputError for operators of the plugin library without it. The same input gives the same bytes.
    """
    graphs = tuple(_graph(root, part, part.profile or profile, plugins=library is not None) for part in parts)
    plugins = any(graph.expectation.plugins for graph in graphs)
    check_embedded(options, library if plugins else None, parts[0].lowered)
    if options.strip_weights and len(parts) > 1:
        raise InputError(
            found=f"engine option strip-weights for {len(parts)} graphs",
            wanted="one graph that the weights come back from",
            where=f"target {target.name}",
            fix="leave the option out",
        )
    made = {
        ARCHIVE: archive(),
        "requirements.txt": _REQUIREMENTS.format(versions=specifier(target.versions)).encode(),
        **({SOURCES: plugin_sources()} if plugins else {}),
        **({SEGMENTS: segments.to_text().encode()} if segments is not None else {}),
        SCRIPT: _SCRIPT.format(
            description=target.description, arch=" ".join(target.arch), runtime=target.runtime, device=DEVICE, archive=ARCHIVE, sums=SUMS
        ).encode(),
    }
    for name, data in made.items():
        with whole_file((out or folder) / name) as temporary:
            temporary.write_bytes(data)
    (out or folder).joinpath(SCRIPT).chmod(0o755)
    heavy = [path for part in parts for path in (part.lowered, *data_files(part.lowered))]
    needed = {path: path for path in [*heavy, *([library] if plugins and library is not None else [])]}
    needed |= {folder / name: (out or folder) / name for name in made}
    files = {path.relative_to(root).as_posix(): FileEntry(here.stat().st_size, sha256(here)) for path, here in needed.items()}
    package = DevicePackage(
        identity=data_digest(
            {
                "graphs": [files[p.relative_to(root).as_posix()].sha256 for p in dict.fromkeys(heavy)],
                "profile": profile.to_json(),
                "target": dataclasses.asdict(target),
                "options": options.to_json(),
            }
        ),
        vditc=importlib.metadata.version("vditc"),
        target=target.name,
        description=target.description,
        arch=target.arch,
        runtime=target.runtime,
        versions=(target.versions.least, target.versions.greatest),
        machine=target.platform.partition("-")[0],
        module=target.backend,
        profile=profile.to_json(),
        activations=None if memory is None else memory.activations,
        root=os.path.relpath(root, folder),
        graphs=graphs,
        library=library.relative_to(root).as_posix() if plugins and library is not None else None,
        files=files,
        options=options,
    )
    device = (out or folder) / DEVICE
    write_text(device, package.to_text())
    write_text(device.with_name(SUMS), sums(package, folder.relative_to(root).as_posix(), sha256(device)))
    return package


def data_files(lowered: Path) -> list[Path]:
    """Files that a graph's weights lie in."""
    tensors = (value.const_value for value in ir.load(lowered).graph.initializers.values())
    return sorted({Path(str(t.path)) for t in tensors if isinstance(t, ir.ExternalTensor)})


def sums(package: DevicePackage, folder: str, digest: str) -> str:
    """SHA256SUMS as sha256sum reads it in `folder`, relative to ROOT; `digest` is that of device.json."""
    lines = {os.path.relpath(name, folder): entry.sha256 for name, entry in package.files.items()} | {DEVICE: digest}
    return "".join(f"{value}  {name}\n" for name, value in sorted(lines.items()))


def specifier(versions: VersionRange) -> str:
    """As pip reads it: "10.3 to 11" is >=10.3,<12."""
    if versions.greatest is None:
        return f">={versions.least}"
    *front, last = versions.greatest.split(".")
    return f">={versions.least},<{'.'.join([*front, str(int(last) + 1)])}"


def plugin_sources() -> bytes:
    """The plugin library's sources as a tar: equal sources give equal bytes."""
    made = io.BytesIO()
    paths = {p for pattern in plugin_build.PATTERNS for p in plugin_build.SOURCES.glob(pattern)}
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        for path in sorted(paths):
            packed.addfile(
                tar_entry(f"plugins/{path.relative_to(plugin_build.SOURCES)}", path.stat().st_size), io.BytesIO(path.read_bytes())
            )
    return made.getvalue()


def tar_entry(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    """Of a file without owner and time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    return entry


def _graph(root: Path, part: Part, profile: Profile, *, plugins: bool) -> DeviceGraph:
    expectation = expected_precision(part.lowered, plugins=plugins)
    weights = weight_bytes(part.lowered)
    return DeviceGraph(
        name=part.name,
        lowered=part.lowered.relative_to(root).as_posix(),
        shapes=shapes(part.inputs, profile),
        expectation=expectation,
        weights=weights,
        builder=builder_memory(expectation.products, weights),
        blocks=part.blocks,
    )
