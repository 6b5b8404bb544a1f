"""TensorRT-RTX: engines for RTX GPUs, built ahead of time on any machine, without a GPU."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager
from pathlib import Path

from vditc.adapter import InputSpec
from vditc.errors import VditcError
from vditc.files import whole_file
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.runtimes.backend import Backend, EngineFacts
from vditc.runtimes.plan_text import KNOWN_VERSION, program, read_plan
from vditc.runtimes.precision import assert_landed, expected_precision
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_process import built_facts, run_build, shapes
from vditc.runtimes.trt_runner import open_engine
from vditc.sampling import Denoiser
from vditc.target import Target


class TensorRTRTX(Backend):
    """Engines by TensorRT-RTX, whose kernels are compiled on the GPU when an engine is first loaded."""

    name = "tensorrt_rtx"

    def check(self, target: Target) -> None:
        """VditcError if the package is missing."""
        if importlib.util.find_spec(self.name) is None:
            raise VditcError(
                found="tensorrt_rtx is not installed",
                wanted=f"tensorrt_rtx_cu13 {KNOWN_VERSION}",
                where=f"target {target.name}",
                fix="pip install vditc[rtx]",
            )

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
    ) -> EngineFacts:
        """Writes `out`/model.plan, one engine for all of the target's GPUs; its precision is read from the plan."""
        self.check(target)
        expectation = expected_precision(lowered, plugins=plugins is not None)
        with progress.task(f"build engine for {target.name}", 1) as advance, whole_file(out / "model.plan") as plan:
            request = BuildRequest(
                module=self.name,
                lowered=str(lowered),
                plan=str(plan),
                shapes=shapes(inputs, profile),
                compute_capabilities=[arch.upper().replace("_", "") for arch in target.arch],
                versions=(target.versions.least, target.versions.greatest),
                plugins=str(plugins) if plugins is not None and expectation.plugins else None,
                plugin_nodes=expectation.plugin_names,
            )
            result = run_build(request, work)
            landed = assert_landed(expectation, program(read_plan(plan)))
            plan_bytes = plan.stat().st_size
            advance()
        return built_facts(self.name, target.arch, plan_bytes, result, landed)

    def open(self, *, model: Path, engine: Path, plugins: Path | None = None) -> AbstractContextManager[Denoiser]:
        """Runs `engine`/model.plan on the GPU."""
        return open_engine(self.name, engine / "model.plan", model, plugins)
