"""One block of Wan's transformer, with linear layers in bfloat16 or by the kernels, around the same bfloat16 attention."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as nn
from kernel_cases import SCHEMES, models, packed_weight
from kernel_shapes import TEXT, Model
from kernel_timing import Call, Dry, Timer, row
from torch import Tensor

from vditc.plugins.packing import pack
from vditc.plugins.torch_ops import Tokens, qlinear, quantize_token

EPSILON = 1e-6
LAYERS = ("q", "k", "v", "out", "cross.q", "cross.k", "cross.v", "cross.out", "up", "down")


class Block:
    """Random weights; diffusers' WanTransformerBlock with cross attention to text, batch 1."""

    def __init__(self, model: Model, tokens: int, device: torch.device) -> None:
        width, self.model = model.width, model
        self.x = torch.randn(1, tokens, width, device=device, dtype=torch.bfloat16)
        self.text = torch.randn(1, TEXT if device.type == "cuda" else 19, width, device=device, dtype=torch.bfloat16)
        # Of AdaLN: shift, 1 + scale and gate, twice.
        self.shifts, self.gains = torch.randn(2, width, device=device) / 10, 1 + torch.randn(2, width, device=device) / 10
        self.gates = (torch.randn(2, width, device=device) / 10).bfloat16()
        self.one = torch.ones(width, device=device, dtype=torch.bfloat16)
        self.norm_weight, self.norm_bias = torch.rand(width, device=device), torch.zeros(width, device=device)
        self.qk_norm = torch.ones(width, device=device, dtype=torch.bfloat16)
        self.angles = torch.polar(
            torch.ones(tokens, model.head_dim // 2, device=device), torch.rand(tokens, model.head_dim // 2, device=device)
        )
        sizes = {**dict.fromkeys(LAYERS, (width, width)), "up": (model.ffn, width), "down": (width, model.ffn)}
        self.sizes = sizes
        self.weights = {name: torch.randn(shape, device=device, dtype=torch.bfloat16) / shape[1] ** 0.5 for name, shape in sizes.items()}
        self.biases = {name: torch.zeros(shape[0], device=device) for name, shape in sizes.items()}
        self.biases16 = {name: bias.bfloat16() for name, bias in self.biases.items()}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotary: bool) -> Tensor:
        """Attention of projections [1, tokens, width]: norms of q and k, positions, softmax; the same in every scheme."""
        q, k = (nn.rms_norm(t, (self.model.width,), self.qk_norm, EPSILON) for t in (q, k))
        q, k, v = (torch.unflatten(t, -1, (self.model.heads, self.model.head_dim)) for t in (q, k, v))
        if rotary:
            q, k = (
                torch.view_as_real(torch.view_as_complex(torch.unflatten(t.float(), -1, (-1, 2))) * self.angles[:, None])
                .flatten(-2)
                .type_as(v)
                for t in (q, k)
            )
        y = nn.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return y.transpose(1, 2).flatten(2)

    def attention_alone(self) -> Tensor:
        """Both attentions, on the block's input in place of projections: what no scheme changes."""
        return self.attend(self.x, self.x, self.x, True) + self.attend(self.x, self.text, self.text, False)

    def bf16(self) -> Tensor:
        """As diffusers computes it in bfloat16: norms and modulation in float32."""
        width, x = (self.model.width,), self.x

        def linear(name: str, t: Tensor) -> Tensor:
            return nn.linear(t, self.weights[name], self.biases16[name])

        def modulated(t: Tensor, i: int) -> Tensor:
            return (nn.layer_norm(t.float(), width, None, None, EPSILON) * self.gains[i] + self.shifts[i]).type_as(t)

        t = modulated(x, 0)
        y = self.attend(linear("q", t), linear("k", t), linear("v", t), True)
        x = x + linear("out", y) * self.gates[0]
        t = nn.layer_norm(x.float(), width, self.norm_weight, self.norm_bias, EPSILON).type_as(x)
        y = self.attend(linear("cross.q", t), linear("cross.k", self.text), linear("cross.v", self.text), False)
        x = x + linear("cross.out", y)
        t = nn.gelu(linear("up", modulated(x, 1)), approximate="tanh")
        return x + linear("down", t) * self.gates[1]

    def quantized(self, bits: int, activation_bits: int, packed: bool, *, rounded: bool = False) -> Call:
        """The same by QuantizeToken and QLinear: norm and modulation in front of codes, GELU, gate and residual behind products.

        `rounded`: weights are those of `bf16`, rounded; else random codes, which take no time to pack.
        """
        held, unit = {}, {}
        for name, (n, k) in self.sizes.items():
            high = (1 << bits - 1) - 1
            if rounded:
                unit[name] = self.weights[name].float().abs().amax(1) / high
                codes = (self.weights[name] / unit[name][:, None]).round().to(torch.int8)
                held[name] = torch.from_numpy(pack(codes.cpu().numpy(), bits)).to(self.x.device)
            else:
                unit[name] = torch.full((n,), 3.5 / (k**0.5 * high), device=self.x.device)  # as `normal_codes` spreads them
                held[name] = packed_weight(n, k, bits, self.x.device)
        quantize = functools.partial(quantize_token, bits=activation_bits, packed=packed)

        def linear(name: str, tokens: Tokens, **more: Any) -> Tensor:
            return qlinear(
                tokens.codes,
                tokens.scale,
                held[name],
                unit[name],
                bits=bits,
                activation_bits=activation_bits,
                packed=packed,
                bias=self.biases[name],
                **more,
            )

        def block() -> Tensor:
            x = self.x
            t = quantize(x, norm="layer", epsilon=EPSILON, gain=self.gains[0], shift=self.shifts[0])
            y = self.attend(linear("q", t), linear("k", t), linear("v", t), True)
            x = linear("out", quantize(y), gate=self.gates[0], residual=x)
            t = quantize(x, norm="layer", epsilon=EPSILON, weight=self.norm_weight, bias=self.norm_bias)
            text = quantize(self.text)
            y = self.attend(linear("cross.q", t), linear("cross.k", text), linear("cross.v", text), False)
            x = linear("cross.out", quantize(y), gate=self.one, residual=x)
            t = quantize(x, norm="layer", epsilon=EPSILON, gain=self.gains[1], shift=self.shifts[1])
            up = linear("up", t, activation="gelu_tanh")
            return linear("down", quantize(up), gate=self.gates[1], residual=x)

        return block


def block_rows(timer: Timer | Dry) -> Iterator[dict[str, Any]]:
    """Wan 1.3B at 480p, Wan 14B at 480p and 720p."""
    known, rows = models(timer)
    for model in (one for one in known if not one.name.startswith("cogvideox")):
        for tokens in rows:
            if timer.measures and (tokens == 4096 or (tokens == 75600 and model.name == "wan-1.3b")):
                continue
            yield block_row(timer, Block(model, tokens, timer.device), tokens)


def block_row(timer: Timer | Dry, block: Block, tokens: int) -> dict[str, Any]:
    """Schemes beside bfloat16, run by run and compiled by torch, and the share that attention has."""
    calls: dict[str, Call] = {"attention alone": block.attention_alone, "bf16": block.bf16}
    if timer.measures:
        calls["bf16 torch.compile"] = torch.compile(block.bf16)
    for scheme, how in SCHEMES.items():
        calls[scheme] = block.quantized(*how, rounded=not timer.measures)
    found = row(timer, {"case": "block", "model": block.model.name, "tokens": tokens}, calls, {})
    if not timer.measures:
        exact = block.bf16().float()
        found["relative_l2"] = {name: float((calls[name]().float() - exact).norm() / exact.norm()) for name in SCHEMES}
    seconds = found["seconds"]
    attention = seconds.get("attention alone")
    for against in ("bf16", "bf16 torch.compile"):
        if attention is None or against not in seconds:
            continue
        key = f"ratio_to_{against.replace(' ', '_')}"
        found[key] = {name: round(seconds[against] / seconds[name], 3) for name in SCHEMES if name in seconds}
        found[f"{key}_without_attention"] = {
            name: round((seconds[against] - attention) / (seconds[name] - attention), 3)
            for name in SCHEMES
            if name in seconds and seconds[name] > attention
        }
    return found
