"""The kernels as custom operators of PyTorch: `torch.ops.vditc.qlinear`, `quantize_token`, `qattention`.

On CUDA tensors they run by libvditc_plugins.so, on the current stream and with workspace of torch's allocator. On CPU tensors they run by
the same kernels' emulation, many thousand times slower: for tests. They are known to torch.compile and to fake tensors, and have no
gradients. A tensor that is not contiguous, or not at a multiple of 16 bytes, is copied first. Everything that is wrong with the inputs is
a KernelError.

Nothing of it is compiled against torch: it takes torch and the library (`use_library`, or where `vditc plugins build` puts it).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vditc.errors import InputError
from vditc.plugins.emulated import emulated_library
from vditc.plugins.interface import (
    ACTIVATIONS,
    FLOATS,
    NORMS,
    QAttentionProblem,
    QAttentionTensors,
    QLinearProblem,
    QLinearTensors,
    QuantizeTokenProblem,
    QuantizeTokenTensors,
    filled,
    tactics,
    workspace,
)
from vditc.plugins.library import KernelError, Library
from vditc.plugins.packing import LAYOUT, packed_bytes

TYPES = {torch.float32: FLOATS["fp32"], torch.float16: FLOATS["fp16"], torch.bfloat16: FLOATS["bf16"]}
MAX_SHARES = 4
_ALIGNED = 16
_chosen: list[Path] = []


def use_library(path: Path) -> None:
    """Run CUDA tensors by this library from now on. InputError when it is none."""
    Library(path)
    _chosen[:] = [path]
    _real.cache_clear()


def library_of(device: torch.device) -> Library:
    """Who computes tensors of a device."""
    if device.type not in ("cuda", "cpu"):
        raise KernelError(f"tensors on {device}; wanted cuda, or cpu for the emulated library")
    return _real() if device.type == "cuda" else _emulated()


@functools.cache
def _real() -> Library:
    from vditc.plugins.build import library_here

    return Library(_chosen[0] if _chosen else library_here(int((torch.version.cuda or "13").partition(".")[0])))


@functools.cache
def _emulated() -> Library:
    return Library(emulated_library())


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


def qattention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None, smooth_k: bool = True) -> Tensor:
    """softmax(q k^T scale + mask) v with INT8 scores (`vditc.QAttention`): q [B, H, queries, D], k, v [B, H, keys, D], fp16 or bf16.

    mask: of the same type, [B or 1, 1, 1, keys]; scale: D^-0.5 by default. Strides are free but for the last axis. The output lies tokens
    before heads, so that `y.transpose(1, 2).flatten(2)` is no copy.
    """
    y: Tensor = _qattention(q, k, v, mask, float(q.shape[-1] ** -0.5 if scale is None else scale), smooth_k)
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
    check = _Check("qlinear", x)
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
    with _Launch(x.device) as launch:
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
    check = _Check("quantize_token", x)
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
    with _Launch(x.device) as launch:
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


@torch.library.custom_op("vditc::qattention", mutates_args=())
def _qattention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, smooth_k: bool) -> Tensor:
    check = _Check("qattention", q)
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
    with _Launch(q.device) as launch:
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


class _Check:
    """What an operator wants of its inputs, so that no kernel reads beside a tensor."""

    def __init__(self, where: str, x: Tensor) -> None:
        self.where, self.device = where, x.device

    def tensor(self, name: str, found: Tensor, dtype: torch.dtype, shape: Sequence[int] | None = None) -> None:
        """Of this type and shape, on the device of x."""
        if found.dtype != dtype or found.device != self.device or (shape is not None and tuple(found.shape) != tuple(shape)):
            wanted = f"{dtype}{'' if shape is None else list(shape)} on {self.device}"
            raise KernelError(f"{self.where}: {name} is {found.dtype}{list(found.shape)} on {found.device}; wanted {wanted}")

    def optional(self, name: str, found: Tensor | None, dtype: torch.dtype, shape: Sequence[int] | None) -> None:
        """The same, if it is there."""
        if found is not None:
            self.tensor(name, found, dtype, shape)

    def choice(self, name: str, found: Any, wanted: Any) -> None:
        """One of `wanted`."""
        if found not in wanted:
            raise KernelError(f"{self.where}: {name} {found!r}; wanted one of {', '.join(map(str, wanted))}")

    def broadcast(self, name: str, found: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> tuple[int, int]:
        """Which row of it a row of `shape` reads: (inner, count) of `vditc_rows`."""
        self.tensor(name, found, dtype)
        own = (1,) * (len(shape) - found.ndim) + tuple(found.shape)
        spanned = [i for i, size in enumerate(own[:-1]) if size > 1]
        first, last = (spanned[0], spanned[-1]) if spanned else (0, -1)
        fits = len(own) == len(shape) and own[-1] == shape[-1] and all(size in (1, to) for size, to in zip(own, shape, strict=True))
        if not fits or any(own[i] != shape[i] for i in range(first, last + 1)):
            wanted = f"a shape that broadcasts to {list(shape)}, whose axes next to each other differ: expand it and make it contiguous"
            raise KernelError(f"{self.where}: {name} is {list(found.shape)}; wanted {wanted}")
        inner = torch.Size(shape[last + 1 : -1]).numel() if spanned else 1
        return inner, torch.Size(own[:-1]).numel()


class _Launch:
    """One call: its library, device and stream; keeps copies alive until the work is on the stream."""

    def __init__(self, device: torch.device) -> None:
        self.library = library_of(device)
        self._cuda = device.type == "cuda"
        self._device = torch.cuda.device(device) if self._cuda else None
        self._kept: list[Tensor] = []

    def __enter__(self) -> _Launch:
        if self._device is not None:
            self._device.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        if self._device is not None:
            self._device.__exit__(*error)

    def tensor(self, found: Tensor) -> Tensor:
        """Contiguous and aligned."""
        made = found.contiguous()
        made = made if made.data_ptr() % _ALIGNED == 0 else made.clone()
        self._kept.append(made)
        return made

    def strided(self, found: Tensor) -> Tensor:
        """Aligned, the last axis without gaps and the others' strides whole vectors of 16 bytes."""
        vector = _ALIGNED // found.element_size()
        fits = found.stride(-1) == 1 and all(s % vector == 0 for s, size in zip(found.stride()[:-1], found.shape, strict=False) if size > 1)
        return self.tensor(found) if not fits or found.data_ptr() % _ALIGNED else found

    def tensors(self, structure: type[ctypes.Structure], given: Mapping[str, Tensor | None]) -> Any:
        """The struct of addresses."""
        return filled(structure, {name: self.tensor(part).data_ptr() for name, part in given.items() if part is not None})

    def tactic(self, name: str) -> int:
        """Its number."""
        known = {said: number for number, said in tactics(self.library).items()}
        if name not in known:
            raise KernelError(f"qlinear: tactic {name!r}; wanted any, {', '.join(known)}")
        return known[name]

    def __call__(self, function: str, problem: Any, tensors: Any, *arguments: Any) -> None:
        stream = torch.cuda.current_stream().cuda_stream if self._cuda else None
        self.library.call(function, ctypes.byref(problem), ctypes.byref(tensors), *arguments, ctypes.c_void_p(stream))


__all__ = ["InputError", "KernelError", "Tokens", "qattention", "qlinear", "quantize_token", "use_library"]
