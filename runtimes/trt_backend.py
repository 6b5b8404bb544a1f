"""What engines of TensorRT and TensorRT-RTX have in common: one build with everything that is checked before, written beside and kept."""

from __future__ import annotations

import abc
import dataclasses
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

from vditc.adapter import InputSpec
from vditc.build_memory import check_build_memory
from vditc.build_options import DEFAULTS, BuildOptions
from vditc.errors import PrecisionError
from vditc.files import room_for, whole_file, write_text
from vditc.memory import builder_memory
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.runtimes.backend import TO_BUILD, Backend, EngineFacts, EnginePlugins
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.engine_program import EngineProgram
from vditc.runtimes.graph_precision import expected_precision, weight_bytes
from vditc.runtimes.precision import assert_landed, refused_layers
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_errors import RefusedError
from vditc.runtimes.trt_options import check_embedded
from vditc.runtimes.trt_process import TIMING_CACHE, built_facts, keep_timing_cache, run_build, shapes
from vditc.runtimes.trt_runner import PLAN, open_engine
from vditc.sampling import Denoiser
from vditc.target import Target

LAYERS = "layers.json"


class EngineBackend(Backend):
    """Builds `out`/model.plan in a child process, and beside it engine.json, layers.json and timing.cache."""

    has_timing_cache = True

    @abc.abstractmethod
    def _capabilities(self, target: Target) -> list[str]:
        """GPUs to build for by name; none: the one that is present."""

    @abc.abstractmethod
    def _program(self, plan: Path, report: Path) -> EngineProgram:
        """What the engine computes. `report`: the engine inspector's, where `_inspects`."""

    @property
    @abc.abstractmethod
    def _inspects(self) -> bool:
        """Whether the engine inspector is asked."""

    def build(
        self,
        *,
        lowered: Path,
        target: Target,
        profile: Profile,
        inputs: tuple[InputSpec, ...],
        out: Path,
        work: Path,
        progress: Progress,
        plugins: Path | None = None,
        options: BuildOptions = DEFAULTS,
    ) -> EngineFacts:
        """See `Backend.build`. Files of `out` are written when the precision has landed, all or none of them."""
        self.check(target, options)
        if not self.builds_here(target):
            return EngineFacts(status=TO_BUILD, backend=self.name)
        expectation = expected_precision(lowered, plugins=plugins is not None)
        library = plugins if plugins is not None and expectation.plugins else None
        check_embedded(options, library, lowered)
        weights = weight_bytes(lowered)
        check_build_memory(builder_memory(expectation.products, weights), options.memory, f"building for {target.name}", progress)
        out.mkdir(parents=True, exist_ok=True)
        report, keeps = work / "inspection.json", self.has_timing_cache and options.timing_cache is not False
        with (
            progress.task(f"build engine for {target.name}", 1) as advance,
            whole_file(out / PLAN) as plan,
            room_for(out / PLAN, 0 if options.strip_weights else weights),
        ):
            work.mkdir(parents=True, exist_ok=True)
            request = BuildRequest(
                module=self.name,
                lowered=str(lowered),
                plan=str(plan),
                shapes=shapes(inputs, profile),
                compute_capabilities=self._capabilities(target),
                inspection=str(report) if self._inspects else None,
                versions=(target.versions.least, target.versions.greatest),
                plugins=None if library is None else str(library),
                plugin_nodes=expectation.plugin_names,
                options=options,
                timing_cache=(str(out / TIMING_CACHE), str(work / TIMING_CACHE)) if keeps else None,
            )
            try:
                result = run_build(request, work)
            except RefusedError as error:
                layers = refused_layers(expectation, error.nodes, error.types)
                raise PrecisionError(found=error.found, wanted=error.wanted, where=error.where, fix=error.fix, layers=layers) from error
            if keeps:
                keep_timing_cache(work, out)
            for note in result.notes:
                progress.note(f"{target.name}: {note}")
            program = self._program(plan, report)
            landed = assert_landed(expectation, program)
            plan_bytes = plan.stat().st_size
            write_text(out / LAYERS, _layer_info(program, report if self._inspects else None))
            BuiltWith(
                module=self.name,
                version=result.version,
                arch=target.arch,
                options=options,
                weights=os.path.relpath(lowered, out) if options.strip_weights else None,
            ).write(out)
            advance()
        return built_facts(self.name, target.arch, plan_bytes, result, landed)

    def open(
        self, *, model: Path, engine: Path, plugins: EnginePlugins | None = None, weight_budget: int | None = None
    ) -> AbstractContextManager[Denoiser]:
        """Runs the engine in `engine` on the GPU. `weight_budget`: bytes of a streaming engine's weights that stay there."""
        return open_engine(self.name, engine, model, plugins, weight_budget=weight_budget)


def _layer_info(program: EngineProgram, report: Path | None) -> str:
    """layers.json: products, attentions, plugins and other kernels with their ONNX nodes, and all that the engine inspector says."""
    known = {key: value for key, value in dataclasses.asdict(program).items() if key != "source"}
    said = {"read_from": "plan text" if report is None else "engine inspector", "program": known}
    if report is not None:
        said["inspector"] = json.loads(report.read_text())
    return json.dumps(said, indent=1, sort_keys=True) + "\n"
