"""`vditc package`: the part of a bundle that a device needs to build one target's engines, as a folder or a tar.

    OUT/build.sh                          builds all engines, one after another
    OUT/engines/<target>/...              what `vditc compile` wrote there (vditc.device.package), of every model in the bundle
    OUT/lowered/<target>.onnx and data    data files that the graphs read no more than 99 % of hold only what they read
    OUT/plugins/<platform>/...            the plugin library, where the graphs need it

Every file of the bundle that goes into it is checked on its way. Data is streamed, never held: memory does not grow with the model.
A folder shares blocks with the bundle where the file system can; hard links would not do, since readers of ONNX refuse data files that
have two names. The same bundle gives the same bytes.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from vditc.bundle import Bundle, FileEntry
from vditc.device.package import DEVICE, SCRIPT, SUMS, DevicePackage
from vditc.errors import InputError
from vditc.files import copy_range, room_for, whole_file
from vditc.pipeline.device_files import sums, tar_entry

PIECE = 4 << 20
WORTH = 0.99  # a data file of which so much is read is taken as it is
_BLANK = "0" * 64
_SCRIPT = """\
#!/bin/sh
# Builds every engine of this package on the device that it was made for; options as of {first}.
set -eu
cd "$(dirname "$0")"
{calls}
"""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes `begin` to `begin + count` of a file."""

    path: Path
    begin: int
    count: int


@dataclasses.dataclass(frozen=True)
class Content:
    """A file of the package: bytes, or pieces of files one behind another. `whole`: the file that it is equal to, and its sha256."""

    data: bytes = b""
    pieces: tuple[Piece, ...] = ()
    whole: tuple[Path, str] | None = None
    mode: int = 0o644

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data) + sum(piece.count for piece in self.pieces)

    def read(self) -> Iterator[bytes]:
        """The bytes, little by little; InputError for a file that ends early."""
        if self.data:
            yield self.data
        for piece in self.pieces:
            with piece.path.open("rb") as file:
                file.seek(piece.begin)
                left = piece.count
                while left:
                    if not (data := file.read(min(PIECE, left))):
                        raise InputError(
                            found=f"a file that ends {left:,} bytes early",
                            wanted=f"{piece.begin + piece.count:,} bytes",
                            where=str(piece.path),
                            fix="copy the bundle again, or compile it again",
                        )
                    left -= len(data)
                    yield data


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `package` is going to write: file -> content of all that is heavy, and the target's packages in the bundle."""

    target: str
    heavy: Mapping[str, Content]
    packages: Mapping[str, DevicePackage]  # folder of device.json -> what it says

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file of the package, before anything is written."""
        light = _light(self, {name: FileEntry(content.size, _BLANK) for name, content in self.heavy.items()})
        return {name: content.size for name, content in {**self.heavy, **light}.items()}


def plan_package(bundle: Bundle, target: str) -> Plan:
    """InputError when the bundle has no such target, or its engine is built here and not on a device."""
    folders = [n.removesuffix(f"/{DEVICE}") for n in bundle.manifest.files if n.endswith(f"/{DEVICE}") and f"/engines/{target}/" in f"/{n}"]
    if not folders:
        ours = [t for t in bundle.manifest.targets if f"engines/{t}/{DEVICE}" in bundle.manifest.files]
        raise InputError(
            found=f"target {target!r}",
            wanted=f"one of {', '.join(ours) or 'none'}, whose engines a device builds",
            where=f"bundle {bundle.path}",
            fix="compile for it; engines of other targets are in the bundle, ready to run",
        )
    packages = {folder: DevicePackage.read(bundle.path / folder) for folder in sorted(folders)}
    heavy: dict[str, Content] = {}
    for folder, package in packages.items():
        for name in package.files:
            inner = _normal(folder, package.root, name)
            entry = bundle.manifest.files.get(inner)
            if entry is None:
                raise InputError(
                    found=f"no {inner}", wanted="a file that the manifest lists", where=f"bundle {bundle.path}", fix="compile it again"
                )
            path = bundle.path / inner
            mode = 0o755 if path.name == SCRIPT else 0o644
            heavy[inner] = Content(pieces=(Piece(path, 0, entry.bytes),), whole=(path, entry.sha256), mode=mode)
    graphs = [_normal(folder, p.root, graph.lowered) for folder, p in packages.items() for graph in p.graphs]
    return Plan(target, {**heavy, **_compacted(bundle.path, graphs, heavy)}, packages)


def package(plan: Plan, out: Path, *, force: bool = False) -> dict[str, int]:
    """Write the package to the folder `out`, or to a tar if its name ends so; returns the bytes of every file.

    InputError for a file of the bundle that is not as its manifest says; VditcError when the disk is full. Whole or not at all.
    """
    with open_sink(out, sum(plan.sizes.values()), plan.target, force=force) as sink:
        written = {}
        for name, content in sorted(plan.heavy.items()):
            written[name] = FileEntry(content.size, put_checked(sink, name, content))
        light = _light(plan, written)
        for name, content in sorted(light.items()):
            sink.put(name, content)
    return {name: content.size for name, content in sorted({**plan.heavy, **light}.items())}


def put_checked(sink: Sink, name: str, content: Content) -> str:
    """Write a file; returns its sha256. InputError for a whole file that has another than it should have."""
    digest = sink.put(name, content)
    if content.whole is not None and digest != content.whole[1]:
        raise InputError(
            found=f"{name} with sha256 {digest[:16]}…",
            wanted=f"{content.whole[1][:16]}…",
            where=f"{content.whole[0]}",
            fix="copy the bundle again, or compile it again",
        )
    return digest


def _light(plan: Plan, written: Mapping[str, FileEntry]) -> dict[str, Content]:
    """The files that say sizes and sha256 of the others."""
    made = {}
    for folder, old in plan.packages.items():
        new = dataclasses.replace(old, files={name: written[_normal(folder, old.root, name)] for name in old.files})
        text = new.to_text().encode()
        made[f"{folder}/{DEVICE}"] = Content(text)
        base = os.path.relpath(folder, _normal(folder, old.root, "."))
        made[f"{folder}/{SUMS}"] = Content(sums(new, base, hashlib.sha256(text).hexdigest()).encode())
    calls = [f'sh {folder}/{SCRIPT} "$@"' for folder in plan.packages]
    made[SCRIPT] = Content(_SCRIPT.format(first=f"{next(iter(plan.packages))}/{SCRIPT}", calls="\n".join(calls)).encode(), mode=0o755)
    return made


def _normal(folder: str, root: str, name: str) -> str:
    return os.path.normpath(f"{folder}/{root}/{name}")


def _compacted(root: Path, graphs: Sequence[str], heavy: Mapping[str, Content]) -> dict[str, Content]:
    """Data files that are mostly unread, without what nobody reads, and the graphs that point into them."""
    models = {name: onnx.load(str(root / name), load_external_data=False) for name in graphs}
    used: dict[str, set[tuple[int, int]]] = {}
    for name, model in models.items():
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                said = _place(tensor)
                begin = int(said.get("offset", "0"))
                data = _normal(name, "..", said["location"])
                count = int(said["length"]) if "length" in said else heavy[data].size - begin
                used.setdefault(data, set()).add((begin, count))
    moved: dict[str, dict[int, int]] = {}
    made: dict[str, Content] = {}
    for data, ranges in used.items():
        spans = _spans(ranges)
        if sum(end - begin for begin, end in spans) >= WORTH * heavy[data].size:
            continue
        made[data] = Content(pieces=tuple(Piece(root / data, begin, end - begin) for begin, end in spans))
        moved[data], offset = {}, 0
        for begin, end in spans:
            moved[data] |= {b: offset + b - begin for b, _ in ranges if begin <= b < end}
            offset += end - begin
    for name, model in models.items():
        changed = False
        for tensor in model.graph.initializer:
            said = _place(tensor)
            if (places := moved.get(_normal(name, "..", said["location"])) if said else None) is not None:
                said["offset"] = str(places[int(said.get("offset", "0"))])
                del tensor.external_data[:]
                for key, value in said.items():
                    tensor.external_data.add(key=key, value=value)
                changed = True
        if changed:
            made[name] = Content(model.SerializeToString(deterministic=True))
    return made


def _place(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _spans(ranges: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Begin and end of what ranges cover, in order."""
    spans: list[tuple[int, int]] = []
    for begin, count in sorted(ranges):
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], begin + count))
        else:
            spans.append((begin, begin + count))
    return spans


class Sink(abc.ABC):
    """Takes the files of a package."""

    @abc.abstractmethod
    def put(self, name: str, content: Content) -> str:
        """Write a file; returns its sha256."""


class _Folder(Sink):
    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, content: Content) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        for data in content.read():
            digest.update(data)
        with path.open("wb") as file:
            file.write(content.data)
            file.flush()
            offset = len(content.data)
            for piece in content.pieces:
                with piece.path.open("rb") as source:
                    copy_range(source.fileno(), piece.begin, file.fileno(), offset, piece.count)
                offset += piece.count
        path.chmod(content.mode)
        return digest.hexdigest()


class _Tar(Sink):
    def __init__(self, tar: tarfile.TarFile, top: str) -> None:
        self.tar, self.top = tar, top

    def put(self, name: str, content: Content) -> str:
        reader = _Reader(content)
        self.tar.addfile(tar_entry(f"{self.top}/{name}", content.size, content.mode), reader)
        return reader.digest.hexdigest()


class _Reader:
    """A content as a file that is read once, hashed on its way."""

    def __init__(self, content: Content) -> None:
        self.left, self.held, self.at, self.digest = content.read(), b"", 0, hashlib.sha256()

    def read(self, count: int = PIECE) -> bytes:
        """`count` bytes, fewer at the end alone."""
        parts, want = [], count
        while want > 0:
            if self.at == len(self.held):
                self.held, self.at = next(self.left, b""), 0
                self.digest.update(self.held)
                if not self.held:
                    break
            parts.append(self.held[self.at : self.at + want])
            self.at += len(parts[-1])
            want -= len(parts[-1])
        return b"".join(parts)


@contextlib.contextmanager
def open_sink(out: Path, total: int, top: str, *, force: bool) -> Iterator[Sink]:
    """Where a package of `total` bytes goes until it is whole: a folder, or a tar whose names begin with `top`.

    InputError where something is and `force` is not given; VditcError when the disk is full.
    """
    if out.exists() and not force:
        raise InputError(found=f"{out} exists", wanted="a path that does not exist", where="-o", fix="choose another, or --force")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".tar":
        # PAX headers are written where a file is over 8 GiB.
        with room_for(out, total), whole_file(out) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            yield _Tar(tar, top)
        return
    temporary, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
    try:
        with room_for(out, total):
            temporary.mkdir()
            yield _Folder(temporary)
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
