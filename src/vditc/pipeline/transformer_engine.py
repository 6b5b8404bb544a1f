"""The engine of a transformer, or of one of two experts, as a job."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vditc.build_memory import available_memory
from vditc.build_options import AUTO, BuildOptions
from vditc.bundle import Manifest, rung_text
from vditc.memory import builder_memory
from vditc.pipeline.bundle_parts import with_target
from vditc.pipeline.engine_part import EnginePart
from vditc.pipeline.engine_task import EngineRequest, check_files, target_digest
from vditc.pipeline.new_target import NewTarget
from vditc.plugins.build import LIBRARY
from vditc.progress import Progress
from vditc.runtimes.trt_process import TIMING_CACHE
from vditc.target import Target

PORTABLE = ("model.onnx", "model.onnx.data")


@dataclasses.dataclass
class TransformerEngine(EnginePart):
    """See `EnginePart`."""

    new: dict[str, NewTarget] = dataclasses.field(default_factory=dict)  # target -> how its graph is lowered

    @property
    def name(self) -> str:
        """See `EnginePart`."""
        return self.bundle.name

    @property
    def folder(self) -> str:
        """See `EnginePart`."""
        return ""

    def portable(self) -> tuple[str, ...]:
        """See `EnginePart`."""
        return PORTABLE

    def about(self, target: str) -> Mapping[str, Any] | None:
        """See `EnginePart`."""
        return self.bundle.manifest.targets.get(target)

    def engine_folder(self, target: str) -> str:
        """See `EnginePart`."""
        return f"engines/{target}"

    def options(self, target: str) -> BuildOptions:
        """See `EnginePart`."""
        said = self.bundle.manifest.targets.get(target, {}).get("build", {})
        # How much memory all builders have is said to each command; what it means to segments is where they are cut.
        return BuildOptions.from_json({name: value for name, value in said.items() if name != "memory" or "segments" in said})

    def inputs(self, about: Mapping[str, Any]) -> dict[str, str]:
        """The graph, the data files that may belong to it, the plugin library."""
        lowered, library = about["lowered"], about.get("plugins", {}).get("library")
        names = (lowered, f"{lowered}.data", "lowered/model.onnx.data", *([library] if library else []))
        return {name: entry["sha256"] for name, entry in self.listed(names).items()}

    def prepare(self, target: Target, progress: Progress, *, fallback: bool) -> None:
        """See `EnginePart`."""
        new = self.new[target.name] = NewTarget.check(self.bundle, target, progress, fallback=fallback)
        if new.ladder is not None:
            self._note(target, new.ladder.taken, progress)

    def lower(self, target: Target, *, verify: bool, progress: Progress) -> None:
        """See `EnginePart`."""
        check_files(self.root, self.listed(PORTABLE), "copy the bundle again, or compile it again")
        self.new[target.name].lower(self.parts, self.files_of(target.name), verify=verify, progress=progress)

    def falls_back(self, target: Target, layers: Mapping[str, str], progress: Progress) -> bool:
        """See `EnginePart`; PrecisionError for a layer that stands on the last rung."""
        if target.name not in self.new:
            self.prepare(target, progress, fallback=True)
        ladder = self.new[target.name].ladder
        if ladder is None:
            return False
        self._note(target, ladder.step(layers), progress)
        return True

    def _note(self, target: Target, rungs: Iterable[Mapping[str, Any]], progress: Progress) -> None:
        for rung in rungs:
            progress.note(f"{self.name} for {target.name}: {rung_text(rung)}")

    def request(self, target: Target, said: str, options: str, out: str) -> EngineRequest:
        """See `EnginePart`."""
        about = self.bundle.manifest.targets[target.name]
        attention, cache = about.get("attention", target.compute), f"{self.engine_folder(target.name)}/{TIMING_CACHE}"
        return EngineRequest(
            root=str(self.root.resolve()),
            target=said,
            target_digest=target_digest(target.attending(attention) if attention != target.compute else target),
            attention=attention,
            lowered=about["lowered"],
            library=about.get("plugins", {}).get("library"),
            profile=self.bundle.manifest.profile,
            options=options,
            inputs=self.listed((*self.inputs(about), cache)),
            out=out,
            memory=about.get("memory"),
        )

    def memory(self, target: str, options: BuildOptions) -> int:
        """What the manifest says, or by the size of what the builder reads; of segments the greatest."""
        about = self.bundle.manifest.targets[target]
        if about["backend"] == "onnxruntime":
            return 0
        weights = sum(entry["bytes"] for name, entry in self.listed(tuple(self.inputs(about))).items() if Path(name).name != LIBRARY)
        whole = int(about["memory"]["builder"]) if "memory" in about else builder_memory(len(self.bundle.manifest.layers), weights)
        if options.segments is None:
            return whole
        if options.segments == AUTO:
            return min(whole, options.memory or available_memory())
        return builder_memory(0, 0) + whole // int(options.segments)

    def recorded(self, target: str, engine: Mapping[str, Any], options: BuildOptions) -> Manifest:
        """See `EnginePart`."""
        manifest = self.bundle.manifest
        about = {key: value for key, value in manifest.targets[target].items() if key != "device"}  # of an engine that a device built
        return with_target(manifest, target, {**about, "engine": engine, "build": options.to_json()})
