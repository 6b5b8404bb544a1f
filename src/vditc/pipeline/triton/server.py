"""Triton's names for Python models, as far as they are used here: `triton_python_backend_utils`, which only its server has.

See the README of triton-inference-server/python_backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vditc.errors import CancelledError, InputError, VditcError

Array = npt.NDArray[Any]


class Tensor(Protocol):
    """A named array, on the host or on a GPU."""

    def name(self) -> str:
        """Of the input or output."""
        ...

    def as_numpy(self) -> Array:
        """Its values; only of one on the host."""
        ...


class Utils(Protocol):
    """The module."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL: int
    TRITONSERVER_MEMORY_CPU: Any
    TRITONSERVER_MEMORY_GPU: Any
    Tensor: Any
    InferenceRequest: Any
    InferenceResponse: Any
    PreferredMemory: Any
    TritonError: Any
    Logger: Any

    def get_input_tensor_by_name(self, inference_request: Any, name: str) -> Any:
        """A request's input; None where it has none of that name."""
        ...

    def get_output_tensor_by_name(self, inference_response: Any, name: str) -> Any:
        """The same of a response."""
        ...

    def using_decoupled_model_transaction_policy(self, model_config: Any) -> bool:
        """Whether a request may have many responses."""
        ...


def error_of(utils: Utils, error: BaseException) -> Any:
    """An exception as Triton's."""
    kind = utils.TritonError
    if isinstance(error, CancelledError):
        return kind(str(error), kind.CANCELLED)
    if isinstance(error, InputError):
        return kind(str(error), kind.INVALID_ARG)
    return kind(str(error) if isinstance(error, VditcError) else f"{type(error).__name__}: {error}", kind.INTERNAL)


def call_model(utils: Utils, model: str, inputs: Sequence[Any], outputs: Sequence[str], *, on_gpu: bool = False) -> dict[str, Any]:
    """Run another model of the server: tensors in, name -> tensor out. VditcError when the server says that it failed.

    `on_gpu`: the outputs stay on GPU 0, for another model; otherwise they come to the host.
    """
    place = utils.TRITONSERVER_MEMORY_GPU if on_gpu else utils.TRITONSERVER_MEMORY_CPU
    response = utils.InferenceRequest(
        model_name=model,
        inputs=list(inputs),
        requested_output_names=list(outputs),
        preferred_memory=utils.PreferredMemory(place, 0),
    ).exec()
    if response.has_error():
        raise VditcError(
            found=response.error().message(),
            wanted=f"a run that gives {', '.join(outputs)}",
            where=f"Triton model {model}",
            fix="read the server's log, and check that its TensorRT is that of the engine (README.md of the repository)",
        )
    found = {name: utils.get_output_tensor_by_name(response, name) for name in outputs}
    if missing := [name for name, tensor in found.items() if tensor is None]:
        raise VditcError(
            found=f"no output {', '.join(missing)}",
            wanted=", ".join(outputs),
            where=f"Triton model {model}",
            fix="make the repository again",
        )
    return found


def host_tensor(utils: Utils, name: str, values: Array, dtype: str) -> Any:
    """A tensor of a numpy type that the server takes."""
    return utils.Tensor(name, np.ascontiguousarray(values, np.dtype(dtype)))
