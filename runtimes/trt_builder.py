"""Builds an engine with any TensorRT module, TensorRT-RTX or TensorRT 10.3 to 11: the module is an argument, what differs is guarded.

Nothing is imported here but the standard library and two small nouns: the worker process stays small.
"""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vditc.build_options import DEFAULTS, BuildOptions
from vditc.errors import VditcError
from vditc.runtimes.trt_options import configure, read_timing_cache
from vditc.runtimes.trt_plugins import Named, check_network, load_plugins
from vditc.version_range import VersionRange

if TYPE_CHECKING:
    from typing import Self  # a device may have Python 3.10


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build. `shapes`: input name -> least, best and greatest shape.

    `compute_capabilities`: "SM89" and the like, or none to build for the GPU that is present. `inspection`: file for the engine
    inspector's report, or None; it takes a GPU. `versions`: least and greatest of the module (vditc.version_range), or None
    for any. `plugins`: the plugin library, None for a graph without its operators; `plugin_nodes`: node -> (operator, version, namespace).
    `timing_cache`: the file to read, and the one to write; None for a runtime without.
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
    options: BuildOptions = DEFAULTS
    timing_cache: tuple[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return {**dataclasses.asdict(self), "options": self.options.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        nodes = {node: (str(n), str(v), str(d)) for node, (n, v, d) in data.get("plugin_nodes", {}).items()}
        return cls(**{**data, "plugin_nodes": nodes, "options": BuildOptions.from_json(data.get("options", {}))})


class NodesError(VditcError):
    """Nodes of the graph that the runtime does not take."""

    def __init__(self, nodes: list[str], *, found: str, wanted: str, where: str, fix: str) -> None:
        super().__init__(found=found, wanted=wanted, where=where, fix=fix)
        self.nodes = nodes


def build(trt: Any, request: BuildRequest) -> list[str]:
    """Parse `request.lowered` (external data is found beside it) and write the engine to `request.plan`; returns what is worth a note.

    VditcError if the module is of another version or has not an option, if the parser does not take the graph (NodesError), if a plugin is
    missing or not taken, if the profile and the graph's inputs differ, if the disk is full, or if no engine comes out; the reasons are
    then in the log, which the builder writes to the standard streams.
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
    config = builder.create_builder_config()
    configure(trt, config, request.options, request.plugins)
    notes, cache = list[str](), None
    if request.timing_cache is not None:
        cache, note = read_timing_cache(trt, config, Path(request.timing_cache[0]))
        notes += [] if note is None else [note]
    if request.plugins is not None:
        load_plugins(trt, request.plugins, sorted(set(request.plugin_nodes.values())))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.lowered):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise NodesError(
            [str(error.node_name()) for error in errors],
            found="; ".join(map(_parser_error, errors)) or "a graph that it does not parse",
            wanted=f"a graph that the ONNX parser of {request.module} {trt.__version__} takes",
            where=request.lowered,
            fix="keep these layers in floating point in the recipe, or choose a target whose runtime reads them",
        )
    check_network(trt, network, request.plugin_nodes, request.lowered)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the engine then tells which ONNX nodes its kernels hold
    config.add_optimization_profile(_profile(builder, network, request))
    if request.compute_capabilities:
        _set_compute_capabilities(trt, config, request.compute_capabilities)
    try:
        built = _write_engine(trt, builder, network, config, Path(request.plan))
        if cache is not None and request.timing_cache is not None:
            Path(request.timing_cache[1]).write_bytes(memoryview(cache.serialize()))
    except OSError as error:
        raise unwritten(error, request.plan) from error
    if not built:
        raise VditcError(
            found="no engine",
            wanted=f"an engine for {', '.join(request.compute_capabilities) or 'this GPU'}",
            where=f"{request.module} {trt.__version__}, {request.lowered}",
            fix="read the builder's errors",
        )
    return notes


def _write_engine(trt: Any, builder: Any, network: Any, config: Any, plan: Path) -> bool:
    """Whether there is an engine; OSError where it cannot be written."""
    with plan.open("wb", buffering=0) as file:
        if hasattr(builder, "build_serialized_network_to_stream"):  # from 10.13: no copy of the engine in memory
            writer = _writer(trt, file)
            built = bool(builder.build_serialized_network_to_stream(network, config, writer))
            if writer.trouble is not None:
                raise writer.trouble
            return built
        data = builder.build_serialized_network(network, config)
        if data is not None:
            _write_all(file, data)
        return data is not None


def unwritten(error: OSError, path: str) -> VditcError:
    """What to say of a file that could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return VditcError(
        found="a full disk" if full else str(error.strerror),
        wanted="a disk that holds the whole engine",
        where=path,
        fix="free some space, or write to another disk; nothing of the engine was left behind" if full else "check the path and its rights",
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


def _write_all(file: Any, data: Any) -> int:
    view, done = memoryview(data), 0
    while done < len(view):
        done += file.write(view[done:])
    return done


def _writer(trt: Any, file: Any) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        """Puts the engine's bytes into `file` as they are made. TensorRT-RTX 1.7 calls a build good whose writer took nothing."""

        trouble: OSError | None = None

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            """Returns the number of bytes taken. The caller is C++: an error waits in `trouble`."""
            try:
                return _write_all(file, data)
            except OSError as error:
                self.trouble = error
                return 0

    return Writer()
