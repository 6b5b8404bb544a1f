"""What `kernels.py` runs: problems of published sizes, each with what it is compared with."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import kernel_shapes
import torch
import torch.nn.functional as nn
from kernel_shapes import Model
from kernel_timing import Call, Dry, Timer, row
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vditc.plugins.interface import tactics
from vditc.plugins.library import NO_KERNEL, KernelError
from vditc.plugins.packing import pack
from vditc.plugins.torch_ops import library_of, qattention, qlinear, quantize_token

Rows = Iterator[dict[str, Any]]
# name -> bits of weights, of activations, two codes a byte
SCHEMES = {"w8a8": (8, 8, False), "w4a8": (4, 8, False), "w3a6": (3, 6, False), "w4a4": (4, 4, False), "w4a4 packed": (4, 4, True)}
# What an accelerator multiplies of them: codes of 4 bits twice as fast where it has such an instruction.
_KINDS = {"int4": "int4", "carrier": "bf16"}


def models(timer: Timer | Dry) -> tuple[tuple[Model, ...], tuple[int, ...]]:
    """Of published sizes; of a dry run a tiny one."""
    return (kernel_shapes.MODELS, kernel_shapes.ROWS) if timer.measures else ((kernel_shapes.TINY,), kernel_shapes.TINY_ROWS)


def normal_codes(shape: tuple[int, ...], bits: int, device: torch.device) -> Tensor:
    """Codes of normal numbers whose greatest of a row has the greatest code: what quantizing activations gives."""
    high = (1 << bits - 1) - 1
    return (torch.randn(shape, device=device) * (high / 3.5)).round().clamp(-high - 1, high).to(torch.int8)


PANEL = 256  # outputs that are drawn and packed; the others repeat them, as packing a whole layer takes longer than timing it


@functools.lru_cache(maxsize=32)
def packed_weight(n: int, k: int, bits: int, device: torch.device) -> Tensor:
    """Random codes, packed. Panels of 32 outputs follow each other, so packed rows repeat as the rows do."""
    rows = PANEL if n % PANEL == 0 else n
    panel = torch.from_numpy(pack(normal_codes((rows, k), bits, torch.device("cpu")).numpy(), bits))
    return panel.to(device).repeat(n // rows)


def nibbles(codes: Tensor) -> Tensor:
    """Two codes a byte (`vditc.plugins.packing.pack_tokens`), on the device."""
    halves = torch.unflatten(codes, -1, (-1, 2, 16)).view(torch.uint8)
    return ((halves[..., 0, :] & 15) | (halves[..., 1, :] << 4)).flatten(-2).view(torch.int8)


def qlinear_rows(timer: Timer | Dry) -> Rows:
    """Every tactic of every scheme beside cuBLAS's INT8, bfloat16 and FP8, for every distinct shape and number of rows."""
    known, rows = models(timer)
    for m in rows:
        for (n, k), layers in kernel_shapes.shapes(known).items():
            yield qlinear_row(timer, m, n, k, layers)


def qlinear_row(timer: Timer | Dry, m: int, n: int, k: int, layers: list[str]) -> dict[str, Any]:
    """One problem: y bfloat16 with scales of tokens and outputs and a bias."""
    device, library = timer.device, library_of(timer.device)
    scale = torch.rand(m, 1, device=device) / 100
    weight_scale, bias = torch.rand(n, device=device) / 100, torch.randn(n, device=device)
    x, w = torch.randn(m, k, device=device, dtype=torch.bfloat16), torch.randn(n, k, device=device, dtype=torch.bfloat16)
    x8, w8 = normal_codes((m, k), 8, device), normal_codes((n, k), 8, device).T
    fp8 = [t.to(torch.float8_e4m3fn) for t in (x, w)]
    bias16, operations = bias.bfloat16(), 2.0 * m * n * k
    calls: dict[str, Call] = {
        "bf16 torch": lambda: nn.linear(x, w, bias16),
        "int8 torch._int_mm": lambda: torch._int_mm(x8, w8),  # int32, without scales and bias
        "fp8 torch._scaled_mm": lambda: torch._scaled_mm(
            fp8[0], fp8[1].T, scale_a=scale, scale_b=weight_scale[None], bias=bias16, out_dtype=torch.bfloat16
        ),
    }
    sizes = {"bf16 torch": ("bf16", 2, 2, 2), "int8 torch._int_mm": ("int8", 1, 1, 4), "fp8 torch._scaled_mm": ("fp8", 1, 1, 2)}
    work = {name: {kind: operations, "bytes": float(a * m * k + b * n * k + c * m * n)} for name, (kind, a, b, c) in sizes.items()}
    refused, different = {}, []
    for scheme, (bits, activation_bits, packed) in SCHEMES.items():
        codes = normal_codes((m, k), activation_bits, device)
        codes = nibbles(codes) if packed else codes
        weight = packed_weight(n, k, bits, device)
        first: Tensor | None = None
        for tactic in tactics(library).values():
            name = f"{scheme} {tactic}"
            call: Call = functools.partial(
                qlinear,
                codes,
                scale,
                weight,
                weight_scale,
                bits=bits,
                activation_bits=activation_bits,
                packed=packed,
                bias=bias,
                tactic=tactic,
            )
            try:
                y = call()
            except KernelError as error:
                if error.status != NO_KERNEL:
                    raise
                refused[name] = str(error).partition(": ")[2]
                continue
            first = y if first is None else first
            if not torch.equal(y, first):
                different.append(name)
            calls[name] = call
            # Weights of 4 bits and fewer are read packed, and once more as bytes where a tactic expands them.
            expanded = n * k * (2 if tactic.startswith("expand") else 0)
            moved = m * k * (0.5 if packed else 1) + n * k * bits / 8 + expanded + 2.0 * m * n
            work[name] = {_KINDS.get(tactic, "int8"): operations, "bytes": moved}
        del first
    about = {"case": "qlinear", "m": m, "n": n, "k": k, "layers": layers}
    found = row(timer, about, calls, work)
    seconds = found["seconds"]
    # Above 1: faster than torch's.
    found["ratio"] = {
        against.split()[0]: {name: round(seconds[against] / t, 3) for name, t in seconds.items() if not name.endswith(against)}
        for against in sizes
        if against in seconds
    }
    return {**found, "refused": refused, "different_bits": different}


# name -> options, bytes of an element read and written beside x (2) and the codes (1), whether codes lie two a byte
_VARIANTS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "codes": ({}, 0, False),
    "layer norm, modulation": ({"norm": "layer", "gain": True, "shift": True}, 0, False),
    "layer norm, modulation, total": ({"norm": "layer", "gain": True, "shift": True, "total": True}, 0, False),
    "rms norm, weight": ({"norm": "rms", "weight": True}, 0, False),
    "gelu_tanh": ({"activation": "gelu_tanh"}, 0, False),
    "balance, rotation": ({"balance": True, "rotation": 256}, 0, False),
    "layer norm, modulation, rotation, 4 bits packed": (
        {"norm": "layer", "gain": True, "shift": True, "rotation": 256, "bits": 4},
        0,
        True,
    ),
    "residual + gate x, layer norm, modulation": ({"gated": True, "norm": "layer", "gain": True, "shift": True}, 4, False),
}


def quantize_token_rows(timer: Timer | Dry) -> Rows:
    """Variants of QuantizeToken, bfloat16 in, beside a copy on the device that moves as many bytes."""
    known, rows = models(timer)
    widths = sorted({k for n, k in kernel_shapes.shapes(known)})
    for m in rows:
        for k in widths:
            yield from quantize_token_variants(timer, m, k)


def quantize_token_variants(timer: Timer | Dry, m: int, k: int) -> Rows:
    """A row for each, with its own copy."""
    device = timer.device
    x, residual = (torch.randn(m, k, device=device, dtype=torch.bfloat16) for _ in range(2))
    vectors = {name: torch.randn(k, device=device) for name in ("gain", "shift", "weight", "balance")}
    for variant, (own, beside, packed) in _VARIANTS.items():
        if own.get("rotation") and k % 256:
            continue
        options: dict[str, Any] = {
            name: vectors.get(name, value) if value is True and name != "total" else value for name, value in own.items() if name != "gated"
        }
        if own.get("gated"):
            options |= {"gate": vectors["gain"].bfloat16(), "residual": residual}
        moved = m * k * (2 + beside + (0.5 if packed else 1)) + 4.0 * m
        source = torch.empty(int(moved) // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        calls: dict[str, Call] = {
            "kernel": functools.partial(quantize_token, x, packed=packed, **options),
            "copy": functools.partial(target.copy_, source),
        }
        work = {name: {"bytes": moved} for name in calls}
        found = row(timer, {"case": "quantize-token", "variant": variant, "m": m, "k": k, "bytes": moved}, calls, work)
        seconds = found["seconds"]
        found["of_copy"] = round(seconds["copy"] / seconds["kernel"], 3) if {"copy", "kernel"} <= seconds.keys() else None
        yield found


_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def qattention_rows(timer: Timer | Dry) -> Rows:
    """QAttention beside every backend of scaled_dot_product_attention, self-attention of whole clips."""
    known, _ = models(timer)
    tokens = {"wan-1.3b": 32760, "wan-14b": 75600, "cogvideox-5b": 17776, "tiny": 37}  # 480p, 720p, 49 frames of 480 x 720 with text
    for model in known:
        yield qattention_row(timer, model, tokens[model.name])


def qattention_row(timer: Timer | Dry, model: Model, tokens: int) -> dict[str, Any]:
    """One clip; q, k and v as a projection leaves them, tokens before heads."""
    q, k, v = (
        torch.randn(1, tokens, model.heads, model.head_dim, device=timer.device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)
    )

    def attend(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return nn.scaled_dot_product_attention(q, k, v)

    calls: dict[str, Call] = {f"bf16 {name}": functools.partial(attend, backend) for name, backend in _BACKENDS.items()}
    scores = 4.0 * model.heads * tokens * tokens
    if timer.measures and 3 * scores > torch.cuda.mem_get_info()[0]:
        del calls["bf16 math"]  # it holds the scores
    calls |= {
        "qattention": functools.partial(qattention, q, k, v, smooth_k=False),
        "qattention smooth_k": functools.partial(qattention, q, k, v),
    }
    half, moved = scores / 4 * 2 * model.head_dim, 8.0 * q.numel()
    work: dict[str, dict[str, float]] = {name: {"bf16": 2 * half, "bytes": moved} for name in calls}
    work |= {name: {"int8": half, "bf16": half, "bytes": moved} for name in calls if name.startswith("qattention")}
    found = row(
        timer, {"case": "qattention", "model": model.name, "tokens": tokens, "heads": model.heads, "head_dim": model.head_dim}, calls, work
    )
    exact = nn.scaled_dot_product_attention(q, k, v).float()
    found["relative_l2"] = {
        name: float(f"{float((call().float() - exact).norm() / exact.norm()):.3g}")
        for name, call in calls.items()
        if name.startswith("qattention")
    }
    best = min((t for name, t in found["seconds"].items() if name.startswith("bf16")), default=None)
    found["ratio_to_best_bf16"] = {
        name: round(best / t, 3) for name, t in found["seconds"].items() if best and name.startswith("qattention")
    }
    return found
