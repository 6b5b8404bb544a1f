"""What jobs are made of: a part of a bundle whose engine is one job for each target."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.build_options import BuildOptions
from vditc.bundle import Manifest
from vditc.bundle_update import WORK
from vditc.pipeline.bundle_parts import Part, update
from vditc.pipeline.engine_task import GRAPHS, EngineRequest
from vditc.progress import Progress
from vditc.target import Target

_RUN = ("seconds", "peak_rss_bytes")  # differ from run to run: no part of a manifest


@dataclasses.dataclass
class EnginePart(abc.ABC):
    """`parts`: the bundles, the outer one first; `bundle`: the one whose manifest tells of this part."""

    parts: list[Part]
    bundle: Part

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """As people call it: transformer, text_encoder, vae/next."""

    @property
    @abc.abstractmethod
    def folder(self) -> str:
        """In the bundle, "" for the bundle itself: what names of a request are relative to."""

    @property
    def root(self) -> Path:
        """The folder."""
        return self.bundle.root / self.folder

    @abc.abstractmethod
    def portable(self) -> tuple[str, ...]:
        """Files that everything of this part is made of, as the manifest lists them."""

    @abc.abstractmethod
    def about(self, target: str) -> Mapping[str, Any] | None:
        """What the manifest says of it for a target, `engine` among it; None for one whose graph is still to be lowered."""

    @abc.abstractmethod
    def engine_folder(self, target: str) -> str:
        """Where its engine is, relative to `root`: engines/<target>."""

    @abc.abstractmethod
    def options(self, target: str) -> BuildOptions:
        """Those that its engine was built with last."""

    def asked_options(self, options: BuildOptions) -> BuildOptions:
        """What it is built with of what was asked for all engines of a target."""
        return options

    @abc.abstractmethod
    def inputs(self, about: Mapping[str, Any]) -> dict[str, str]:
        """Files that an engine is built from, relative to `root`, -> sha256."""

    @abc.abstractmethod
    def prepare(self, target: Target, progress: Progress, *, fallback: bool) -> None:
        """Before any work: InputError where a target whose graph is to be lowered does not run what the part holds."""

    @abc.abstractmethod
    def lower(self, target: Target, *, verify: bool, progress: Progress) -> None:
        """Lower for a target that `prepare` has seen, and record it. DialectError, or PrecisionError where the numbers changed."""

    @abc.abstractmethod
    def request(self, target: Target, said: str, options: str, out: str) -> EngineRequest:
        """The build; `said`: target as it was named, `out` as in `EngineRequest`."""

    @abc.abstractmethod
    def memory(self, target: str, options: BuildOptions) -> int:
        """About how many bytes the builder takes."""

    @abc.abstractmethod
    def recorded(self, target: str, engine: Mapping[str, Any], options: BuildOptions) -> Manifest:
        """The bundle's manifest with what is known of a finished engine."""

    def falls_back(self, target: Target, layers: Mapping[str, str], progress: Progress) -> bool:
        """Take layers (-> why) that an engine does not compute as calibrated down a rung; False for a part that has no ladder."""
        return False

    def collect(self, target: str, engine: Mapping[str, Any], options: str, out: Path, files: Mapping[str, Any]) -> None:
        """The files of a finished engine, which lie in `out`, into the bundle; graphs of segments come beside the lowered one."""
        folder, about = f"{self.folder}/{self.engine_folder(target)}".removeprefix("/"), self.about(target)
        assert about is not None
        beside = Path(self.folder, about["lowered"]).parent
        staged = {
            (beside / Path(name).name).as_posix() if name.startswith(f"{GRAPHS}/") else f"{folder}/{name}": out / name for name in files
        }
        dropped = self.files_of(target) - set(staged)
        known = {key: value for key, value in engine.items() if key not in _RUN}
        update(self.parts, self.bundle, self.recorded(target, known, BuildOptions.parse(options)), staged, dropped)

    def files_of(self, target: str) -> set[str]:
        """Files of its engine, and graphs of its segments, as the manifest lists them."""
        places = [f"{self.engine_folder(target)}/"]
        if "lowered" in (about := self.about(target) or {}):
            places.append(f"{about['lowered'].removesuffix('.onnx')}.segment_")
        starts = tuple(f"{self.folder}/{place}".removeprefix("/") for place in places)
        return {name for name in self.bundle.manifest.files if name.startswith(starts)}

    def out(self, target: str, token: str) -> str:
        """A hidden folder in `root` for a build, as deep as the engine's own and of its name."""
        return f"{WORK}-{token}/{self.engine_folder(target).partition('/')[2]}"

    def listed(self, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Size and sha256 of files of `root`, as the manifest has them; those that it does not list are left out."""
        found = {name: self.bundle.manifest.files.get(f"{self.folder}/{name}".removeprefix("/")) for name in names}
        return {name: dataclasses.asdict(entry) for name, entry in found.items() if entry is not None}
