"""TensorRT-RTX: engines for RTX GPUs, built ahead of time on any machine, without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vditc.build_options import DEFAULTS, BuildOptions
from vditc.errors import InputError, VditcError
from vditc.runtimes.engine_program import EngineProgram
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.plan_text import KNOWN_VERSION, program, read_plan
from vditc.runtimes.trt_backend import EngineBackend
from vditc.target import Target


class TensorRTRTX(EngineBackend):
    """Engines by TensorRT-RTX, whose kernels are compiled on the GPU when an engine is first loaded."""

    name = "tensorrt_rtx"
    has_timing_cache = False  # its calls do nothing

    def check(self, target: Target, options: BuildOptions = DEFAULTS) -> None:
        """VditcError if the package is missing, InputError for options that it has not, or only beside a GPU."""
        target.check_options(options)
        asked = [name for name in ("refit", "strip-weights") if name in options.asked]
        if asked and compute_capability() is None:
            raise InputError(
                found=f"engine option {asked[0]} on a machine without a GPU",
                wanted="a GPU: TensorRT-RTX 1.7 calls CUDA when it builds an engine whose weights can be replaced",
                where=f"target {target.name}",
                fix="leave it out, or build on a machine with a GPU",
            )
        if importlib.util.find_spec(self.name) is None:
            raise VditcError(
                found="tensorrt_rtx is not installed",
                wanted=f"tensorrt_rtx_cu13 {KNOWN_VERSION}",
                where=f"target {target.name}",
                fix="pip install vditc[rtx]",
            )

    def builds_here(self, target: Target) -> bool:
        """Always."""
        return True

    def _capabilities(self, target: Target) -> list[str]:
        return [arch.upper().replace("_", "") for arch in target.arch]

    def _program(self, plan: Path, report: Path) -> EngineProgram:
        return program(read_plan(plan))

    @property
    def _inspects(self) -> bool:
        return False  # it loads the engine, which takes a GPU
