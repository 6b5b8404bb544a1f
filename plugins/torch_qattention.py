"""`torch.ops.vditc.qattention`: see `torch_ops`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from vditc.plugins.interface import QAttentionProblem, QAttentionTensors, filled
from vditc.plugins.library import KernelError
from vditc.plugins.torch_launch import TYPES, Check, Launch


def qattention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None, smooth_k: bool = True) -> Tensor:
    """softmax(q k^T scale + mask) v with INT8 scores (`vditc.QAttention`): q [B, H, queries, D], k, v [B, H, keys, D], fp16 or bf16.

    mask: of the same type, [B or 1, 1, 1, keys]; scale: D^-0.5 by default. Strides are free but for the last axis. The output lies tokens
    before heads, so that `y.transpose(1, 2).flatten(2)` is no copy.
    """
    y: Tensor = _qattention(q, k, v, mask, float(q.shape[-1] ** -0.5 if scale is None else scale), smooth_k)
    return y


@torch.library.custom_op("vditc::qattention", mutates_args=())
def _qattention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, smooth_k: bool) -> Tensor:
    check = Check("qattention", q)
    if q.ndim != 4 or k.ndim != 4:
        raise KernelError(f"qattention: q {list(q.shape)}, k {list(k.shape)}; wanted [batch, heads, tokens, channels]")
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    check.choice("q's type", q.dtype, (torch.float16, torch.bfloat16))
    check.tensor("k", k, q.dtype, (batch, heads, keys, width))
    check.tensor("v", v, q.dtype, (batch, heads, keys, width))
    if mask is not None:
        check.tensor("mask", mask, q.dtype, (batch if mask.shape[0] != 1 else 1, 1, 1, keys))
        mask = mask.contiguous()
    y = _attention_output(q)
    if y.numel() == 0:
        return y
    problem: dict[str, Any] = {
        "batch": batch,
        "heads": heads,
        "head_dim": width,
        "queries": queries,
        "keys": keys,
        "type": TYPES[q.dtype],
        "scale": scale,
    }
    problem |= {"smooth_k": int(smooth_k), "mask": int(mask is not None), "mask_stride": keys if mask is not None and len(mask) > 1 else 0}
    with Launch(q.device) as launch:
        parts = {name: launch.strided(part) for name, part in (("q", q), ("k", k), ("v", v), ("y", y))}
        for name, part in parts.items():
            problem[f"{name}_strides"] = (part.stride(0), part.stride(2), part.stride(1))
        struct = filled(QAttentionProblem, problem)
        size = ctypes.c_size_t()
        launch.library.call("vditc_qattention_workspace", ctypes.byref(struct), ctypes.byref(size))
        scratch = torch.empty(size.value, dtype=torch.uint8, device=q.device)
        tensors = filled(QAttentionTensors, {name: part.data_ptr() for name, part in parts.items()})
        if mask is not None:
            tensors.mask = launch.tensor(mask).data_ptr()
        launch("vditc_qattention_launch", struct, tensors, ctypes.c_void_p(scratch.data_ptr()), size)
    return y


@_qattention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, smooth_k: bool) -> Tensor:
    return _attention_output(q)


def _attention_output(q: Tensor) -> Tensor:
    """[B, H, queries, D], tokens before heads in memory."""
    batch, heads, queries, width = q.shape
    return q.new_empty((batch, queries, heads, width)).transpose(1, 2)
