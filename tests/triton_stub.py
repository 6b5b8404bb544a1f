"""A stand-in for Triton: `triton_python_backend_utils` with the names and behaviour that its stub process gives Python models.

Models of a repository that are engines run their "plan", an ONNX graph, in ONNX Runtime; each call is checked against config.pbtxt.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from google.protobuf import json_format, text_format  # type: ignore[import-untyped]

from vditc.runtimes.onnxruntime import session_options

model_config = __import__("tritonclient.grpc.model_config_pb2", fromlist=["ModelConfig"])
Array = npt.NDArray[Any]
NUMPY = {
    "TYPE_FP64": "float64",
    "TYPE_FP32": "float32",
    "TYPE_FP16": "float16",
    "TYPE_INT64": "int64",
    "TYPE_INT32": "int32",
    "TYPE_UINT8": "uint8",
    "TYPE_STRING": "object",
}


def read_config(folder: Path) -> Any:
    """`config.pbtxt` by Triton's own schema."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config.ModelConfig())


class Tensor:
    def __init__(self, name: str, array: Array) -> None:
        assert name and isinstance(array, np.ndarray) and array.flags.c_contiguous
        self._name, self._array, self.on_gpu = name, array.copy(), False

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        if self.on_gpu:
            raise RuntimeError("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        assert all(isinstance(tensor, Tensor) for tensor in output_tensors)
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def arrays(self) -> dict[str, Array]:
        """For tests."""
        return {tensor.name(): tensor.as_numpy() for tensor in self._tensors}


class PreferredMemory:
    def __init__(self, preferred_memory_type: str, preferred_device_id: int = 0) -> None:
        assert preferred_memory_type in ("cpu", "gpu")
        self.kind = preferred_memory_type


class Logger:
    errors: ClassVar[list[str]] = []

    @staticmethod
    def log_error(message: str) -> None:
        Logger.errors.append(message)


class ResponseSender:
    def __init__(self, request: InferenceRequest) -> None:
        self.request, self.sent, self.final = request, list[InferenceResponse](), False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.final and (response is not None or flags)
        self.sent += [] if response is None else [response]
        self.final = bool(flags)

    def is_cancelled(self) -> bool:
        return self.request.is_cancelled()


class InferenceRequest:
    """One from a client, or one that a model makes and executes. `cancel_at`: calls of engines behind which the client gives up."""

    server: Server

    def __init__(
        self,
        model_name: str = "",
        requested_output_names: Sequence[str] = (),
        inputs: Sequence[Tensor] = (),
        preferred_memory: PreferredMemory | None = None,
        *,
        cancel_at: int | None = None,
    ) -> None:
        self.model, self._outputs, self._inputs = model_name, list(requested_output_names), list(inputs)
        self.memory, self.cancel_at, self.sender = preferred_memory, cancel_at, ResponseSender(self)

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def is_cancelled(self) -> bool:
        return self.cancel_at is not None and len(self.server.calls) >= self.cancel_at

    def get_response_sender(self) -> ResponseSender:
        return self.sender

    def exec(self) -> InferenceResponse:
        return self.server.run(self)


class Server:
    """Engines of a repository. `calls`: what was run, in order; `fails`: a model that answers with an error."""

    def __init__(self, models: Path) -> None:
        self.models, self.calls, self.fails = models, list[str](), ""
        self.places: list[str] = []  # where the outputs of each call were wanted
        self.configs = {folder.name: read_config(folder) for folder in sorted(models.iterdir())}
        self._sessions: dict[str, Any] = {}

    def run(self, request: InferenceRequest) -> InferenceResponse:
        name, config = request.model, self.configs[request.model]
        self.calls.append(name)
        self.places.append(request.memory.kind if request.memory is not None else "")
        if name == self.fails:
            return InferenceResponse(error=TritonError("no memory on the device"))
        check_tensors(config, {t.name(): t for t in request.inputs()})
        assert set(request.requested_output_names()) <= {output.name for output in config.output} and request.requested_output_names()
        if name not in self._sessions:
            plan = (self.models / name / "1" / "model.plan").read_bytes()
            self._sessions[name] = ort.InferenceSession(plan, session_options(None), providers=["CPUExecutionProvider"])
        wanted = request.requested_output_names()
        found = self._sessions[name].run(wanted, {t.name(): t._array for t in request.inputs()})
        tensors = [Tensor(n, np.ascontiguousarray(a)) for n, a in zip(wanted, found, strict=True)]
        for tensor in tensors:
            tensor.on_gpu = request.memory is None or request.memory.kind == "gpu"
        return InferenceResponse(tensors)


def check_tensors(config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Names, types and shapes are those of the configuration, as the server checks them."""
    needed = {i.name for i in config.input if not i.optional}
    known = {i.name: i for i in config.input}
    assert needed <= set(tensors) <= set(known), (config.name, sorted(tensors), sorted(known))
    for name, tensor in tensors.items():
        kind = model_config.DataType.Name(known[name].data_type)
        array = tensor._array
        assert array.dtype == np.dtype(NUMPY[kind]), (name, array.dtype, kind)
        dims = list(known[name].dims)
        assert len(dims) == array.ndim and all(d in (-1, n) for d, n in zip(dims, array.shape, strict=True)), (name, dims, array.shape)


def utils_of(server: Server) -> types.ModuleType:
    """The module that the server's Python models import."""
    utils: Any = types.ModuleType("triton_python_backend_utils")
    request = type("InferenceRequest", (InferenceRequest,), {"server": server})
    for name, what in {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "InferenceRequest": request,
        "InferenceResponse": InferenceResponse,
        "PreferredMemory": PreferredMemory,
        "Logger": Logger,
        "TRITONSERVER_MEMORY_CPU": "cpu",
        "TRITONSERVER_MEMORY_GPU": "gpu",
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
        "get_input_tensor_by_name": lambda request, name: next((t for t in request.inputs() if t.name() == name), None),
        "get_output_tensor_by_name": lambda response, name: next((t for t in response.output_tensors() if t.name() == name), None),
        "using_decoupled_model_transaction_policy": lambda config: bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
    }.items():
        setattr(utils, name, what)
    return utils  # type: ignore[no-any-return]


class Client:
    """Asks a Python model of a repository, loaded as the server loads it."""

    def __init__(self, repository: Path, model: str = "pipeline") -> None:
        self.server = Server(repository / "models")
        self.utils: Any = utils_of(self.server)
        sys.modules["triton_python_backend_utils"] = self.utils
        folder = repository / "models" / model
        self.config = self.server.configs[model]
        spec = importlib.util.spec_from_file_location("triton_model", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        path = list(sys.path)
        spec.loader.exec_module(module)
        sys.path[:] = path
        self.model = module.TritonPythonModel()
        config = json_format.MessageToJson(self.config, preserving_proto_field_name=True)
        self.model.initialize({"model_config": config, "model_repository": str(folder), "model_version": "1", "model_name": model})

    def request(self, outputs: Sequence[str] = ("latents",), cancel_at: int | None = None, **inputs: Any) -> Any:
        """Of plain values; types are those of the configuration."""
        known = {i.name: NUMPY[model_config.DataType.Name(i.data_type)] for i in self.config.input}
        tensors = {}
        for name, value in inputs.items():
            if not isinstance(value, np.ndarray):
                values = value if isinstance(value, list) else [value]
                value = np.array([v.encode() if isinstance(v, str) else v for v in values], known[name])
            tensors[name] = Tensor(name, np.ascontiguousarray(value))
        check_tensors(self.config, tensors)
        request = self.utils.InferenceRequest(requested_output_names=list(outputs), inputs=list(tensors.values()), cancel_at=cancel_at)
        assert set(outputs) <= {o.name for o in self.config.output}
        return request

    def ask(self, outputs: Sequence[str] = ("latents",), cancel_at: int | None = None, **inputs: Any) -> InferenceResponse:
        """One request's one response."""
        (response,) = self.model.execute([self.request(outputs, cancel_at, **inputs)])
        assert isinstance(response, InferenceResponse)
        return response

    def stream(self, outputs: Sequence[str], cancel_at: int | None = None, **inputs: Any) -> Iterator[InferenceResponse]:
        """One request's responses, until the final flag."""
        request = self.request(outputs, cancel_at, **inputs)
        assert self.model.execute([request]) is None and request.sender.final
        yield from request.sender.sent
