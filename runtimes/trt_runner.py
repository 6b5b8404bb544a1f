"""Runs an engine of TensorRT or TensorRT-RTX on a GPU. CUDA memory and streams come from polygraphy, a small pure Python package."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vditc.errors import InputError, VditcError
from vditc.plugins.catalogue import OPERATORS
from vditc.plugins.plugin_op import DOMAIN, VERSION
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.graph_inputs import step_table
from vditc.runtimes.step_table import StepTable
from vditc.runtimes.trt_plugins import load_plugins
from vditc.sampling import Array, Denoiser, Feeds

_NUMPY_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "BF16": ml_dtypes.bfloat16, "INT64": np.int64, "INT32": np.int32}


@contextmanager
def open_engine(module: str, plan: Path, model: Path, plugins: Path | None = None) -> Iterator[Denoiser]:
    """Loads the engine `plan` with the package `module`; VditcError that says what is missing. `model`: the graph that it comes from.

    `plugins`: the plugin library that it was built with, if it was; its machine code is loaded before the engine.
    """

    def missing(found: str, wanted: str, fix: str) -> VditcError:
        return VditcError(found=found, wanted=wanted, where=str(plan), fix=fix)

    if not plan.is_file():
        raise missing("no engine", "model.plan", f"build it on the device: sh {plan.with_name('build.sh')}")
    if (arch := compute_capability()) is None:
        raise missing("no NVIDIA GPU or no driver", "a GPU to run an engine on", "run the portable model with the onnxruntime backend")
    if absent := [name for name in (module, "polygraphy") if importlib.util.find_spec(name) is None]:
        extra = "rtx" if module == "tensorrt_rtx" else "gpu"
        raise missing(f"{' and '.join(absent)} not installed", f"{module} and polygraphy", f"pip install vditc[{extra}] polygraphy")
    trt, cuda = importlib.import_module(module), importlib.import_module("polygraphy.cuda")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    if plugins is not None:
        load_plugins(trt, str(plugins), [(name, VERSION, DOMAIN) for name in OPERATORS])
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        raise missing(
            f"an engine that does not load on {arch}", f"an engine of {module} {trt.__version__} for {arch}", "build it again here"
        )
    with ExitStack() as stack:
        yield _Engine(trt, cuda, engine, context, stack, step_table(model))


class _Engine:
    """A Denoiser. Buffers on the device grow to the largest shape seen and are freed by `stack`."""

    def __init__(self, trt: Any, cuda: Any, engine: Any, context: Any, stack: ExitStack, table: StepTable) -> None:
        self.table = table
        self.context, self.stream = context, stack.enter_context(cuda.Stream())
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.types = {name: _numpy_type(name, engine.get_tensor_dtype(name).name) for name in names}
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]  # the prediction for the latents first
        self.buffers = {name: stack.enter_context(cuda.DeviceArray((1,), self.types[name])) for name in names}

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """See `vditc.sampling.Denoiser`. InputError for missing inputs, shapes outside the engine's profile, another schedule."""
        if "step" in self.inputs:
            self.table.check({n: np.asarray(feeds[n]) for n in ("timestep",) if n in feeds and n not in self.inputs}, step)
        feeds = {**feeds, "step": np.array([step])}
        if missing := [name for name in self.inputs if name not in feeds]:
            raise InputError(
                found=f"no {', '.join(missing)}", wanted=", ".join(self.inputs), where="engine", fix="feed everything that the model takes"
            )
        for name in self.inputs:
            array = np.ascontiguousarray(feeds[name], self.types[name])
            if not self.context.set_input_shape(name, array.shape):
                raise InputError(
                    found=f"{name} of shape {list(array.shape)}",
                    wanted="a shape within the profile that the engine was built for",
                    where="engine",
                    fix="build an engine with a wider --profile",
                )
            self.buffers[name].copy_from(array)
        for name in self.outputs:
            self.buffers[name].resize(tuple(self.context.get_tensor_shape(name)))
        for name, buffer in self.buffers.items():
            self.context.set_tensor_address(name, buffer.ptr)
        if not self.context.execute_async_v3(self.stream.ptr):
            raise VditcError(
                found="a run that failed",
                wanted=", ".join(self.outputs),
                where="engine",
                fix="read what TensorRT wrote to the standard error stream",
            )
        self.stream.synchronize()
        return np.asarray(self.buffers[self.outputs[0]].numpy(), np.float32)


def _numpy_type(name: str, dtype: str) -> Any:
    if dtype not in _NUMPY_TYPES:
        raise VditcError(
            found=f"tensor {name} of type {dtype}",
            wanted=f"one of {', '.join(_NUMPY_TYPES)}",
            where="engine",
            fix="build the engine with vditc",
        )
    return _NUMPY_TYPES[dtype]
