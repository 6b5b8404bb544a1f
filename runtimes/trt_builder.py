"""Builds an engine with any TensorRT module, TensorRT-RTX or TensorRT 10.3 to 11: the module is an argument, what differs is guarded.

Nothing is imported here but the standard library and two small nouns: the worker process stays small.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

from vditc.errors import VditcError
from vditc.runtimes.trt_plugins import Named, check_network, load_plugins
from vditc.version_range import VersionRange


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build. `shapes`: input name -> least, best and greatest shape.

    `compute_capabilities`: "SM89" and the like, or none to build for the GPU that is present. `inspection`: file for the engine
    inspector's report, or None; it takes a GPU. `versions`: least and greatest of the module (vditc.version_range), or None
    for any. `plugins`: the plugin library, None for a graph without its operators; `plugin_nodes`: node -> (operator, version, namespace).
    """

    module: str
    lowered: str
    plan: str
    shapes: dict[str, list[list[int]]]
    compute_capabilities: list[str]
    inspection: str | None = None
    versions: tuple[str, str | None] | None = None
    plugins: str | None = None
    plugin_nodes: dict[str, Named] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        nodes = {node: (str(n), str(v), str(d)) for node, (n, v, d) in data.get("plugin_nodes", {}).items()}
        return cls(**{**data, "plugin_nodes": nodes})


def build(trt: Any, request: BuildRequest) -> None:
    """Parse `request.lowered` (external data is found beside it) and write the engine to `request.plan`.

    VditcError if the module is of another version, if the parser does not take the graph, if a plugin is missing or not taken, if the
    profile and the graph's inputs differ, or if no engine comes out; the reasons are then in the log, which the builder writes to the
    standard streams.
    """
    if request.versions is not None and not (known := VersionRange(*request.versions)).holds(trt.__version__):
        raise VditcError(
            found=f"{request.module} {trt.__version__}",
            wanted=f"{request.module} {known}, the versions of the target",
            where="this machine",
            fix="install one of them, or widen runtime_least and runtime_greatest in a copy of the target's file",
        )
    logger = trt.Logger(trt.Logger.INFO)
    builder = trt.Builder(logger)
    if request.plugins is not None:
        load_plugins(trt, request.plugins, sorted(set(request.plugin_nodes.values())))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.lowered):
        raise VditcError(
            found="; ".join(_parser_error(parser.get_error(i)) for i in range(parser.num_errors)) or "a graph that it does not parse",
            wanted=f"a graph that the ONNX parser of {request.module} {trt.__version__} takes",
            where=request.lowered,
            fix="keep these layers in floating point in the recipe, or choose a target whose runtime reads them",
        )
    check_network(trt, network, request.plugin_nodes, request.lowered)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the engine then tells which ONNX nodes its kernels hold
    config.add_optimization_profile(_profile(builder, network, request))
    if request.compute_capabilities:
        _set_compute_capabilities(trt, config, request.compute_capabilities)
    if hasattr(builder, "build_serialized_network_to_stream"):  # from 10.13: no copy of the engine in memory
        with Path(request.plan).open("wb") as file:
            built = builder.build_serialized_network_to_stream(network, config, _writer(trt, file))
    else:
        plan = builder.build_serialized_network(network, config)
        if built := plan is not None:
            Path(request.plan).write_bytes(plan)
    if not built:
        raise VditcError(
            found="no engine",
            wanted=f"an engine for {', '.join(request.compute_capabilities) or 'this GPU'}",
            where=f"{request.module} {trt.__version__}, {request.lowered}",
            fix="read the builder's errors",
        )


def inspect(trt: Any, plan: str, report: str) -> None:
    """Write what the engine inspector says of `plan` as JSON; VditcError if this GPU cannot load the engine."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.INFO))
    engine = runtime.deserialize_cuda_engine(Path(plan).read_bytes())
    if engine is None:
        raise VditcError(
            found="an engine that does not load",
            wanted="an engine for this GPU",
            where=plan,
            fix="read the builder's errors",
        )
    Path(report).write_text(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _parser_error(error: Any) -> str:
    return f"node {error.node_name()} ({error.node_operator()}): {error.desc().strip()}"


def _profile(builder: Any, network: Any, request: BuildRequest) -> Any:
    wanted = [network.get_input(i).name for i in range(network.num_inputs)]
    if sorted(wanted) != sorted(request.shapes):
        raise VditcError(
            found=f"shapes for {', '.join(request.shapes) or 'nothing'}",
            wanted=f"shapes for {', '.join(wanted)}",
            where=request.lowered,
            fix="give the inputs of this graph",
        )
    profile = builder.create_optimization_profile()
    for name, (least, best, greatest) in request.shapes.items():
        profile.set_shape(name, least, best, greatest)
    return profile


def _set_compute_capabilities(trt: Any, config: Any, names: list[str]) -> None:
    known = sorted(trt.ComputeCapability.__members__) if hasattr(config, "num_compute_capabilities") else []
    if unknown := [name for name in names if name not in known]:
        raise VditcError(
            found=f"compute capabilities {', '.join(unknown)}",
            wanted=f"some of {', '.join(known)}" if known else "none: this TensorRT builds for the GPU that is present",
            where="the target's arch",
            fix="use a target that this runtime builds for",
        )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _writer(trt: Any, file: Any) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        """Puts the engine's bytes into `file` as they are made."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            """Returns the number of bytes taken."""
            return int(file.write(data))

    return Writer()
