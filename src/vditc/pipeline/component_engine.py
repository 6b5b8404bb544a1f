"""The engine of one graph of a text encoder or a VAE decoder, as a job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from vditc.build_options import BuildOptions
from vditc.bundle import Manifest
from vditc.pipeline.bundle_parts import Part, update, with_component_engine, with_component_target
from vditc.pipeline.engine_part import EnginePart
from vditc.pipeline.engine_task import EngineRequest, check_files, target_digest
from vditc.pipeline.part_lowering import clip_profile, lower_part, lowered_name, part_memory, part_profile, part_target
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.runtimes.backend import TO_BUILD
from vditc.target import Target
from vditc.video_plan import FILE as DECODER
from vditc.video_plan import VideoPlan

ONLY = "model"  # the graph of a part that has one


@dataclasses.dataclass
class ComponentEngine(EnginePart):
    """See `EnginePart`. `component`: text_encoder, vae; `graph`: model, first1, next."""

    component: str
    graph: str

    @property
    def name(self) -> str:
        """See `EnginePart`."""
        return self.component if self.graph == ONLY else f"{self.component}/{self.graph}"

    @property
    def folder(self) -> str:
        """See `EnginePart`."""
        return f"components/{self.component}"

    def portable(self) -> tuple[str, ...]:
        """See `EnginePart`."""
        return tuple(f"{self.folder}/{name}" for name in (f"{self.graph}.onnx", *self._data))

    @property
    def _data(self) -> tuple[str, ...]:
        """Files of weights, which the graphs of a part share."""
        return tuple(self.listed(tuple(f"{graph}.onnx.data" for graph in self._known["graphs"])))

    def about(self, target: str) -> Mapping[str, Any] | None:
        """See `EnginePart`. ONNX Runtime runs the portable graph, of which nothing is lowered."""
        known: Mapping[str, Any] | None = self._known.get("targets", {}).get(target, {}).get("graphs", {}).get(self.graph)
        return known if known is None or "engine" in known else {"engine": known}

    def engine_folder(self, target: str) -> str:
        """See `EnginePart`."""
        return f"engines/{target}/{self.graph}"

    def options(self, target: str) -> BuildOptions:
        """See `EnginePart`."""
        return BuildOptions.from_json((self.about(target) or {}).get("build", {}))

    def asked_options(self, options: BuildOptions) -> BuildOptions:
        """See `EnginePart`."""
        return options.of_parts

    def inputs(self, about: Mapping[str, Any]) -> dict[str, str]:
        """The graph and the data files that it may read."""
        names = (about["lowered"], f"{about['lowered']}.data", *self._data) if "lowered" in about else ()
        return {name: entry["sha256"] for name, entry in self.listed(names).items()}

    def prepare(self, target: Target, progress: Progress, *, fallback: bool) -> None:
        """Every target takes these parts; what float16 makes of one is seen when it is lowered."""

    def lower(self, target: Target, *, verify: bool, progress: Progress) -> None:
        """See `EnginePart`."""
        chosen = self._target(target)
        if target.backend == "onnxruntime":
            update(self.parts, self.bundle, self._with(target.name, chosen.compute, {"status": "portable"}), {}, set())
            return
        names = tuple(PurePosixPath(name).name for name in self.portable())
        check_files(self.root, self.listed(names), "copy the bundle again, or compile it again")
        lowered = lowered_name(self.graph, target.name)
        found = lower_part(self.root / f"{self.graph}.onnx", self.root / lowered, chosen, target.name, compare=verify, progress=progress)
        engine = {"status": TO_BUILD, "backend": chosen.backend}
        about = {"nodes": found.nodes, "error": found.error, "lowered": lowered, "engine": engine}
        staged = {f"{self.folder}/{path.name}": path for path in found.files if path.name not in names}
        update(self.parts, self.bundle, self._with(target.name, chosen.compute, about), staged, set())

    def request(self, target: Target, said: str, options: str, out: str) -> EngineRequest:
        """See `EnginePart`."""
        manifest, chosen, about = self.bundle.manifest, self._target(target), self.about(target.name)
        assert about is not None
        check_files(self.root, self.listed((about["lowered"],)), "copy the bundle again, or compile it again")  # before it is read
        tiles = VideoPlan.load(self.root).tiles if self._known.get("tiled") else None
        clip = clip_profile(Profile.from_json(manifest.profile), manifest.sampling["latent_shape"][1:])
        return EngineRequest(
            root=str(self.root.resolve()),
            target=said,
            target_digest=target_digest(chosen),
            compute=chosen.compute,
            attention=chosen.compute,
            lowered=about["lowered"],
            library=None,
            profile=part_profile(self.root / about["lowered"], clip, tiles).to_json(),
            options=options,
            inputs=self.listed(tuple(self.inputs(about))),
            out=out,
        )

    def memory(self, target: str, options: BuildOptions) -> int:
        """What the manifest says; every graph of a part may read all of its weights."""
        return int(self._known["targets"][target].get("memory", {}).get("builder", 0))

    def recorded(self, target: str, engine: Mapping[str, Any], options: BuildOptions) -> Manifest:
        """See `EnginePart`."""
        return with_component_engine(
            self.bundle.manifest, self.component, target, self.graph, {"engine": engine, "build": options.to_json()}
        )

    @property
    def _known(self) -> Mapping[str, Any]:
        known: Mapping[str, Any] = self.bundle.manifest.components[self.component]
        return known

    def _target(self, target: Target) -> Target:
        return part_target(target, text=not (self.root / DECODER).is_file())

    def _with(self, target: str, compute: str, graph: Mapping[str, Any]) -> Manifest:
        """The manifest with a graph for a target that it may not have yet."""
        manifest, known = self.bundle.manifest, self._known
        there = known["targets"].get(target, {"compute": compute, "graphs": {}})
        if "engine" in graph:
            memory = part_memory(known["weights"], compute, eight_bits=known["stored"] != "model")
            there = {**there, "memory": memory}
        about = {**there, "graphs": {**there["graphs"], self.graph: graph}}
        return with_component_target(manifest, self.component, target, about)


def component_engines(parts: list[Part]) -> list[ComponentEngine]:
    """One for every graph of the outer bundle's exported parts."""
    outer = parts[0]
    return [ComponentEngine(parts, outer, name, graph) for name, about in outer.manifest.components.items() for graph in about["graphs"]]
