"""A calibrated linear layer as a torch module: its weight packed once, its tokens quantized and multiplied by the kernels (`torch_ops`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vditc.calibration import LayerCalibration
from vditc.errors import InputError
from vditc.hadamard import factors
from vditc.numerics import Granularity
from vditc.plugins.packing import pack
from vditc.plugins.torch_ops import Tokens, qlinear, quantize_token
from vditc.scheme import QWeight, Scheme

Array = npt.NDArray[Any]
IN_KERNEL = 256  # the rotation that QuantizeToken has; others are products in front of it
_LOW_RANKS = (16, 32, 48, 64)


class QuantizedLinear(torch.nn.Module):
    """y [..., N] = x [..., K] W^T + bias as a calibration says: integer weights of 8, 4 or 3 bits, tokens quantized as they come.

        layer = QuantizedLinear(calibration.layers["blocks.0.attn1.to_q"], bias).cuda()
        y = layer(x)                                         # quantizes and multiplies

        tokens = q.quantize(x)                               # what reads one tensor shares its codes
        y_q, y_k, y_v = (one.multiply(tokens, q.project(x)) for one in (q, k, v))

    Zero points, shift, balance, rotation, low-rank branch, bias correction and the estimate of Q-VDiT are computed. `step` picks the row of
    tables of steps. `packed`: codes of 4 bits two a byte between the kernels, which GPUs of sm_80 to sm_89 multiply at twice the rate.
    InputError for a layer that no kernel computes.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        layer: LayerCalibration,
        bias: Array | Tensor | None = None,
        *,
        name: str = "layer",
        dtype: torch.dtype = torch.bfloat16,
        activation: str = "none",
        packed: bool = False,
        tactic: str = "any",
    ) -> None:
        """`bias` [N] of the checkpoint; `activation`: none, gelu or gelu_tanh behind it; `dtype` of y; `name` for errors."""
        super().__init__()
        scheme, t, c = layer.scheme, layer.transform.explicit, layer.correction
        a = _check(scheme, name)
        held = layer.weight.read()
        self.out_features, self.in_features = held.codes.shape
        self.bits, self.activation_bits = held.spec.qtype.bits if held.spec.qtype.bits in (8, 4, 3) else 8, a.qtype.bits
        self.activation, self.dtype, self.packed, self.tactic = activation, dtype, packed, tactic
        if packed and (a.qtype.bits > 4 or self.in_features % 32):
            raise _bad(
                name, f"packed codes of {a.qtype.bits} bits, {self.in_features} inputs", "4 or 3 bits and a multiple of 32", "packed=False"
            )
        self.order, self.frames_of_clip = c.order, 0 if c.frames is None else len(c.frames)
        self.rotation = t.rotation or 0
        if self.rotation not in (0, IN_KERNEL) and factors(self.rotation) is None:
            raise _bad(name, f"a rotation of {self.rotation} channels", "an order that vditc.hadamard knows", "calibrate again")

        float_bias = np.zeros(self.out_features, np.float32) if bias is None else np.array(torch.as_tensor(bias).float().cpu())
        float_bias = float_bias if layer.output is None else layer.output.bias(float_bias)
        float_bias = float_bias if c.bias is None else float_bias + c.bias
        has_bias = bias is not None or c.bias is not None
        scale = np.ascontiguousarray(np.broadcast_to(held.scale.astype(np.float32), (self.out_features,)))
        right = [-scale * held.zero_point] if held.zero_point is not None else []
        right += [c.beta] if c.beta is not None else []
        down, up = _branch(t.down, t.up, name)
        vector = torch.float16 if dtype is torch.float32 else dtype
        tables = {
            "weight": pack(held.codes, self.bits),
            "weight_scale": scale,
            "bias": float_bias if has_bias else None,
            "right": np.stack(right).astype(np.float32) if right else None,
            "alpha": None if c.alpha is None else c.alpha[None],
            "frames": c.frames,
            "center": t.shift,
            "balance": t.balance,
            "scales": None if layer.activation_scale is None else layer.activation_scale.astype(np.float32).reshape(-1),
            "clips": layer.activation_clip,
        }
        for part, array in tables.items():
            self.register_buffer(part, None if array is None else torch.from_numpy(np.array(array)))
        self.register_buffer("down", None if down is None else torch.from_numpy(down).to(torch.float32))
        self.register_buffer("up", None if up is None else torch.from_numpy(up).to(vector))
        mixed = factors(self.rotation) if self.rotation and (self.rotation != IN_KERNEL or down is not None) else None
        for part, matrix in zip(("rotation_left", "rotation_right"), mixed or (None, None), strict=True):
            self.register_buffer(part, None if matrix is None else torch.from_numpy(matrix))
        self.zero_point = held.zero_point is not None

    @classmethod
    def of_weight(cls, weight: QWeight, scheme: Scheme, bias: Array | Tensor | None = None, **options: Any) -> QuantizedLinear:
        """Of a quantized weight alone; `options` as of the class."""
        return cls(LayerCalibration(role="", scheme=scheme, weight=weight), bias, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As `.to`, `.cuda` and `.half` call it: tensors follow to another device; types are the kernels' and stay."""
        moved: Self = super()._apply(lambda t: t.to(fn(t.new_empty(0)).device), recurse)  # type: ignore[no-untyped-call]
        return moved

    def extra_repr(self) -> str:
        """As torch.nn.Linear says it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, W{self.bits}A{self.activation_bits}"

    def forward(
        self, x: Tensor, *, step: int | Tensor | None = None, clips: int = 1, gate: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """y, or residual + gate * y, which are of type `dtype` and broadcast to it.

        `step`: of the schedule, where a table has one row for each. `clips`: how many the rows of x are of, where every frame has a factor.
        """
        return self.multiply(self.quantize(x, step=step), self.project(x), clips=clips, gate=gate, residual=residual)

    def quantize(self, x: Tensor, *, step: int | Tensor | None = None) -> Tokens:
        """The codes of x that this layer, and those that share its input's transform, multiply."""
        own_rotation = self.rotation not in (0, IN_KERNEL)
        return quantize_token(
            self._transformed(x) if own_rotation else x,
            bits=self.activation_bits,
            packed=self.packed,
            center=None if own_rotation else self._buffers["center"],
            balance=None if own_rotation else self._buffers["balance"],
            rotation=0 if own_rotation else self.rotation,
            clip=self._row("clips", step),
            given=self._row("scales", step),
            total=self.zero_point,
            alpha=self._buffers["alpha"],
        )

    def project(self, x: Tensor) -> Tensor | None:
        """x times the branch's first factor; None without a branch."""
        down, up = self._buffers["down"], self._buffers["up"]
        return None if down is None or up is None else (self._transformed(x) @ down.T).to(up.dtype)

    def multiply(
        self,
        tokens: Tokens,
        down: Tensor | None = None,
        *,
        clips: int = 1,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """y of codes that `quantize` gave, and of what `project` gave."""
        left = [tokens.total] if self.zero_point and tokens.total is not None else []
        if tokens.shares:
            left.append(self._by_frame(tokens.shares[0], clips))
        return qlinear(
            tokens.codes,
            tokens.scale,
            self.weight,
            self.weight_scale,
            bits=self.bits,
            activation_bits=self.activation_bits,
            packed=self.packed,
            left=torch.cat(left, -1) if left else None,
            right=self._buffers["right"],
            down=down,
            up=self._buffers["up"],
            bias=self._buffers["bias"],
            activation=self.activation,
            gate=gate,
            residual=residual,
            dtype=self.dtype,
            tactic=self.tactic,
        )

    def _transformed(self, x: Tensor) -> Tensor:
        """((x - shift) * balance) Q in float32."""
        x = x.float()
        center, balance, left, right = (self._buffers[name] for name in ("center", "balance", "rotation_left", "rotation_right"))
        x = x if center is None else x - center
        x = x if balance is None else x * balance
        if left is None or right is None:
            return x
        return (left.T @ (torch.unflatten(x, -1, (-1, len(left), len(right))) @ right)).flatten(-3)

    def _row(self, table: str, step: int | Tensor | None) -> Tensor | None:
        found = self._buffers[table]
        if found is None or len(found) == 1:
            return found
        if step is None:
            raise InputError(found="no step", wanted=f"one of {len(found)}", where=f"the layer's {table}", fix="call the layer with step=")
        return found.index_select(0, torch.as_tensor(step, device=found.device).reshape(1))

    def _by_frame(self, share: Tensor, clips: int) -> Tensor:
        frames = self._buffers["frames"]
        if frames is None or self.order is None:
            return share
        rows = share.numel()
        if rows % (clips * len(frames)):
            raise InputError(
                found=f"{rows} rows of {clips} clips",
                wanted=f"a multiple of {len(frames)} frames a clip",
                where="the layer",
                fix="say clips=",
            )
        spread: Tensor = share.reshape(self.order.shape(clips, len(frames))) * self.order.spread(frames)
        return spread.reshape(share.shape)


def _check(scheme: Scheme, name: str) -> Any:
    """The spec of the activations, which a kernel computes."""
    w, a = scheme.weight, scheme.activation
    if a is None or not (a.qtype.integer and w.qtype.integer):
        raise _bad(name, f"scheme {scheme}", "integer weights and activations", "leave the layer to torch")
    if w.granularity is Granularity.PER_GROUP:
        raise _bad(name, f"weight {w}", "a scale for each output, or one", "calibrate with per_channel weights")
    if a.dynamic and a.granularity is not Granularity.PER_TOKEN:
        raise _bad(name, f"activation {a}", "a scale for each token, or a static one", "calibrate with per_token activations")
    return a


def _branch(down: Array | None, up: Array | None, name: str) -> tuple[Array | None, Array | None]:
    """Factors [R, K], [N, R] as the kernels take them, [R', K], [R', N]: R' a multiple of 16, filled up with zeros."""
    if down is None or up is None:
        return None, None
    rank = next((r for r in _LOW_RANKS if r >= len(down)), None)
    if rank is None:
        raise _bad(name, f"a branch of rank {len(down)}", f"at most {_LOW_RANKS[-1]}", "calibrate with a lower rank")
    more = ((0, rank - len(down)), (0, 0))
    return np.pad(down, more), np.ascontiguousarray(np.pad(up.T, more))


def _bad(name: str, found: str, wanted: str, fix: str) -> InputError:
    return InputError(found=found, wanted=wanted, where=name, fix=fix)
