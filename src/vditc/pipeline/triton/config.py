"""`config.pbtxt`, a model's configuration in Triton's repository: https://github.com/triton-inference-server/common, model_config.proto."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from vditc.errors import InputError

TYPES = {
    "float64": "TYPE_FP64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
    "str": "TYPE_STRING",
}  # numpy's name, and str -> Triton's
ANY = -1  # size of an axis


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output. A size that is a name, or `ANY`, differs from request to request."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    optional: bool = False

    def to_text(self, where: str) -> str:
        """As Triton reads it; InputError for a type that it has not, or for a tensor without axes, which it does not take."""
        if self.dtype not in TYPES or not self.dims:
            raise InputError(
                found=f"{self.name}, {self.dtype} {list(self.dims)}",
                wanted=f"one of {', '.join(TYPES)}, and at least one axis",
                where=where,
                fix="build the engine without segments" if self.dtype in TYPES else "compile for a target that computes in another type",
            )
        dims = ", ".join(str(d if isinstance(d, int) else ANY) for d in self.dims)
        optional = ", optional: true" if self.optional else ""
        return f"  {{ name: {json.dumps(self.name)}, data_type: {TYPES[self.dtype]}, dims: [ {dims} ]{optional} }}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`on_gpu`: an instance on GPU 0, otherwise a process on the host. `parameters`: of the backend."""

    name: str
    backend: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    on_gpu: bool
    decoupled: bool = False
    parameters: tuple[tuple[str, str], ...] = ()

    def to_text(self) -> str:
        """The file. Shapes have all axes, so the server is told that it has none to batch over."""
        place = "kind: KIND_GPU, gpus: [ 0 ]" if self.on_gpu else "kind: KIND_CPU"
        lines = [f"name: {json.dumps(self.name)}", f"backend: {json.dumps(self.backend)}", "max_batch_size: 0"]
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            lines.append(f"{kind} [\n" + ",\n".join(one.to_text(f"{kind} of {self.name}") for one in tensors) + "\n]")
        lines.append(f"instance_group [ {{ count: 1, {place} }} ]")
        if self.decoupled:
            lines.append("model_transaction_policy { decoupled: true }")
        lines += [
            f"parameters {{ key: {json.dumps(key)}, value: {{ string_value: {json.dumps(value)} }} }}" for key, value in self.parameters
        ]
        return "\n".join(lines) + "\n"
