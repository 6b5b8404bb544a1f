"""A host of TensorRT plugins without TensorRT (tests/plugins/tensorrt_host.cpp): from attributes to outputs, as an engine goes."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vditc.plugins.emulated import SOURCES, emulated_library
from vditc.plugins.plugin_op import PluginOp
from vditc.plugins.wheels import cache_home

Array = npt.NDArray[Any]
CREATORS = ("QAttention", "QLinear", "QuantizeToken")  # in the library's order
TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bfloat16": 7}  # nvinfer1::DataType
NUMPY = {0: np.float32, 1: np.float16, 2: np.int8, 3: np.int32, 7: ml_dtypes.bfloat16}
FLOAT32, INT32, CHAR, UNKNOWN = 1, 5, 6, 8  # nvinfer1::PluginFieldType
BUILD, RUNTIME = 0, 1


class HostError(RuntimeError):
    """A call that failed: which, and what the library said."""


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        *((n, ctypes.c_int64 * 8) for n in ("least", "best", "greatest")),
    ]


class _Field(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("length", ctypes.c_int32)]


def compiled_host() -> Path:
    """The host's library, compiled once for each state of its sources."""
    source = Path(__file__).parent / "plugins" / "tensorrt_host.cpp"
    digest = hashlib.sha256(source.read_bytes() + (SOURCES / "tensorrt" / "abi.h").read_bytes()).hexdigest()[:16]
    out = cache_home() / f"test_host-{digest}.so"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as work:
            made = Path(work) / "host.so"
            flags = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}")
            subprocess.run(["g++", *flags, str(source), "-o", str(made), "-ldl"], check=True)
            made.rename(out)
    return out


class Host:
    """Loads a plugin library, the emulated one unless told. `generation`: of the logger that it hands out, 10 or 11."""

    def __init__(self, generation: int = 11, library: Path | None = None) -> None:
        self.native = ctypes.CDLL(str(compiled_host()))
        for name in ("log", "creator", "cache_id"):
            getattr(self.native, f"host_{name}").restype = ctypes.c_char_p
        for name in ("create", "reload", "clone"):
            getattr(self.native, f"host_{name}").restype = ctypes.c_void_p
        self.native.host_workspace.restype = ctypes.c_int64
        self.count = int(self.native.host_load(str(library or emulated_library()).encode(), generation))
        if self.count < 0:
            raise HostError(self.log())

    def log(self) -> str:
        """Lines "[E] ..." since the last call."""
        return str(self.native.host_log().decode())

    def creator(self, index: int) -> tuple[str, dict[str, int]]:
        """ "vditc.QLinear/1" and its fields with their types."""
        name, *fields = self.native.host_creator(index).decode().split()
        return name, {field: int(kind) for field, kind in (one.split(":") for one in fields)}

    def create(self, op_type: str, attributes: dict[str, Any], *, layer: str = "layer", phase: int = BUILD) -> Plugin:
        """From attributes as ONNX's parser hands them over. HostError with the library's words when there is none."""
        kept, fields = [], (_Field * len(attributes))()
        for at, (name, value) in enumerate(attributes.items()):
            data, kind, length = _field(value)
            kept.append(ctypes.create_string_buffer(data))
            fields[at] = _Field(name.encode(), ctypes.cast(kept[-1], ctypes.c_void_p), kind, length)
        made = self.native.host_create(CREATORS.index(op_type), layer.encode(), len(attributes), fields, phase)
        if not made:
            raise HostError(self.log())
        return Plugin(self, CREATORS.index(op_type), made)

    def of(self, op: PluginOp, *, layer: str = "layer") -> Plugin:
        """Of an operator's node."""
        return self.create(op.op_type, attributes(op), layer=layer)


def attributes(op: PluginOp) -> dict[str, Any]:
    """What a node of the operator carries, but for the plugin's name."""
    values = {f.name: getattr(op, f.name) for f in dataclasses.fields(op)}
    return {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}


def described(shape: Sequence[int], dtype: Any, *, least: Sequence[int] = (), greatest: Sequence[int] = ()) -> _Tensor:
    """A tensor of a profile; without least and greatest its sizes are constants."""
    made = _Tensor(TYPES[str(np.dtype(dtype))], len(shape))
    for name, sizes in (("least", least or shape), ("best", shape), ("greatest", greatest or shape)):
        for axis, size in enumerate(sizes):
            getattr(made, name)[axis] = size
    return made


def _field(value: Any) -> tuple[bytes, int, int]:
    """Bytes, type and number of elements; bytes are what an engine stores beside the attributes."""
    match value:
        case str():
            return value.encode(), CHAR, len(value)
        case bytes():
            return value, UNKNOWN, len(value)
        case float():
            return np.float32(value).tobytes(), FLOAT32, 1
    return np.int32(value).tobytes(), INT32, 1


class Plugin:
    """A plugin object of the library."""

    def __init__(self, host: Host, creator: int, handle: int) -> None:
        self.host, self.creator, self.handle = host, creator, ctypes.c_void_p(handle)

    def __del__(self) -> None:
        if self.handle:
            self.host.native.host_delete(self.handle)

    def check(self, call: str, status: int) -> None:
        """HostError with the library's words unless the status is 0."""
        if status:
            raise HostError(f"{call} {status}: {self.host.log()}")

    def infer(self, inputs: Sequence[_Tensor]) -> list[tuple[tuple[int, ...], Any]]:
        """Shapes and types of the outputs."""
        count = int(self.host.native.host_outputs(self.handle))
        out = (_Tensor * count)()
        self.check("infer", self.host.native.host_infer(self.handle, len(inputs), (_Tensor * len(inputs))(*inputs), count, out))
        return [(tuple(t.best[: t.rank]), np.dtype(NUMPY[t.type])) for t in out]

    def configure(self, inputs: Sequence[_Tensor]) -> None:
        """Formats and the profile."""
        outputs = [described(shape, dtype) for shape, dtype in self.infer(inputs)]
        tensors = [*inputs, *outputs]
        status = self.host.native.host_configure(self.handle, len(inputs), len(outputs), (_Tensor * len(tensors))(*tensors))
        self.check("configure", status)

    @property
    def workspace(self) -> int:
        """Bytes that it asks for."""
        return int(self.host.native.host_workspace(self.handle))

    @property
    def tactics(self) -> list[int]:
        """Tactics that it offers to be timed."""
        ids = (ctypes.c_int32 * 32)()
        return list(ids[: int(self.host.native.host_tactics(self.handle, ids, 32))])

    @property
    def cache_id(self) -> str:
        """Key of the timing cache."""
        return str(self.host.native.host_cache_id(self.handle).decode())

    def reload(self, layer: str = "layer") -> None:
        """Become what an engine makes of the fields that were stored."""
        made = self.host.native.host_reload(self.creator, self.handle, layer.encode())
        self.handle = ctypes.c_void_p(made)
        if not made:
            raise HostError(self.host.log())

    def clone(self) -> Plugin:
        """A copy."""
        return Plugin(self.host, self.creator, self.host.native.host_clone(self.handle))

    def run(
        self, inputs: Sequence[Array], *, tactic: int = 0, workspace: int | None = None, moved: Mapping[int, int] | None = None
    ) -> list[Array]:
        """One inference. Outputs are filled with a pattern before. `moved`: bytes by which inputs lie behind an aligned address."""
        arrays = [aligned(a, (moved or {}).get(i, 0)) for i, a in enumerate(inputs)]
        given = [described(a.shape, a.dtype) for a in arrays]
        outputs = [aligned(np.full(shape, 77).astype(dtype)) for shape, dtype in self.infer(given)]
        tensors = [*given, *(described(a.shape, a.dtype) for a in outputs)]
        status = self.host.native.host_run(
            self.handle,
            tactic,
            ctypes.c_int64(self.workspace if workspace is None else workspace),
            len(arrays),
            (_Tensor * len(tensors))(*tensors),
            (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)),
            len(outputs),
            (ctypes.c_void_p * len(outputs))(*(a.ctypes.data for a in outputs)),
        )
        self.check("run", status)
        return outputs


def aligned(array: Array, moved: int = 0) -> Array:
    """A copy that begins at a multiple of 256 bytes, as TensorRT's tensors do, or so many bytes behind one, as views of them may."""
    room = np.zeros(array.nbytes + 256 + moved, np.uint8)
    begin = -room.ctypes.data % 256 + moved
    copy = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
