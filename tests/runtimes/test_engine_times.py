"""Times of an engine's layers, through the names that each release has."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from cuda_stub import TOTAL, CudaStub
from trt_stub import TABLES, Stub, Thing

from vditc.errors import VditcError
from vditc.runtimes.cuda_runtime import Cuda
from vditc.runtimes.device_runs import DeviceRuns
from vditc.runtimes.engine_times import mean_times
from vditc.runtimes.layer_times import OTHERS, fused_modules
from vditc.runtimes.segmented_engine import SegmentedEngine
from vditc.runtimes.step_table import StepTable
from vditc.runtimes.trt_inspection import kernel_nodes
from vditc.runtimes.trt_runner import EngineProgram, EngineRunner

QKV = tuple(f"blocks.0.attn1.to_{x}/{operator}" for operator in ("DequantizeLinear", "MatMul") for x in "qkv")
KERNELS: dict[str, tuple[str, ...]] = {
    "__myl_Norm": ("blocks.0.norm1/LayerNormalization", "blocks.0.attn1.to_q/QuantizeLinear"),
    "__myl_Fc": QKV,
    "_gemm_mha_v2": ("blocks.0.attn1/Softmax", "blocks.0.attn1/MatMul"),
    "Memcpy": (),
}


class Engine:
    """y = x, whose kernels take 1, 2, 3, ... milliseconds, ten times as long in the first run of a context."""

    def __init__(self, release: str, *, silent: bool = False) -> None:
        self.trt, self.cuda = Stub(release, {}), CudaStub()
        self.contexts, self.ran, self.profiler = 0, 0, None
        members, modes = self.trt.DataType.__members__, self.trt.TensorIOMode.__members__
        names = ["x", "y"]
        layers = [{"Name": n, "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)} for n, nodes in KERNELS.items()]
        self.trt.values |= {
            "ICudaEngine.num_io_tensors": len(names),
            "ICudaEngine.get_tensor_name": lambda i: names[i],
            "ICudaEngine.get_tensor_dtype": lambda name: members["FLOAT"],
            "ICudaEngine.get_tensor_mode": lambda name: modes["INPUT" if name == "x" else "OUTPUT"],
            "ICudaEngine.create_execution_context": self.created,
            "ICudaEngine.device_memory_size_v2": 4096,
            "IExecutionContext.set_input_shape": lambda name, shape: True,
            "IExecutionContext.get_tensor_shape": lambda name: (2,),
            "IExecutionContext.execute_async_v3": self.run,
            "IExecutionContext.report_to_profiler": lambda: not silent and self.report(),
            "EngineInspector.get_engine_information": lambda form: json.dumps({"Layers": layers}),
        }

    def created(self, strategy: Any = None) -> Thing:
        self.contexts += 1
        self.ran = 0
        return Thing(self.trt, "IExecutionContext")

    def run(self, stream: int) -> bool:
        self.ran += 1
        self.cuda.work(stream, lambda: None)
        return True

    def report(self) -> bool:
        """Of the present context alone, and only where enqueueing does not report by itself."""
        made = max(i for i, (key, _) in enumerate(self.trt.calls) if key == "ICudaEngine.create_execution_context")
        told = {key: args[0] for key, args in self.trt.calls[made:] if args}
        assert told["IExecutionContext.enqueue_emits_profile"] is False
        for i, name in enumerate(KERNELS, 1):
            told["IExecutionContext.profiler"].report_layer_time(name, i * (10.0 if self.ran == 1 else 1.0))
        return True


@pytest.mark.parametrize("release", sorted(TABLES))
def test_seconds_of_a_step_by_module(release: str) -> None:
    """The first run of the measured context is left out; before and behind it the engine has other contexts, and no recorded graph."""
    engine = Engine(release)
    program = EngineProgram(engine.trt, Thing(engine.trt, "ICudaEngine"))
    with DeviceRuns(Cuda(engine.cuda, "stub"), program, slots=1) as runs:
        runner, feeds = EngineRunner(runs, program, StepTable((), "engine"), [program]), {"x": np.zeros(2, np.float32)}
        for _ in range(3):
            runner(feeds, 0)
        assert runs.recorded and engine.contexts == 1
        found = runner.layer_seconds(feeds, 0, 2)
        assert found == pytest.approx(
            {OTHERS: 0.004, "blocks.0.attn1": 0.003, "blocks.0.norm1": 0.001} | {f"blocks.0.attn1.to_{x}": 0.002 / 3 for x in "qkv"}
        )
        assert list(found)[:2] == [OTHERS, "blocks.0.attn1"]  # the longest first
        assert (engine.contexts, runs.recorded, runner.context_bytes) == (3, False, 4096)
        assert np.array_equal(runner(feeds, 0), runner(feeds, 0)) and runs.recorded  # as before
    assert engine.cuda.left == 0


def test_kernels_of_segments_follow_each_other() -> None:
    """Each segment has a context without memory of its own, and a clock; they share their scratch memory."""
    engines = [Engine("10.16"), Engine("10.16")]
    engines[1].cuda = engines[0].cuda
    for engine in engines:
        engine.trt.values |= {
            "IExecutionContext.update_device_memory_size_for_shapes": lambda: 64,
            "IExecutionContext.set_device_memory": lambda address, size: None,
        }
    segments = [EngineProgram(engine.trt, Thing(engine.trt, "ICudaEngine"), shared=True) for engine in engines]
    cuda = Cuda(engines[0].cuda, "stub")
    whole = SegmentedEngine(cuda, segments, ["y"], "engine")
    with DeviceRuns(cuda, whole) as runs:
        runner = EngineRunner(runs, whole, StepTable((), "engine"), segments)
        found = runner.layer_seconds({"x": np.zeros(2, np.float32)}, 0, 1)
        assert sum(found.values()) == pytest.approx(2 * (0.001 + 0.002 + 0.003 + 0.004)) and runner.context_bytes == 4096
        for engine in engines:
            strategies = [args for key, args in engine.trt.calls if key == "ICudaEngine.create_execution_context"]
            assert len(strategies) == 3 and {args[0].name for args in strategies} == {"USER_MANAGED"}
    assert engines[0].cuda.left == 0


def test_no_times() -> None:
    engine = Engine("10.3", silent=True)
    program = EngineProgram(engine.trt, Thing(engine.trt, "ICudaEngine"))
    with DeviceRuns(Cuda(engine.cuda, "stub"), program) as runs, pytest.raises(VditcError, match=r"found no times of run 0.*--layers 0"):
        EngineRunner(runs, program, StepTable((), "engine"), [program]).layer_seconds({"x": np.zeros(2, np.float32)}, 0, 1)
    assert engine.contexts == 3


def test_no_memory_for_a_context() -> None:
    trt = Stub("11.4", {"ICudaEngine.create_execution_context": lambda: None})
    with pytest.raises(VditcError, match=r"a\.plan: found too little memory on the GPU for its activations; wanted a context"):
        EngineProgram(trt, Thing(trt, "ICudaEngine"), "a.plan")


def test_kernels_of_one_name_are_told_apart_by_their_order() -> None:
    nodes = kernel_nodes(json.dumps({"Layers": [{"Name": "mha", "Metadata": f"[ONNX Layer: {b}/Softmax]"} for b in ("b.0", "b.1")]}))
    run = [("mha", 1.0), ("mha", 2.0), ("blocks.1.ffn/MatMul", 4.0)]
    assert mean_times([run, [(n, 3 * ms) for n, ms in run]], nodes) == [
        (("b.0/Softmax",), 0.002),
        (("b.1/Softmax",), 0.004),
        (("blocks.1.ffn/MatMul",), 0.008),
    ]
    assert kernel_nodes('{"Layers": ["a", "b"]}') == {}  # a report that is not detailed


def test_a_kernel_is_its_products() -> None:
    kernels: list[Any] = [
        (("ffn.0.weight/DequantizeLinear",), 1.0),
        (("norm/Mul", "a.to_q/MatMul_1", "a.to_k/QLinear"), 4.0),
        (("Reshape_2",), 0.5),
        (("ffn.0/Gelu", "norm/Mul"), 1.0),
    ]
    assert fused_modules(kernels) == {"ffn.0": 2.0, "a.to_q": 2.0, "a.to_k": 2.0, OTHERS: 0.5}


def test_free_memory_of_the_device() -> None:
    stub = CudaStub()
    cuda = Cuda(stub, "stub")
    stream = cuda.stream()
    cuda.allocate(100, stream)
    assert cuda.free_memory() == TOTAL - 100
