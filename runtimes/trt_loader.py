"""Loads an engine of TensorRT or TensorRT-RTX, however it was built: weights stripped or streamed, code of the host in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vditc.build_options import AUTO
from vditc.errors import VditcError
from vditc.runtimes.backend import EnginePlugins, no_budget
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.trt_plugins import load_plugins


def load_engine(trt: Any, plan: Path, arch: str, plugins: EnginePlugins | None = None, weight_budget: int | None = None) -> Any:
    """The engine (ICudaEngine) of the file `plan`, as engine.json beside it says it must be loaded, on a GPU of `arch` ("sm_90").

    `plugins`, `weight_budget`: see `vditc.runtimes.trt_runner.open_engine`. VditcError names what the engine was built with and what is
    here when they do not fit; InputError for a budget of an engine that does not stream.
    """
    said = BuiltWith.read(plan.parent)
    options = said.options if said is not None else None
    streams = options is not None and options.weight_streaming is not None
    if weight_budget is not None and not streams:
        raise no_budget(str(plan))
    log = _log(trt)
    runtime = trt.Runtime(log)
    if options is not None and options.host_code:
        runtime.engine_host_code_allowed = True
    if plugins is not None and not (options is not None and options.embed_plugins):
        load_plugins(trt, str(plugins.library), plugins.wanted)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise VditcError(
            found=f"{trt.__name__} {trt.__version__} on {arch}, which does not load it{log.words}",
            wanted=f"what it was built with: {said}" if said is not None else f"an engine of {trt.__name__} {trt.__version__} for {arch}",
            where=str(plan),
            fix="build it again here, or install that version"
            + ("" if said is None or arch in said.arch else f"; engines for {arch} come from another --target"),
        )
    if options is not None and options.strip_weights:
        assert said is not None and said.weights is not None
        _refit(trt, engine, log, plan.parent / said.weights, plan)
    if options is not None and streams:
        wanted = options.weight_streaming if weight_budget is None else weight_budget
        most = engine.streamable_weights_size
        engine.weight_streaming_budget_v2 = (
            engine.get_weight_streaming_automatic_budget() if wanted == AUTO else min(int(wanted or 0), most)
        )
    return engine


def _refit(trt: Any, engine: Any, log: Any, weights: Path, plan: Path) -> None:
    """Put the weights of the lowered graph back into an engine that was built without them."""

    def trouble(found: str, fix: str) -> VditcError:
        return VditcError(found=found, wanted=f"the engine's weights, from {weights}", where=str(plan), fix=fix)

    if not weights.is_file():
        raise trouble("no such file", "copy the whole bundle, or build without --engine strip-weights")
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(weights)):
        errors = "; ".join(parser.get_error(i).desc().strip() for i in range(parser.num_errors))
        raise trouble(errors or f"a graph that does not fit{log.words}", "build the engine again from this graph")
    if lacking := refitter.get_missing_weights():
        raise trouble(f"no {', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''} in it", "build the engine again from this graph")
    if not refitter.refit_cuda_engine():
        raise trouble(f"weights that the engine does not take{log.words}", "build the engine again from this graph")


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what TensorRT calls an error, for the message of ours."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.lines.append(message.strip())

        @property
        def words(self) -> str:
            """The last errors, in brackets."""
            return f" ({' | '.join(self.lines[-3:])})" if self.lines else ""

    return Log()
