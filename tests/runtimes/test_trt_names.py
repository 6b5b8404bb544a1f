"""Every name of TensorRT that the builder and the runner use exists in the releases that they are meant for."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_stub import CudaStub
from trt_stub import TABLES, Stub, Thing

from vditc.build_options import BuildOptions
from vditc.errors import InputError, VditcError
from vditc.runtimes.cuda_runtime import Cuda
from vditc.runtimes.device_runs import DeviceRuns
from vditc.runtimes.step_table import StepTable
from vditc.runtimes.trt_builder import BuildRequest, build, inspect
from vditc.runtimes.trt_options import configure
from vditc.runtimes.trt_runner import EngineProgram, EngineRunner

PLAN = b"an engine"


def request(tmp_path: Path, *capabilities: str) -> BuildRequest:
    shapes = {"hidden_states": [[1, 8], [1, 16], [2, 32]]}
    plan = str(tmp_path / "model.plan")
    return BuildRequest(module="stub", lowered="l.onnx", plan=plan, shapes=shapes, compute_capabilities=list(capabilities))


def stub(release: str, **extra: Any) -> Stub:
    def streamed(network: Any, config: Any, writer: Any) -> bool:
        return bool(writer.write(PLAN) == len(PLAN))

    values = {
        "OnnxParser.parse_from_file": lambda path: True,
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.num_layers": 0,
        "ITensor.name": "hidden_states",
        "Builder.build_serialized_network": lambda network, config: PLAN,
        "Builder.build_serialized_network_to_stream": streamed,
        "EngineInspector.get_engine_information": lambda form: f"report {form.name}",
    }
    return Stub(release, values | {key.replace("__", "."): value for key, value in extra.items()})


@pytest.mark.parametrize("release", sorted(TABLES))
def test_builder_uses_only_names_of_the_release(release: str, tmp_path: Path) -> None:
    trt = stub(release)
    build(trt, request(tmp_path))
    inspect(trt, str(tmp_path / "model.plan"), str(tmp_path / "report.json"))
    assert (tmp_path / "model.plan").read_bytes() == PLAN
    assert (tmp_path / "report.json").read_text() == "report JSON"
    assert {"IOptimizationProfile.set_shape", "IBuilderConfig.add_optimization_profile", "IBuilderConfig.profiling_verbosity"} <= trt.used
    streamed = "Builder.build_serialized_network_to_stream"
    assert (streamed in trt.used) == (release != "10.3")


COMBINED: dict[str, tuple[Any, ...]] = {
    "level": (None, 0, 5),
    "workspace": (None, 1 << 30),
    "tiling": (None, "fast", "full"),
    "refit": (False, True),
    "strip_weights": (False, True),
    "weight_streaming": (None, "auto", 1 << 30),
    "hardware_compatibility": (None, "ampere_plus", "same_compute_capability"),
    "version_compatible": (False, True),
    "embed_plugins": (False, True),
}


def lacking(release: str, options: BuildOptions) -> list[str]:
    """Options that a release does not have."""
    found = ["tiling"] if options.tiling and release == "10.3" else []
    return [*found, "same"] if release == "10.3" and options.hardware_compatibility == "same_compute_capability" else found


@pytest.mark.parametrize("release", sorted(TABLES))
def test_every_combination_of_options_is_of_names_of_the_release(release: str) -> None:
    """Each is set with the right values, or refused by name; nothing else is touched."""
    flags = {
        "refit": "REFIT",
        "strip_weights": "STRIP_PLAN",
        "weight_streaming": "WEIGHT_STREAMING",
        "version_compatible": "VERSION_COMPATIBLE",
    }
    for values in itertools.product(*COMBINED.values()):
        options, trt = BuildOptions(**dict(zip(COMBINED, values, strict=True))), stub(release)
        config = Thing(trt, "IBuilderConfig")
        if lacking(release, options):
            with pytest.raises(VditcError, match=r"found stub 10\.3.*; wanted TensorRT 10\.9 or newer"):
                configure(trt, config, options, "l.so")
            continue
        configure(trt, config, options, "l.so")
        found = {key: args for key, args in trt.calls if key != "IBuilderConfig.set_flag"}
        wanted = {flag for option, flag in flags.items() if getattr(options, option)}
        wanted |= {"REFIT_IDENTICAL"} if options.strip_weights and not options.refit else set()
        assert {args[0].name for key, args in trt.calls if key == "IBuilderConfig.set_flag"} == wanted
        assert found.pop("IBuilderConfig.builder_optimization_level", (None,)) == (options.level,)
        pool, size = found.pop("IBuilderConfig.set_memory_pool_limit", (None, None))
        assert (size, getattr(pool, "name", None)) == (options.workspace, "WORKSPACE" if options.workspace else None)
        for name, chosen in (
            ("tiling_optimization_level", options.tiling),
            ("hardware_compatibility_level", options.hardware_compatibility),
        ):
            (member,) = found.pop(f"IBuilderConfig.{name}", (None,))
            assert getattr(member, "name", None) == (chosen.upper() if chosen else None)
        assert found == ({"IBuilderConfig.plugins_to_serialize": (["l.so"],)} if options.embed_plugins else {})


@pytest.mark.parametrize("release", sorted(TABLES))
def test_options_and_timing_cache_reach_the_builder(release: str, tmp_path: Path) -> None:
    read, written = tmp_path / "timing.cache", tmp_path / "new.cache"
    given: list[bytes] = []
    trt = stub(release, ITimingCache__serialize=lambda: b"times")

    def create(data: bytes) -> Thing:
        given.append(data)
        return Thing(trt, "ITimingCache")

    trt.values["IBuilderConfig.create_timing_cache"] = create
    options = BuildOptions(level=4, weight_streaming="auto", timing_cache=True)
    asked = dataclasses.replace(request(tmp_path), options=options, timing_cache=(str(read), str(written)))
    assert BuildRequest.from_json(json.loads(json.dumps(asked.to_json()))).options == options
    assert build(trt, asked) == [] and given == [b""] and written.read_bytes() == b"times"
    read.write_bytes(b"earlier times")
    assert build(trt, asked) == [] and given == [b"", b"earlier times"]
    trt.values["IBuilderConfig.set_timing_cache"] = lambda cache, ignore: ignore or given[-1] == b""
    (note,) = build(trt, asked)
    assert "timing.cache is of another GPU or another TensorRT than" in note and given[-2:] == [b"earlier times", b""]


def test_refit_is_refused_where_it_loses_biases() -> None:
    trt = stub("11.4")
    trt.__version__ = "11.3.0.5"
    with pytest.raises(VditcError, match=r"engine option refit: found stub 11\.3\.0\.5; wanted another TensorRT"):
        configure(trt, Thing(trt, "IBuilderConfig"), BuildOptions(refit=True), None)
    configure(trt, Thing(trt, "IBuilderConfig"), BuildOptions(strip_weights=True), None)


@pytest.mark.parametrize("release", ["10.3", "11.4"])
def test_a_full_disk_ends_a_build_with_one_message(release: str, tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 calls a build good whose writer took nothing, as the stub does."""
    taken: list[int] = []

    def streamed(network: Any, config: Any, writer: Any) -> bool:
        taken.append(writer.write(PLAN))
        return True

    trt = stub(release, Builder__build_serialized_network_to_stream=streamed)
    with pytest.raises(VditcError, match=r"/dev/full: found a full disk; wanted a disk that holds the whole engine; free some space"):
        build(trt, dataclasses.replace(request(tmp_path), plan="/dev/full"))
    assert taken == ([] if release == "10.3" else [0])


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda trt: trt.Bilder(trt.Logger(trt.Logger.INFO)), AttributeError),
        (lambda trt: trt.BuilderFlag.FP16, AttributeError),
        (lambda trt: trt.Logger(trt.BuilderFlag.REFIT), AssertionError),
        (lambda trt: trt.Builder(), AssertionError),
        (lambda trt: Thing(trt, "Builder").create_network(flag=1), AssertionError),
        (lambda trt: Thing(trt, "Builder").create_network(trt.BuilderFlag.REFIT), AssertionError),
        (lambda trt: Thing(trt, "IBuilderConfig").set_flag(trt.MemoryPoolType.WORKSPACE), AssertionError),
        (lambda trt: Thing(trt, "IBuilderConfig").set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, "1"), AssertionError),
        (lambda trt: setattr(Thing(trt, "IBuilderConfig"), "builder_optimization_level", None), AssertionError),
        (lambda trt: setattr(Thing(trt, "IBuilderConfig"), "num_optimization_profiles", 2), AttributeError),
        (lambda trt: setattr(Thing(trt, "IBuilderConfig"), "level", 2), AttributeError),
    ],
)
def test_the_stub_is_as_strict_as_the_release(use: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        use(stub("11.4"))


@pytest.mark.parametrize("release", sorted(TABLES))
def test_plugins_are_loaded_and_counted_by_names_of_the_release(release: str, tmp_path: Path) -> None:
    """A process that has none, one that has them, and a network that lacks one."""
    creators = list[Thing]()

    def loaded(path: str) -> object:
        creators.append(Thing(trt, "IPluginCreatorV3One"))
        return object()

    trt = stub(release, INetworkDefinition__num_layers=1, ILayer__name="q")
    trt.values |= {
        "ILayer.type": trt.LayerType.PLUGIN_V3,
        "IPluginV3Layer.plugin": Thing(trt, "IPluginV3"),
        "IPluginV3OneCore.plugin_name": "QLinear",
        "IPluginV3OneCore.plugin_version": "1",
        "IPluginV3OneCore.plugin_namespace": "vditc",
        "IPluginCreatorV3One.name": "QLinear",
        "IPluginCreatorV3One.plugin_version": "1",
        "IPluginCreatorV3One.plugin_namespace": "vditc",
        "IPluginRegistry.all_creators": creators,
        "IPluginRegistry.load_library": loaded,
    }
    asked = dataclasses.replace(request(tmp_path), plugins="l.so", plugin_nodes={"q": ("QLinear", "1", "vditc")})
    for _ in range(2):
        build(trt, asked)
        assert len(creators) == 1  # loaded once
    assert {"IPluginRegistry.load_library", "IPluginCreatorV3One.plugin_namespace", "ILayer.type"} <= trt.used
    with pytest.raises(VditcError, match="found 1 of them in the network; not there: r; wanted 2 plugins"):
        build(trt, dataclasses.replace(asked, plugin_nodes=dict.fromkeys("qr", ("QLinear", "1", "vditc"))))
    for name, other, seen in (
        ("plugin_name", "Other", r"vditc\.Other version 1"),
        ("plugin_version", "2", r"vditc\.QLinear version 2"),
        ("plugin_namespace", "a", r"a\.QLinear version 1"),
    ):
        before = trt.values[key := f"IPluginV3OneCore.{name}"]
        trt.values[key] = other
        with pytest.raises(VditcError, match=rf"found 0 of them in the network; not there: q \({seen} instead\)"):
            build(trt, asked)
        trt.values[key] = before
    build(trt, dataclasses.replace(asked, plugin_nodes={}))  # the plugins of others are no concern
    with pytest.raises(VditcError, match=r"l.so, stub .*: found no vditc.QAttention version 1 in it"):
        build(trt, dataclasses.replace(asked, plugin_nodes={"q": ("QAttention", "1", "vditc")}))


def test_rtx_builds_for_named_compute_capabilities(tmp_path: Path) -> None:
    trt = stub("rtx-1.7")
    build(trt, request(tmp_path, "SM80", "SM120"))
    assert {"IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"} <= trt.used


@pytest.mark.parametrize(("release", "wanted"), [("rtx-1.7", "SM75, SM80, SM86, SM89"), ("11.4", "none: this TensorRT builds for the GPU")])
def test_unknown_compute_capability(release: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(VditcError, match=f"found compute capabilities SM87; wanted .*{wanted}"):
        build(stub(release), request(tmp_path, "SM87"))


@pytest.mark.parametrize("release", sorted(TABLES))
def test_parser_errors_name_the_node(release: str, tmp_path: Path) -> None:
    trt = stub(
        release,
        OnnxParser__parse_from_file=lambda path: False,
        OnnxParser__num_errors=1,
        ParserError__node_name=lambda: "blocks.0.attn1.to_q/MatMul",
        ParserError__node_operator=lambda: "MatMulInteger",
        ParserError__desc=lambda: "UNSUPPORTED_NODE",
    )
    with pytest.raises(VditcError, match=r"node blocks\.0\.attn1\.to_q/MatMul \(MatMulInteger\): UNSUPPORTED_NODE"):
        build(trt, request(tmp_path))


def test_inputs_must_be_those_of_the_graph(tmp_path: Path) -> None:
    with pytest.raises(VditcError, match="found shapes for hidden_states; wanted shapes for step"):
        build(stub("11.4", ITensor__name="step"), request(tmp_path))


def test_no_engine_and_no_load_are_errors(tmp_path: Path) -> None:
    with pytest.raises(VditcError, match="found no engine; wanted an engine for this GPU"):
        build(stub("10.3", Builder__build_serialized_network=lambda network, config: None), request(tmp_path))
    (tmp_path / "model.plan").write_bytes(PLAN)
    with pytest.raises(VditcError, match="found an engine that does not load"):
        inspect(stub("10.3", Runtime__deserialize_cuda_engine=lambda data: None), str(tmp_path / "model.plan"), str(tmp_path / "r"))


@pytest.mark.parametrize("release", sorted(TABLES))
def test_runner_feeds_the_engine_by_name_and_type(release: str) -> None:
    types = {"hidden_states": "HALF", "encoder_hidden_states": "HALF", "step": "INT64", "velocity": "HALF"}
    addresses: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def set_input_shape(name: str, shape: tuple[int, ...]) -> bool:
        shapes[name] = shape
        return shape[0] <= 2

    def run(stream: int) -> bool:  # velocity = 2 * latents + step
        at, size = dict(addresses), math.prod(shapes["hidden_states"])

        def view(name: str, kind: Any, count: int) -> npt.NDArray[Any]:
            room = (ctypes.c_uint8 * (count * np.dtype(kind).itemsize)).from_address(at[name])
            return np.ctypeslib.as_array(room).view(kind)

        def kernel() -> None:
            view("velocity", np.float16, size)[:] = view("hidden_states", np.float16, size) * 2 + view("step", np.int64, 1)

        cuda.work(stream, kernel)
        return True

    trt, cuda = Stub(release, {}), CudaStub()
    members = trt.DataType.__members__
    modes = trt.TensorIOMode.__members__
    trt.values.update(
        {
            "ICudaEngine.num_io_tensors": len(types),
            "ICudaEngine.get_tensor_name": lambda i: list(types)[i],
            "ICudaEngine.get_tensor_dtype": lambda name: members[types[name]],
            "ICudaEngine.get_tensor_mode": lambda name: modes["OUTPUT" if name == "velocity" else "INPUT"],
            "IExecutionContext.set_input_shape": set_input_shape,
            "IExecutionContext.get_tensor_shape": lambda name: shapes["hidden_states"],
            "IExecutionContext.set_tensor_address": addresses.__setitem__,
            "IExecutionContext.execute_async_v3": run,
        }
    )
    program = EngineProgram(trt, Thing(trt, "ICudaEngine"))
    with DeviceRuns(Cuda(cuda, "stub"), program) as runs:
        engine = EngineRunner(runs, program, StepTable((), "engine"), [program])
        latents = np.arange(8, dtype=np.float32).reshape(2, 4)
        feeds = {"hidden_states": latents, "timestep": np.zeros(2, np.float32), "encoder_hidden_states": np.zeros((2, 3), np.float32)}
        velocity = engine(feeds, 5)
        assert velocity.dtype == np.float32
        assert np.array_equal(velocity, latents * 2 + 5)
        assert shapes == {"hidden_states": (2, 4), "encoder_hidden_states": (2, 3), "step": (1,)}
        with pytest.raises(InputError, match=r"found hidden_states of shape \[3, 4\]; wanted a shape within the profile"):
            engine({**feeds, "hidden_states": np.zeros((3, 4), np.float32)}, 0)
        with pytest.raises(InputError, match="found no encoder_hidden_states; wanted hidden_states, encoder_hidden_states, step"):
            engine({"hidden_states": latents}, 0)
        engine.table = StepTable((1000.0, 500.0), "model.onnx")  # the engine takes no timestep: one that is told must be the step's own
        for told, step, words in ((0, 1, "found timestep 0 at step 1; wanted 500, step 1 of 2"), (500, 2, "found step 2; wanted 0 to 1")):
            with pytest.raises(InputError, match=words):
                engine({**feeds, "timestep": np.full(2, told, np.float32)}, step)
        assert np.array_equal(engine({**feeds, "timestep": np.full(2, 500, np.float32)}, 1), latents * 2 + 1)
        first, second = engine.begin({**feeds, "timestep": np.full(2, 500)}, 1), engine.begin({**feeds, "timestep": np.full(2, 1000)}, 0)
        assert np.array_equal(second(), latents * 2) and np.array_equal(first(), latents * 2 + 1)
    assert cuda.left == 0
