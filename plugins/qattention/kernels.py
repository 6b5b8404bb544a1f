"""`vditc.QAttention` by the plugin library (`native/vditc_plugins.h`), on numpy arrays: for the emulated one, in the host's memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.plugins.interface import QAttentionKeys, QAttentionProblem, QAttentionTensors
from vditc.plugins.library import Library, zeroed
from vditc.plugins.qattention.op import QAttention

Array = npt.NDArray[Any]
_TYPES = {"float16": 1, "bfloat16": 2}  # vditc_float_type
_Strides = ctypes.c_int64 * 3


def problem_of(op: QAttention, q: Array, k: Array, v: Array, y: Array, mask: Array | None = None) -> QAttentionProblem:
    """The problem that these arrays are of. Their axes are the operator's; the last one lies without gaps, the others as they like."""
    made: QAttentionProblem = zeroed(QAttentionProblem)
    tokens = 1 if op.q_by_token else 2
    made.batch, made.heads, made.head_dim = q.shape[0], q.shape[3 - tokens], q.shape[-1]
    made.queries, made.keys = q.shape[tokens], k.shape[1 if op.k_by_token else 2]
    made.type, made.smooth_k, made.mask, made.scale = _TYPES[q.dtype.name], op.smooth_k, op.mask, op.scale
    for name, array in (("q", q), ("k", k), ("v", v), ("y", y)):
        by_token = getattr(op, f"{name}_by_token")
        batch, first, second, _ = (n // array.itemsize for n in array.strides)
        setattr(made, f"{name}_strides", _Strides(batch, *((first, second) if by_token else (second, first))))
    if mask is not None:
        made.mask_stride = mask.strides[0] // mask.itemsize if mask.shape[0] > 1 else 0
    return made


def qattention(library: Library, op: QAttention, *inputs: Array, y: Array | None = None) -> Array:
    """y from q, k, v and, when op.mask, the mask. `y`: an array to write to. KernelError when the library refuses."""
    q = inputs[0]
    if y is None:
        turned = op.q_by_token != op.y_by_token
        y = np.empty((q.shape[0], q.shape[2], q.shape[1], q.shape[3]) if turned else q.shape, q.dtype)
    problem, tensors = _given(op, inputs, y)
    workspace = _workspace(library, problem)
    library.call(
        "vditc_qattention_launch",
        ctypes.byref(problem),
        ctypes.byref(tensors),
        ctypes.c_void_p(workspace.ctypes.data),
        ctypes.c_size_t(workspace.nbytes),
        None,
    )
    return y


def products(library: Library, op: QAttention, *inputs: Array) -> tuple[Array, Array, Array]:
    """The kernel's integers [B, H, queries, keys], its codes of k [B, H, keys, width] and their scales [B, H, keys, 1]."""
    q = inputs[0]
    problem, tensors = _given(op, inputs, q if op.q_by_token == op.y_by_token else q.swapaxes(1, 2))
    pairs = (problem.batch, problem.heads)
    found = np.empty((*pairs, problem.queries, problem.keys), np.int32)
    workspace, keys = _workspace(library, problem), QAttentionKeys()
    library.call(
        "vditc_qattention_scores",
        ctypes.byref(problem),
        ctypes.byref(tensors),
        ctypes.c_void_p(found.ctypes.data),
        ctypes.byref(keys),
        ctypes.c_void_p(workspace.ctypes.data),
        ctypes.c_size_t(workspace.nbytes),
        None,
    )
    codes = workspace[keys.codes :].view(np.int8)[: np.prod(pairs) * problem.keys * keys.width]
    scale = workspace[keys.scale :][: 4 * np.prod(pairs) * keys.row].view(np.float32).reshape(*pairs, keys.row)
    return found, codes.reshape(*pairs, problem.keys, keys.width), scale[..., : problem.keys, None]


def _given(op: QAttention, inputs: tuple[Array, ...], y: Array) -> tuple[QAttentionProblem, QAttentionTensors]:
    mask = inputs[3] if op.mask else None
    q, k, v = inputs[:3]
    problem = problem_of(op, q, k, v, y, mask)
    addresses = [a.ctypes.data for a in (q, k, v)]
    return problem, QAttentionTensors(*addresses, None if mask is None else mask.ctypes.data, y.ctypes.data)


def _workspace(library: Library, problem: QAttentionProblem) -> npt.NDArray[np.uint8]:
    """As many bytes as the library wants, which nobody has set to 0."""
    size = ctypes.c_size_t()
    library.call("vditc_qattention_workspace", ctypes.byref(problem), ctypes.byref(size))
    return np.full(size.value, 0xA5, np.uint8)
