"""`torch.ops.vditc.qlinear`: see `torch_ops`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from vditc.plugins.interface import ACTIVATIONS, QLinearProblem, QLinearTensors, filled, workspace
from vditc.plugins.library import KernelError
from vditc.plugins.packing import LAYOUT, packed_bytes
from vditc.plugins.torch_launch import TYPES, Check, Launch


def qlinear(
    x: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    bits: int,
    unsigned: bool = False,
    activation_bits: int = 8,
    packed: bool = False,
    left: Tensor | None = None,
    right: Tensor | None = None,
    down: Tensor | None = None,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    tactic: str = "any",
) -> Tensor:
    """y [..., N] of `dtype` from codes x int8 [..., K] (packed [..., K / 2]) and packed weights (`vditc.QLinear`; docs/plugins/qlinear.md).

    weight_scale is float32 [N], or [K / 128, N] for groups of inputs. gate and residual broadcast to y. `tactic`: one by its
    name, else the library chooses.
    """
    parts = (left, right, down, up, bias, gate, residual)
    y: Tensor = _qlinear(x, scale, weight, weight_scale, *parts, bits, unsigned, activation_bits, packed, activation, dtype, tactic)
    return y


@torch.library.custom_op("vditc::qlinear", mutates_args=())
def _qlinear(
    x: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    bits: int,
    unsigned: bool,
    activation_bits: int,
    packed: bool,
    activation: str,
    dtype: torch.dtype,
    tactic: str,
) -> Tensor:
    check = Check("qlinear", x)
    k, n, leading = x.shape[-1] * (2 if packed else 1), weight_scale.shape[-1], x.shape[:-1]
    m = leading.numel()
    check.tensor("x", x, torch.int8)
    check.choice("dtype", dtype, TYPES)
    check.choice("activation", activation, ACTIVATIONS)
    check.choice("bits", bits, (8, 4, 3))
    check.tensor("weight", weight, torch.int8, (packed_bytes(n, k, bits),))
    grouped = weight_scale.ndim == 2
    check.tensor("weight_scale", weight_scale, torch.float32, (k // 128, n) if grouped else (n,))
    check.tensor("scale", scale, torch.float32, None if scale.numel() == 1 else (*leading, 1))
    for pair, names in (((left, right), "left and right"), ((down, up), "down and up"), ((gate, residual), "gate and residual")):
        if (pair[0] is None) != (pair[1] is None):
            raise KernelError(f"qlinear: one of {names}; wanted both or none")
    rank = 0 if left is None else left.shape[-1]
    low_rank = 0 if down is None else down.shape[-1]
    branch = torch.float16 if dtype is torch.float32 else dtype
    check.optional("left", left, torch.float32, (*leading, rank))
    check.optional("right", right, torch.float32, (rank, n))
    check.optional("down", down, branch, (*leading, low_rank))
    check.optional("up", up, branch, (low_rank, n))
    check.optional("bias", bias, torch.float32, (n,))
    rows = {
        f"{name}_rows": check.broadcast(name, part, dtype, (*leading, n))
        for name, part in (("gate", gate), ("residual", residual))
        if part is not None
    }
    problem = filled(
        QLinearProblem,
        {
            "n": n,
            "k": k,
            "m": m,
            "bits": bits,
            "unsigned_weights": int(unsigned),
            "activation_bits": activation_bits,
            "packed": int(packed),
            "layout": LAYOUT,
            "group": 128 if grouped else 0,
            "rank": rank,
            "low_rank": low_rank,
            "bias": int(bias is not None),
            "activation": ACTIVATIONS[activation],
            "gated": int(gate is not None),
            "output": TYPES[dtype],
            "scale_per_row": int(scale.numel() != 1 or m == 1),
            **rows,
        },
    )
    y = x.new_empty((*leading, n), dtype=dtype)
    if m == 0:
        return y
    given = {"x": x, "scale": scale, "weight": weight, "weight_scale": weight_scale, "left": left, "right": right, "down": down, "up": up}
    with Launch(x.device) as launch:
        number = 0 if tactic == "any" else launch.tactic(tactic)
        size = workspace(launch.library, problem, number, launch.library.sm)
        tensors = launch.tensors(QLinearTensors, {**given, "bias": bias, "gate": gate, "residual": residual, "y": y})
        scratch = torch.empty(size, dtype=torch.uint8, device=x.device)
        launch("vditc_qlinear_launch", problem, tensors, ctypes.c_int32(number), ctypes.c_void_p(scratch.data_ptr()), ctypes.c_size_t(size))
    return y


@_qlinear.register_fake
def _(
    x: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    left: Any,
    right: Any,
    down: Any,
    up: Any,
    bias: Any,
    gate: Any,
    residual: Any,
    bits: int,
    unsigned: bool,
    activation_bits: int,
    packed: bool,
    activation: str,
    dtype: torch.dtype,
    tactic: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight_scale.shape[-1]), dtype=dtype)
