"""Runs an engine of TensorRT or TensorRT-RTX on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vditc.errors import InputError, VditcError
from vditc.runtimes.backend import EnginePlugins
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.cuda_runtime import Cuda
from vditc.runtimes.device_runs import DeviceRuns, Pending, Program, Shape
from vditc.runtimes.engine_times import KernelClock
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.graph_inputs import step_table
from vditc.runtimes.layer_times import fused_modules
from vditc.runtimes.segmented_engine import SegmentedEngine
from vditc.runtimes.step_table import StepTable
from vditc.runtimes.trt_loader import load_engine
from vditc.sampling import Array, Feeds
from vditc.segments import Segments

PLAN = "model.plan"  # of an engine that is one
_NUMPY_TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "INT64": np.int64,
    "INT32": np.int32,
    "BOOL": np.bool_,
}


@contextmanager
def open_engine(
    module: str, folder: Path, model: Path, plugins: EnginePlugins | None = None, *, weight_budget: int | None = None
) -> Iterator[EngineRunner]:
    """Loads the engine in `folder` with the package `module`, all its segments where it has some; VditcError that says what is missing.

    `model`: the graph that it comes from. `plugins`: of the plugin library, if it was built with that, whose machine code is then loaded
    before the engine. `weight_budget`: bytes of the GPU for the weights of an engine that streams them; None: what it was built with.
    """

    def missing(found: str, wanted: str, fix: str, where: Path = folder) -> VditcError:
        return VditcError(found=found, wanted=wanted, where=str(where), fix=fix)

    segments = Segments.read(folder)
    plans = [folder / PLAN] if segments is None else [folder / name for name in segments.plans]
    for plan in plans:
        if not plan.is_file():
            raise missing("no engine", plan.name, f"build it on the device: sh {folder / 'build.sh'}", plan)
    if (arch := compute_capability()) is None:
        raise missing("no NVIDIA GPU or no driver", "a GPU to run an engine on", "run the portable model with the onnxruntime backend")
    if importlib.util.find_spec(module) is None:
        raise missing(f"{module} not installed", module, f"pip install vditc[{'rtx' if module == 'tensorrt_rtx' else 'gpu'}]")
    trt, cuda = importlib.import_module(module), Cuda.load()
    shared = segments is not None
    programs = [EngineProgram(trt, load_engine(trt, plan, arch, plugins, weight_budget), str(plan), shared=shared) for plan in plans]
    program = programs[0] if segments is None else SegmentedEngine(cuda, programs, segments.outputs, str(folder))
    said = BuiltWith.read(folder)
    streams = said is not None and said.options.weight_streaming is not None  # enqueueV3 waits between its layers then
    with DeviceRuns(cuda, program, graphs=not streams) as runs:
        yield EngineRunner(runs, program, step_table(model), programs)


class EngineProgram:
    """A `vditc.runtimes.device_runs.Program`: an execution context, and the types of its tensors.

    With scratch memory of its own, or, where it is `shared`, as a `vditc.runtimes.segmented_engine.Segment`, with what it is given.

    VditcError when the GPU has too little memory for a context.
    """

    generation = 0

    def __init__(self, trt: Any, engine: Any, where: str = "engine", *, shared: bool = False) -> None:
        self.trt, self.engine, self.where, self.shared = trt, engine, where, shared
        self.context: Any
        self.renew()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        types = {name: _numpy_type(name, engine.get_tensor_dtype(name).name) for name in names}
        inputs = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self.inputs = {name: kind for name, kind in types.items() if name in inputs}
        self.outputs = {name: kind for name, kind in types.items() if name not in inputs}  # the prediction for the latents first

    def renew(self) -> None:
        """Another context in place of the one that there is."""
        self.context = None  # gives its memory back first: for two there may be too little
        strategy = self.trt.ExecutionContextAllocationStrategy
        self.context = (
            self.engine.create_execution_context(strategy.USER_MANAGED) if self.shared else self.engine.create_execution_context()
        )
        if self.context is None:
            raise VditcError(
                found="too little memory on the GPU for its activations",
                wanted="a context of the engine",
                where=self.where,
                fix="free some of it, build with --engine weight-streaming, or give a --profile with smaller clips",
            )

    @property
    def context_bytes(self) -> int:
        """Activations and scratch at the largest sizes of the profile."""
        return int(self.engine.device_memory_size_v2)

    def clock(self) -> KernelClock:
        """Times what a new context runs, which is of no use for anything else."""
        self.renew()
        return KernelClock(self.trt, self.engine, self.context)

    def resize(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """See `Program`."""
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise InputError(
                    found=f"{name} of shape {list(shape)}",
                    wanted="a shape within the profile that the engine was built for",
                    where="engine",
                    fix="build an engine with a wider --profile",
                )
        return {name: tuple(self.context.get_tensor_shape(name)) for name in self.outputs}

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        """See `Program`."""
        for name, address in addresses.items():
            self.context.set_tensor_address(name, address)
        if not self.context.execute_async_v3(stream):
            raise VditcError(
                found="a run that failed",
                wanted=", ".join(self.outputs),
                where="engine",
                fix="read what TensorRT wrote to the standard error stream",
            )

    def release(self, stream: int) -> None:
        """See `Program`: TensorRT gives its memory back with the context."""

    def scratch_bytes(self) -> int:
        """See `vditc.runtimes.segmented_engine.Segment`."""
        return int(self.context.update_device_memory_size_for_shapes())

    def take_scratch(self, address: int, nbytes: int) -> None:
        """See `vditc.runtimes.segmented_engine.Segment`."""
        self.context.set_device_memory(address, nbytes)


class EngineRunner:
    """A Denoiser that may have two runs in flight: `begin` starts one, and what it returns waits for the prediction."""

    def __init__(self, runs: DeviceRuns, program: Program, table: StepTable, engines: Sequence[EngineProgram]) -> None:
        """`engines`: `program`, or what it consists of."""
        self.runs, self.program, self.table, self.engines = runs, program, table, engines

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """See `vditc.sampling.Denoiser`. InputError for missing inputs, shapes outside the engine's profile, another schedule."""
        return self.begin(feeds, step)()

    def begin(self, feeds: Feeds, step: int) -> Callable[[], Array]:
        """Start what a call computes. Errors of the input are raised here, those of the device by what is returned."""
        if "step" in self.program.inputs:
            told = {n: np.asarray(feeds[n]) for n in ("timestep",) if n in feeds and n not in self.program.inputs}
            self.table.check(told, step)
        pending, prediction = self._started({**feeds, "step": np.array([step])}), next(iter(self.program.outputs))
        return lambda: np.asarray(pending.result()[prediction], np.float32)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Named inputs -> all outputs. InputError as above."""
        return self._started(feeds).result()

    @property
    def context_bytes(self) -> int:
        """What activations take of the GPU at the largest sizes of the profile; segments share it."""
        return max(engine.context_bytes for engine in self.engines)

    def layer_seconds(self, feeds: Feeds, step: int, runs: int) -> dict[str, float]:
        """Module -> seconds of a step, the mean of `runs`, by TensorRT's profiler, with which an engine runs slower than without."""
        with self.runs.unrecorded():
            try:
                clocks = [engine.clock() for engine in self.engines]
                for number in range(runs + 1):  # the first one, which loads kernels, does not count
                    for clock in clocks:
                        clock.begin()
                    self(feeds, step)
                    for clock in clocks:
                        clock.end(number)
                return fused_modules(kernel for clock in clocks for kernel in clock.measured())
            finally:
                for engine in self.engines:
                    engine.renew()

    def _started(self, feeds: Feeds) -> Pending:
        if missing := [name for name in self.program.inputs if name not in feeds]:
            wanted = ", ".join(self.program.inputs)
            raise InputError(found=f"no {', '.join(missing)}", wanted=wanted, where="engine", fix="feed everything that the model takes")
        return self.runs.begin(feeds)


def _numpy_type(name: str, dtype: str) -> Any:
    if dtype not in _NUMPY_TYPES:
        raise VditcError(
            found=f"tensor {name} of type {dtype}",
            wanted=f"one of {', '.join(_NUMPY_TYPES)}",
            where="engine",
            fix="build the engine with vditc",
        )
    return _NUMPY_TYPES[dtype]
