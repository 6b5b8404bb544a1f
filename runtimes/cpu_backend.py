"""The portable graph in ONNX Runtime: nothing to build."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vditc.adapter import InputSpec
from vditc.build_options import DEFAULTS, BuildOptions
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.runtimes.backend import Backend, EngineFacts, EnginePlugins, no_budget
from vditc.sampling import Denoiser
from vditc.target import Target


class OnnxRuntime(Backend):
    """Runs `model.onnx` of the bundle as it is."""

    name = "onnxruntime"

    def check(self, target: Target, options: BuildOptions = DEFAULTS) -> None:
        """Nothing can fail: nothing is built."""

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
        """Writes nothing; ONNX Runtime runs the bodies of plugin operators."""
        return EngineFacts(status="portable", backend=self.name)

    @contextmanager
    def open(
        self, *, model: Path, engine: Path, plugins: EnginePlugins | None = None, weight_budget: int | None = None
    ) -> Iterator[Denoiser]:
        """Runs `model`; there is no engine."""
        if weight_budget is not None:
            raise no_budget(str(model))
        from vditc.runtimes.onnxruntime import OnnxRuntimeModel  # here, so that building for other targets needs no onnxruntime

        yield OnnxRuntimeModel(model)
