"""TensorRT 10.3 to 11: engines for datacenter GPUs and Jetson, built where that GPU is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vditc.build_options import AUTO, DEFAULTS, BuildOptions
from vditc.errors import InputError, VditcError
from vditc.runtimes.engine_program import EngineProgram
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.trt_backend import EngineBackend
from vditc.runtimes.trt_inspection import inspected_program
from vditc.target import Target


class TensorRT(EngineBackend):
    """Engines by TensorRT, which times its kernels on the GPU that it builds for."""

    name = "tensorrt"

    def check(self, target: Target, options: BuildOptions = DEFAULTS) -> None:
        """VditcError if the target's GPU is here and the package is not; elsewhere nothing is built.

        InputError for options that the target has not, and for segments by a memory that nobody knows.
        """
        target.check_options(options)
        if options.segments == AUTO and options.memory is None and not self.builds_here(target):
            raise InputError(
                found="segments=auto for a machine that is not here",
                wanted="the memory that a build may take there",
                where=f"target {target.name}",
                fix="say it (--engine memory=SIZE), or how many segments there are to be",
            )
        if self.builds_here(target) and importlib.util.find_spec(self.name) is None:
            raise VditcError(
                found="tensorrt is not installed",
                wanted=target.runtime,
                where=f"target {target.name}",
                fix="pip install vditc[gpu]",
            )

    def builds_here(self, target: Target) -> bool:
        """Whether the target's GPU is here."""
        return compute_capability() in target.arch

    def _capabilities(self, target: Target) -> list[str]:
        return []

    def _program(self, plan: Path, report: Path) -> EngineProgram:
        return inspected_program(report)

    @property
    def _inspects(self) -> bool:
        return True
