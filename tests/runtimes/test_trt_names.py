"""Every name of TensorRT that the builder and the runner use exists in the releases that they are meant for."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from trt_stub import TABLES, Stub, Thing

from vditc.errors import InputError, VditcError
from vditc.runtimes.step_table import StepTable
from vditc.runtimes.trt_builder import BuildRequest, build, inspect
from vditc.runtimes.trt_runner import _Engine

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
    with pytest.raises(VditcError, match="found 1 plugins in the network; not there: r; wanted 2"):
        build(trt, dataclasses.replace(asked, plugin_nodes=dict.fromkeys("qr", ("QLinear", "1", "vditc"))))
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


class Cuda:
    """Device memory of polygraphy, on the host."""

    class Stream:
        ptr = 7

        def __enter__(self) -> Cuda.Stream:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    class DeviceArray:
        def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
            self.array, self.ptr, self.freed = np.zeros(shape, dtype), id(self), False

        def __enter__(self) -> Cuda.DeviceArray:
            return self

        def __exit__(self, *error: object) -> None:
            self.freed = True

        def copy_from(self, array: npt.NDArray[Any]) -> None:
            assert array.dtype == self.array.dtype
            self.array = array.copy()

        def resize(self, shape: tuple[int, ...]) -> None:
            self.array = np.zeros(shape, self.array.dtype)

        def numpy(self) -> npt.NDArray[Any]:
            return self.array


@pytest.mark.parametrize("release", sorted(TABLES))
def test_runner_feeds_the_engine_by_name_and_type(release: str) -> None:
    types = {"hidden_states": "HALF", "encoder_hidden_states": "HALF", "step": "INT64", "velocity": "HALF"}
    addresses: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def set_input_shape(name: str, shape: tuple[int, ...]) -> bool:
        shapes[name] = shape
        return shape[0] <= 2

    def run(stream: int) -> bool:  # velocity = 2 * latents + step
        assert stream == Cuda.Stream.ptr
        at = {name: next(b for b in engine.buffers.values() if b.ptr == pointer) for name, pointer in addresses.items()}
        at["velocity"].array[:] = at["hidden_states"].array * 2 + at["step"].array.astype(np.float16)
        return True

    trt = Stub(release, {})
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
    with contextlib.ExitStack() as stack:
        engine = _Engine(trt, Cuda, Thing(trt, "ICudaEngine"), Thing(trt, "IExecutionContext"), stack, StepTable((), "engine"))
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
    assert all(buffer.freed for buffer in engine.buffers.values())
