"""The kernel of `vditc.QuantizeToken` from Python: the real library's on addresses of device memory, the emulated one's on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vditc.plugins.interface import QuantizeTokenProblem, QuantizeTokenTensors
from vditc.plugins.library import Library, Rows, zeroed
from vditc.plugins.plugin_op import FLOATS
from vditc.plugins.quantize_token.op import NORMS, QuantizeToken

Array = npt.NDArray[Any]
DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
ACTIVATIONS = ("none", "gelu", "gelu_tanh")  # by vditc_activation
MAX_K = 131072  # channels; sums of codes of more are no exact float32 numbers
BROADCAST = ("gain", "shift", "gate", "residual")
_FLAGS = ("packed", "clip", "gated", "weight", "bias", "gain", "shift", "center", "balance", "total", "shares")
_ALIGNED = 16
Problem = QuantizeTokenProblem


def problem(op: QuantizeToken, *, m: int, k: int, dtype: str, rows: Mapping[str, Rows]) -> QuantizeTokenProblem:
    """For m tokens of k channels; `dtype` of x as `plugin_op.FLOATS` names them; `rows` of those of `BROADCAST` that the operator has."""
    made: QuantizeTokenProblem = zeroed(QuantizeTokenProblem)
    made.k, made.m, made.input, made.bits = k, m, tuple(FLOATS).index(dtype), op.bits
    made.given = op.scaled == "given"
    made.activation, made.norm, made.epsilon = ACTIVATIONS.index(op.activation), NORMS.index(op.norm), op.epsilon
    made.rotation = op.rotation
    for name in _FLAGS:
        setattr(made, name, int(getattr(op, name)))
    for name, found in rows.items():
        setattr(made, f"{name}_rows", found)
    return made


def launch(library: Library, made: QuantizeTokenProblem, addresses: Mapping[str, int], stream: int = 0) -> None:
    """Enqueue one call. `addresses` of the operator's inputs and outputs by their names. KernelError says what is wrong with them."""
    tensors = QuantizeTokenTensors()
    for name, address in addresses.items():
        if name.startswith("share"):
            tensors.share[int(name.removeprefix("share"))] = address
        else:
            setattr(tensors, name, address)
    library.call("vditc_quantize_token_launch", ctypes.byref(made), ctypes.byref(tensors), ctypes.c_void_p(stream))


def rows_of(shape: tuple[int, ...], x: tuple[int, ...]) -> Rows:
    """Which row of a broadcast tensor each token reads. ValueError where no `vditc_rows` says it: axes that differ lie next to each other.

    Both shapes are [..., K]; one of fewer axes is meant with 1 in front.
    """
    axes = [(1,) * (len(x) - len(shape)) + shape, x]
    own, tokens = axes[0][:-1], axes[1][:-1]
    if axes[0][-1] != x[-1] or len(own) != len(tokens) or any(a not in (1, b) for a, b in zip(own, tokens, strict=True)):
        raise ValueError(f"{list(shape)}; wanted a shape that broadcasts to {list(x)} and has its channels")
    spanned = [i for i, size in enumerate(own) if size > 1]
    first, last = (spanned[0], spanned[-1]) if spanned else (len(own), len(own) - 1)
    if any(own[i] != tokens[i] for i in range(first, last + 1)):
        raise ValueError(f"{list(shape)} for tokens {list(x)}; wanted axes next to each other in which it differs")
    inner = int(np.prod(tokens[last + 1 :], dtype=np.int64)) if spanned else 1
    return Rows(inner, int(np.prod(own, dtype=np.int64)))


def run(library: Library, op: QuantizeToken, given: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by name, from inputs by name; `library` is the emulated one, which computes on host memory."""
    x = given["x"]
    *leading, k = x.shape
    inputs = {name: _aligned(given[name]) for name in op.inputs}
    shapes = {"codes": (*leading, k // 2 if op.packed else k), "sum": x.shape}
    kinds = {"codes": np.dtype(np.int8), "sum": x.dtype}
    outputs = {name: empty(shapes.get(name, (*leading, 1)), kinds.get(name, np.dtype(np.float32))) for name in op.outputs}
    rows = {name: rows_of(given[name].shape, x.shape) for name in BROADCAST if name in op.inputs}
    dtype = next(name for name, found in DTYPES.items() if found == x.dtype)
    made = problem(op, m=int(np.prod(leading, dtype=np.int64)), k=k, dtype=dtype, rows=rows)
    launch(library, made, {name: array.ctypes.data for name, array in (inputs | outputs).items()})
    return outputs


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array at an address that kernels take."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.empty(size + _ALIGNED, np.uint8)
    first = -room.ctypes.data % _ALIGNED
    made: Array = room[first : first + size].view(dtype).reshape(shape)
    return made


def _aligned(array: Array) -> Array:
    made = empty(array.shape, array.dtype)
    made[...] = array
    return made
