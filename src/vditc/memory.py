"""What an engine will need in memory, estimated from layer shapes and the profile's largest sizes before anything is built.

T = batch x (video tokens + text tokens), D the width of the blocks, c bytes of the compute type.

    weights      codes at 4 or 8 bits and their scales; float weights in c bytes, those of the time path in 4
    activations  the greater of two moments of a block, and 8 MB:
      ffn          T * (up * p + down * c + D * (c + 4))
      attention    T * ((q + k + v) * p + (q + k) * c + out * c + D * (c + 4)) + scores
    builder      300 MB + 3 MB a layer + 2.13 x weights

up is the output width of the first feed-forward layers, down the input width of the last, q, k, v, out the widths of the
attention's layers. p is what is held of an element of a product: c, 4 behind an INT8 product (its sums are float32), 1.5c behind
a product with weights alone quantized (it and its sum with the bias are two tensors, of which part overlaps: measured, not derived).
D * (c + 4): the residual stream, and its float32 copy under a norm. scores: two matrices T x T of every head, only where
attention is not fused. How far all this is from what was measured stands in docs/measurements/memory.json.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from vditc.adapter import ModelAdapter
from vditc.axis import Sizes
from vditc.build_memory import gigabytes
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.profile import Profile
from vditc.scheme import Scheme, scale_shape
from vditc.target import Target

FIXED = 8_000_000
BUILDER, BUILDER_PER_LAYER, BUILDER_PER_WEIGHT = 300_000_000, 3_000_000, 2.13
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
HEAD = 64  # width of a head where config.json does not tell
_HEADS = ("num_attention_heads", "num_heads", "heads", "n_heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer (or patch convolution): weight [N, K], None for one that stays in floating point."""

    role: str
    shape: tuple[int, int]
    scheme: Scheme | None = None

    @property
    def timed(self) -> bool:
        """Whether it is of the time path, which is computed in float32."""
        return self.role.startswith("time_embed") or self.role == "modulation"

    def weight_bytes(self, compute: int) -> int:
        """Bytes in an engine."""
        count = math.prod(self.shape)
        if self.scheme is None:
            return count * (4 if self.timed else compute)
        spec = self.scheme.weight
        of_scale = 1 if spec.qtype is QType.FP4_E2M1 else 2 if spec.granularity is Granularity.PER_GROUP else 4
        scales = math.prod(scale_shape(self.shape, spec)) * of_scale
        return count * (4 if spec.qtype.bits <= 4 else 8) // 8 + scales

    def product_bytes(self, compute: int) -> int:
        """Bytes held for every element of its output, right behind the product."""
        if self.scheme is None:
            return compute
        return 3 * compute // 2 if self.scheme.activation is None else 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """An estimate in bytes, at the largest sizes of a profile."""

    tokens: int  # video tokens of one clip
    weights: int
    activations: int
    scores: int  # part of `activations`: attention's matrices tokens x tokens
    builder: int  # of the machine that builds the engine; 0 where nothing is built

    @property
    def total(self) -> int:
        """Of the device, while a step is computed."""
        return self.weights + self.activations

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return {**dataclasses.asdict(self), "total": self.total}

    @classmethod
    def from_json(cls, data: Mapping[str, int]) -> Memory:
        """Read what `to_json` wrote."""
        return cls(**{name: count for name, count in data.items() if name != "total"})

    def __str__(self) -> str:
        build = f"; building it takes about {gigabytes(self.builder)}" if self.builder else ""
        return (
            f"about {gigabytes(self.total)}: {gigabytes(self.weights)} of weights, {gigabytes(self.activations)} of activations "
            f"at {self.tokens} tokens{build}"
        )


def model_memory(source: ModelDir, adapter: ModelAdapter, schemes: Mapping[str, Scheme | None], profile: Profile, target: Target) -> Memory:
    """Of the engine for one target, from a model's layers and what a recipe makes of each."""
    layers = []
    for name, role in adapter.layer_roles(source).items():
        first, *rest = source.weights[f"{name}.weight"].shape
        scheme, shape = schemes.get(name), (first, math.prod(rest))
        if scheme is not None:
            try:
                scale_shape(shape, scheme.weight)
            except InputError as error:
                raise InputError(found=error.found, wanted=error.wanted, where=f"layer {name}, {error.where}", fix=error.fix) from error
        layers.append(Layer(role=role, shape=shape, scheme=scheme))
    others = source.weight_count - sum(math.prod(layer.shape) for layer in layers)
    return estimate(layers, others, adapter.sizes(source), profile.largest, target, source.config)


def estimate(
    layers: list[Layer], others: int, sizes: Sizes, largest: Mapping[str, int], target: Target, config: Mapping[str, Any]
) -> Memory:
    """See the head of this file. `others`: weights outside of the layers; `largest`: greatest size of every axis, in steps."""
    compute, portable = BYTES[target.compute], target.backend == "onnxruntime"
    batch, video = largest.get("batch", 1), sizes.tokens(largest)
    clip = video + largest.get("text_tokens", 0)
    widths = _Widths(layers, compute)
    scores = _scores(layers, sizes, largest, clip, widths.value("q", "qkv") // widths.fused, config) * batch * compute if portable else 0
    ffn = batch * clip * (widths.product("ffn", "in", "gate") + widths.entry("ffn", "out") * compute + widths.hidden * (compute + 4))
    attention = batch * clip * (widths.attention + widths.hidden * (compute + 4)) + scores
    # ONNX Runtime dequantizes every weight once, while it loads.
    weights = sum(math.prod(a.shape) * 4 if portable else a.weight_bytes(compute) for a in layers) + others * compute
    builder = 0 if portable else builder_memory(len(layers), weights)
    return Memory(tokens=video, weights=weights, activations=max(ffn, attention) + FIXED, scores=scores, builder=builder)


def builder_memory(layers: int, weights: int) -> int:
    """Bytes that building an engine of so many linear layers and bytes of weights takes from the host."""
    return BUILDER + BUILDER_PER_LAYER * layers + int(BUILDER_PER_WEIGHT * weights)


class _Widths:
    """The greatest widths of the layers of each role."""

    def __init__(self, layers: list[Layer], compute: int) -> None:
        self.layers, self.compute = [a for a in layers if _kind(a)[0] in ("attn", "ffn")], compute
        self.hidden = max(self.entry("attn", "q", "qkv"), self.entry("ffn", "in"))
        self.fused = 1 if self.value("q") >= self.value("qkv") else 3

    def _of(self, kind: str, end: str) -> list[Layer]:
        return [a for a in self.layers if _kind(a) == (kind, end)]

    def value(self, *ends: str) -> int:
        """Greatest output width of attention's layers of these parts."""
        return max((a.shape[0] for end in ends for a in self._of("attn", end)), default=0)

    def product(self, kind: str, *ends: str) -> int:
        """Bytes per token behind the products of these parts, one of each."""
        return sum(max((a.shape[0] * a.product_bytes(self.compute) for a in self._of(kind, end)), default=0) for end in ends)

    def entry(self, kind: str, *ends: str) -> int:
        """Greatest input width."""
        return max((a.shape[1] for end in ends for a in self._of(kind, end)), default=0)

    @property
    def attention(self) -> int:
        """Bytes per token of queries, keys and values, the rotated queries and keys, and what attention gives."""
        parts = max(self.product("attn", "q", "k", "v"), self.product("attn", "q", "kv"), self.product("attn", "qkv"))
        return parts + (2 * self.value("q", "qkv") // self.fused + self.entry("attn", "out")) * self.compute


def _kind(layer: Layer) -> tuple[str, str]:
    """ "text_ffn.in" -> ("ffn", "in"), "self_attn.q" -> ("attn", "q")."""
    block, _, end = layer.role.partition(".")
    return block.rpartition("_")[2], end


def attention_keys(roles: Iterable[str], sizes: Sizes, largest: Mapping[str, int]) -> int:
    """Keys of the greatest softmax: a clip's tokens and, where no cross-attention reads it, its text; of a frame or a place if split."""
    found = set(roles)
    if any(role.startswith("temporal_attn") for role in found):
        frames, space = _split(sizes, largest)
        return max(frames, space)
    apart = any(role.startswith("cross_attn") for role in found)
    return sizes.tokens(largest) + (0 if apart else largest.get("text_tokens", 0))


def _split(sizes: Sizes, largest: Mapping[str, int]) -> tuple[int, int]:
    """Frames of tokens, and tokens of a frame."""
    frames = largest.get("frames", 1) // sizes.axes["frames"].multiple if "frames" in sizes.axes else 1
    return frames, sizes.tokens(largest) // frames


def _scores(layers: list[Layer], sizes: Sizes, largest: Mapping[str, int], clip: int, width: int, config: Mapping[str, Any]) -> int:
    """Elements of the products q k^T of one clip and their softmax, all heads of one block."""
    heads = next((int(config[k]) for k in _HEADS if isinstance(config.get(k), int)), max(1, width // HEAD))
    if any(a.role.startswith("temporal_attn") for a in layers):  # a frame attends to itself, then a place to itself over the frames
        frames, space = _split(sizes, largest)
        return 2 * heads * max(frames * space**2, space * frames**2)
    return 2 * heads * clip**2
