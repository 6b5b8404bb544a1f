"""The portable graph in ONNX Runtime, on a CPU or a CUDA device, with the numerics that the graph says."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from vditc.errors import InputError, VditcError
from vditc.runtimes.layer_times import modules, onnxruntime_nodes
from vditc.runtimes.step_table import StepTable
from vditc.sampling import Feeds

Array = npt.NDArray[Any]
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
_CUDA = "CUDAExecutionProvider"
ERRORS = tuple(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception))


class OnnxRuntimeModel:
    """A denoiser (`vditc.sampling.Denoiser`) over `model.onnx` or a lowered graph.

    Optimization stays at ORT_ENABLE_BASIC: higher levels replace DequantizeLinear and MatMul by kernels that round
    activations to 8 bits on their own. Q/DQ rewriting is off altogether, so that constant folding may dequantize the
    weights once, while loading. Against plain ORT_ENABLE_BASIC this changes only the order in which a MatMul sums
    (a constant factor is packed), hence float32 rounding and, where it meets a tie, a code of an activation by one.
    Memory: every weight as float32.
    """

    def __init__(self, model_path: Path, threads: int | None = None, device: str = "auto") -> None:
        """`threads`: of one operator, None for all cores. `device`: auto (CUDA if installed), cpu or cuda[:N].

        InputError when the file cannot be loaded, or the device is not there.
        """
        self.path, self._threads, self._device = model_path, threads, device
        self.session = self._session(session_options(threads))
        self.dims: dict[str, list[int | str]] = {i.name: i.shape for i in self.session.get_inputs()}
        self.types = {i.name: _NUMPY_TYPES.get(i.type, np.float32) for i in self.session.get_inputs()}
        self.table = StepTable.of_metadata(self.session.get_modelmeta().custom_metadata_map.get("vditc"), model_path)

    def _session(self, options: ort.SessionOptions) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(str(self.path), options, providers=_providers(self._device))
        except ERRORS as error:
            raise InputError(
                found=error_text(error), wanted="a graph that ONNX Runtime can load", where=str(self.path), fix="export it again"
            ) from error

    def layer_seconds(self, feeds: Feeds, step: int, runs: int) -> dict[str, float]:
        """Module -> seconds of a step, the mean of `runs`; a second session measures, for profiling slows a session down."""
        options, plain = session_options(self._threads), self.session
        with tempfile.TemporaryDirectory() as folder:
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "nodes")
            self.session = self._session(options)
            try:
                for _ in range(runs):
                    self(feeds, step)
                nodes = onnxruntime_nodes(Path(self.session.end_profiling()))
            finally:
                self.session = plain
        return {module: seconds / runs for module, seconds in modules(nodes).items()}

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """What the graph's inputs name -> velocity float32 [B, C, F, H, W].

        InputError for inputs that are missing, shapes that the graph does not take, a step without a row in its tables, or a timestep
        that is not the one of the row, where the graph has tables instead of it.
        """
        if missing := [name for name in self.dims if name not in feeds and name != "step"]:
            raise self._bad(f"no {', '.join(missing)}", ", ".join(self.dims), "feed everything that the graph takes")
        latents = feeds[next(iter(self.dims))]
        told = {name: np.asarray(feeds[name]) for name in ("timestep",) if name in feeds and name not in self.dims}
        feeds = {name: np.asarray(feeds[name], self.types[name]) for name in self.dims if name != "step"}
        self._check(feeds)
        if "step" in self.dims:
            self.table.check(told, step)
            feeds = {**feeds, "step": np.array([step], np.int64)}
        try:
            velocity: Array = self.session.run(None, feeds)[0]
        except ERRORS as error:
            raise VditcError(
                found=error_text(error),
                wanted=f"a velocity for latents {list(latents.shape)}",
                where=str(self.path),
                fix="use sizes within the model's positions",
            ) from error
        if (velocity.shape[0], *velocity.shape[2:]) != (latents.shape[0], *latents.shape[2:]):
            raise self._bad(f"latents {list(latents.shape)}", "frames, height and width that the model's patches divide", "change the size")
        return velocity

    def _check(self, feeds: Feeds) -> None:
        sizes: dict[str, int] = {}
        for name, array in feeds.items():
            dims = self.dims[name]
            fits = len(dims) == array.ndim
            for dim, size in zip(dims, array.shape, strict=False):
                fits = fits and size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
            if not fits:
                known = f" ({', '.join(f'{axis} = {size}' for axis, size in sizes.items())})" if sizes else ""
                raise self._bad(
                    f"{name} of shape {list(array.shape)}", f"[{', '.join(map(str, dims))}]{known}", "feed the shapes the graph names"
                )

    def _bad(self, found: str, wanted: str, fix: str) -> InputError:
        return InputError(found=found, wanted=wanted, where=str(self.path), fix=fix)


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Options under which ONNX Runtime computes what the graph says; see `OnnxRuntimeModel`."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # errors are raised, not logged too
    return options


def _providers(device: str) -> list[Any]:
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    installed = _CUDA in ort.get_available_providers()
    if match is None or (device.startswith("cuda") and not installed):
        raise InputError(
            found=f"device {device!r}",
            wanted=f"auto or cpu{' or cuda[:N]' if installed else '; the installed ONNX Runtime has no CUDA provider'}",
            where="--device",
            fix="choose one of these" if installed else "install the extra `gpu` instead of `cpu`",
        )
    cpu = "CPUExecutionProvider"
    return [cpu] if device == "cpu" or not installed else [(_CUDA, {"device_id": int(match[1] or 0), "use_tf32": 0}), cpu]


def error_text(error: Exception) -> str:
    """The innermost message, without the C++ function that raised it."""
    text = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", str(error))[-1]
    return text.strip().splitlines()[0]
