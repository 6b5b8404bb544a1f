"""Build options, in the calls of a TensorRT module: what it has not is an error before the graph is parsed.

Nothing is imported here but the standard library and small nouns: the worker process stays small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vditc.build_options import BuildOptions
from vditc.errors import VditcError

REFIT_LOSES_BIAS = "11.3"  # the release notes' known issue: with REFIT the bias of a product may be dropped


def configure(trt: Any, config: Any, options: BuildOptions, plugins: str | None) -> None:
    """Put `options` into a builder's configuration. `plugins`: the plugin library, which may go into the engine. VditcError: see above."""
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.tactic_memory is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, options.tactic_memory)
    if options.tiling is not None:
        if not hasattr(config, "tiling_optimization_level"):
            raise _lacking(trt, "tiling", "TensorRT 10.9 or newer")
        config.tiling_optimization_level = _member(trt.TilingOptimizationLevel, options.tiling)
    if options.hardware_compatibility is not None:
        if options.hardware_compatibility.upper() not in trt.HardwareCompatibilityLevel.__members__:
            raise _lacking(trt, f"hardware-compatibility={options.hardware_compatibility}", "TensorRT 10.9 or newer")
        config.hardware_compatibility_level = _member(trt.HardwareCompatibilityLevel, options.hardware_compatibility)
    if options.refit:
        if trt.__version__.startswith(f"{REFIT_LOSES_BIAS}."):
            raise _lacking(trt, "refit", f"another TensorRT: {REFIT_LOSES_BIAS} may drop biases of engines that can be refitted")
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if not options.refit:  # the weights that come back are those that went: the builder may fold them as ever
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if options.weight_streaming is not None:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.embed_plugins and plugins is not None:
        config.plugins_to_serialize = [plugins]


def read_timing_cache(trt: Any, config: Any, path: Path) -> tuple[Any, str | None]:
    """The cache of an earlier build, given to `config`, or an empty one and why: one of another GPU or version is of no use."""
    data = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache, None
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return cache, f"the timing cache {path} is of another GPU or another TensorRT than {trt.__version__}: begun anew"


def check_embedded(options: BuildOptions, library: Path | None, lowered: Path) -> None:
    """VditcError for a plugin library that should be embedded where the graph has no operator of it."""
    if options.embed_plugins and library is None:
        raise VditcError(
            found="no operator of the plugin library in the graph",
            wanted="something to embed",
            where=f"{lowered}, engine option embed-plugins",
            fix="leave the option out",
        )


def _member(enum: Any, name: str) -> Any:
    return getattr(enum, name.upper())


def _lacking(trt: Any, option: str, wanted: str) -> VditcError:
    return VditcError(
        found=f"{trt.__name__} {trt.__version__}", wanted=wanted, where=f"engine option {option}", fix="leave the option out, or update"
    )
