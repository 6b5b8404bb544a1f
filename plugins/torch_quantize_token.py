"""`torch.ops.vditc.quantize_token`: see `torch_ops`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from vditc.plugins.interface import ACTIVATIONS, NORMS, QuantizeTokenProblem, QuantizeTokenTensors, filled
from vditc.plugins.library import KernelError
from vditc.plugins.torch_launch import TYPES, Check, Launch

MAX_SHARES = 4


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What `quantize_token` gave: codes int8 [..., K] (packed [..., K / 2]); float32 [..., 1]: scale, or the given one, total, shares."""

    codes: Tensor
    scale: Tensor
    total: Tensor | None = None
    shares: tuple[Tensor, ...] = ()
    sum: Tensor | None = None  # residual + gate * x, of the type of x


def quantize_token(
    x: Tensor,
    *,
    bits: int = 8,
    packed: bool = False,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    norm: str = "none",
    epsilon: float = 1e-6,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    center: Tensor | None = None,
    balance: Tensor | None = None,
    rotation: int = 0,
    clip: Tensor | None = None,
    given: Tensor | None = None,
    total: bool = False,
    alpha: Tensor | None = None,
) -> Tokens:
    """Codes and scales of the tokens of x [..., K], fp16, bf16 or fp32 (`vditc.QuantizeToken`; docs/plugins/quantize_token.md).

    Tensors that are there are computed with; all but x, gate and residual are float32. gain, shift, gate and residual broadcast to x.
    """
    parts = (gate, residual, weight, bias, gain, shift, center, balance, clip, given, alpha)
    out = list(_quantize_token(x, *parts, bits, packed, activation, norm, epsilon if norm != "none" else 0.0, rotation, total))
    codes = out.pop(0)
    scale = out.pop(0) if given is None else given
    sums = out.pop(0) if total else None
    after = out.pop() if gate is not None else None
    return Tokens(codes, scale, sums, tuple(out), after)


@torch.library.custom_op("vditc::quantize_token", mutates_args=())
def _quantize_token(
    x: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    center: Tensor | None,
    balance: Tensor | None,
    clip: Tensor | None,
    given: Tensor | None,
    alpha: Tensor | None,
    bits: int,
    packed: bool,
    activation: str,
    norm: str,
    epsilon: float,
    rotation: int,
    total: bool,
) -> list[Tensor]:
    check = Check("quantize_token", x)
    k = x.shape[-1]
    check.choice("x's type", x.dtype, TYPES)
    check.choice("activation", activation, ACTIVATIONS)
    check.choice("norm", norm, NORMS)
    if (gate is None) != (residual is None):
        raise KernelError("quantize_token: one of gate and residual; wanted both or none")
    for name, part in (("weight", weight), ("bias", bias), ("center", center), ("balance", balance)):
        check.optional(name, part, torch.float32, (k,))
    shares = 0 if alpha is None else alpha.shape[0]
    check.optional("alpha", alpha, torch.float32, (shares, k))
    check.choice("shares", shares, range(MAX_SHARES + 1))
    for name, part in (("clip", clip), ("given", given)):
        if part is not None and part.numel() != 1:
            raise KernelError(f"quantize_token: {name} {list(part.shape)}; wanted one element")
        check.optional(name, part, torch.float32, None)
    spread = {"gain": (gain, torch.float32), "shift": (shift, torch.float32), "gate": (gate, x.dtype), "residual": (residual, x.dtype)}
    rows = {f"{name}_rows": check.broadcast(name, part, kind, x.shape) for name, (part, kind) in spread.items() if part is not None}
    flags = {"clip": clip, "weight": weight, "bias": bias, "gain": gain, "shift": shift, "center": center, "balance": balance}
    problem = filled(
        QuantizeTokenProblem,
        {
            "k": k,
            "m": x.shape[:-1].numel(),
            "input": TYPES[x.dtype],
            "bits": bits,
            "packed": int(packed),
            "given": int(given is not None),
            "gated": int(gate is not None),
            "activation": ACTIVATIONS[activation],
            "norm": NORMS[norm],
            "epsilon": epsilon,
            "rotation": rotation,
            "total": int(total),
            "shares": shares,
            **{name: int(part is not None) for name, part in flags.items()},
            **rows,
        },
    )
    out = _token_outputs(x, gate is not None, given is None, packed, total, shares)
    if x.numel() == 0:
        return out
    left = list(out)
    named: dict[str, Any] = {"codes": left.pop(0), "scale": left.pop(0) if given is None else None, "total": left.pop(0) if total else None}
    named["sum"] = left.pop() if gate is not None else None
    with Launch(x.device) as launch:
        tensors = launch.tensors(
            QuantizeTokenTensors, {"x": x, "gate": gate, "residual": residual, "given": given, "alpha": alpha, **flags, **named}
        )
        for r, part in enumerate(left):
            tensors.share[r] = part.data_ptr()
        launch("vditc_quantize_token_launch", problem, tensors)
    return out


@_quantize_token.register_fake
def _(
    x: Tensor,
    gate: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    gain: Any,
    shift: Any,
    center: Any,
    balance: Any,
    clip: Any,
    given: Any,
    alpha: Tensor | None,
    bits: int,
    packed: bool,
    activation: str,
    norm: str,
    epsilon: float,
    rotation: int,
    total: bool,
) -> list[Tensor]:
    return _token_outputs(x, gate is not None, given is None, packed, total, 0 if alpha is None else alpha.shape[0])


def _token_outputs(x: Tensor, gated: bool, scaled: bool, packed: bool, total: bool, shares: int) -> list[Tensor]:
    """codes, scale, total, shares, sum: those that there are."""
    codes = x.new_empty((*x.shape[:-1], x.shape[-1] // 2 if packed else x.shape[-1]), dtype=torch.int8)
    numbers = [x.new_empty((*x.shape[:-1], 1), dtype=torch.float32) for _ in range(scaled + total + shares)]
    return [codes, *numbers, *([x.new_empty(x.shape)] if gated else [])]
