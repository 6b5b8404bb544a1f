"""Open-Sora's transformers in plain numpy, float64: one clip, one frame, one head at a time; text is cut, not masked.

Weights are named as in the checkpoints, feeds as the modules' inputs; see vditc.export.open_sora for the source.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def stdit(weights: Arrays, feeds: Arrays, heads: int, *, space_scale: float, time_scale: float) -> Array:
    clips = []
    for b, latents in enumerate(feeds["hidden_states"]):
        x = patches_of(weights, latents)  # [f, h, w, C]
        frames, height, width, channels = x.shape
        for i in range(height):
            for j in range(width):
                x[:, i, j] += np.concatenate([waves(j / space_scale, channels // 2), waves(i / space_scale, channels // 2)])
        time = embed_number(weights, "t_embedder", feeds["timestep"][b])
        modulation = linear(weights, "t_block.1", silu(time)).reshape(6, channels)
        text = embed_text(weights, feeds, b)
        for n in range(depth(weights, "blocks")):
            name = f"blocks.{n}"
            shift, scale, gate, *feed_forward = weights[f"{name}.scale_shift_table"] + modulation
            x = x + gate * within_frames(weights, f"{name}.attn", normed(x) * (1 + scale) + shift, heads)
            positions = np.array([waves(f / time_scale, channels) if n == 0 else np.zeros(channels) for f in range(frames)])
            x = x + gate * across_frames(weights, f"{name}.attn_temp", x + positions[:, None, None], heads)
            x = text_and_feed_forward(weights, name, x, text, feed_forward, heads)
        clips.append(clip_of(weights, x, time))
    return np.stack(clips)


def stdit3(weights: Arrays, feeds: Arrays, heads: int, *, input_sq_size: int) -> Array:
    clips = []
    for b, latents in enumerate(feeds["hidden_states"]):
        x = patches_of(weights, latents)
        _, height, width, channels = x.shape
        scale = math.sqrt(feeds["height"][b] * feeds["width"][b]) / input_sq_size
        base = round(math.sqrt(height * width))
        for i in range(height):
            for j in range(width):
                row, column = i / scale * base / height, j / scale * base / width
                x[:, i, j] += np.concatenate([waves(column, channels // 2), waves(row, channels // 2)])
        time = embed_number(weights, "t_embedder", feeds["timestep"][b]) + embed_number(weights, "fps_embedder", feeds["fps"][b])
        modulation = linear(weights, "t_block.1", silu(time)).reshape(6, channels)
        text = embed_text(weights, feeds, b)
        for n in range(depth(weights, "spatial_blocks")):
            for kind, attention in (("spatial", within_frames), ("temporal", across_frames)):
                name = f"{kind}_blocks.{n}"
                shift, scaled, gate, *feed_forward = weights[f"{name}.scale_shift_table"] + modulation
                x = x + gate * attention(weights, f"{name}.attn", normed(x) * (1 + scaled) + shift, heads)
                x = text_and_feed_forward(weights, name, x, text, feed_forward, heads)
        clips.append(clip_of(weights, x, time))
    return np.stack(clips)


def linear(weights: Arrays, name: str, x: Array) -> Array:
    product: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return product


def silu(x: Array) -> Array:
    out: Array = x / (1 + np.exp(-x))
    return out


def gelu(x: Array) -> Array:
    curve: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return curve


def normed(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled


def waves(position: float, width: int) -> Array:
    angles = np.array([position * 10000.0 ** (-i / (width // 2)) for i in range(width // 2)])
    return np.concatenate([np.sin(angles), np.cos(angles)])


def depth(weights: Arrays, blocks: str) -> int:
    return len({n.split(".")[1] for n in weights if n.startswith(f"{blocks}.")})


def embed_number(weights: Arrays, name: str, number: float) -> Array:
    sines, cosines = np.split(waves(number, 256), 2)
    hidden = linear(weights, f"{name}.mlp.0", np.concatenate([cosines, sines]))
    return linear(weights, f"{name}.mlp.2", silu(hidden))


def embed_text(weights: Arrays, feeds: Arrays, clip: int) -> Array:
    text = feeds["encoder_hidden_states"][clip][feeds["encoder_attention_mask"][clip] == 1]
    return linear(weights, "y_embedder.y_proj.fc2", gelu(linear(weights, "y_embedder.y_proj.fc1", text)))


def patches_of(weights: Arrays, latents: Array) -> Array:
    """[C, f, 2 h, 2 w] -> [f, h, w, hidden]."""
    kernel = weights["x_embedder.proj.weight"]
    _, frames, height, width = latents.shape
    x = np.empty((frames, height // 2, width // 2, len(kernel)))
    for f, i, j in np.ndindex(*x.shape[:3]):
        window = latents[:, f : f + 1, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        x[f, i, j] = (kernel * window).sum((1, 2, 3, 4)) + weights["x_embedder.proj.bias"]
    return x


def clip_of(weights: Arrays, x: Array, time: Array) -> Array:
    """[f, h, w, hidden] -> [C, f, 2 h, 2 w]."""
    shift, scale = weights["final_layer.scale_shift_table"] + time
    numbers = linear(weights, "final_layer.linear", normed(x) * (1 + scale) + shift)
    frames, height, width, count = numbers.shape
    clip = np.empty((count // 4, frames, 2 * height, 2 * width))
    for f, i, j in np.ndindex(frames, height, width):
        clip[:, f, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = np.moveaxis(numbers[f, i, j].reshape(2, 2, -1), -1, 0)
    return clip


def softmax_attention(query: Array, key: Array, value: Array) -> Array:
    scores = query @ key.T / math.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed: Array = weights / weights.sum(-1, keepdims=True) @ value
    return mixed


def self_attention(weights: Arrays, name: str, x: Array, heads: int, rotated: bool) -> Array:
    """x [tokens, hidden]."""
    parts = linear(weights, f"{name}.qkv", x).reshape(len(x), 3, heads, -1)
    joined = []
    for head in range(heads):
        query, key, value = (parts[:, i, head] for i in range(3))
        if f"{name}.q_norm.weight" in weights:
            query, key = (
                p / np.sqrt((p**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.{which}_norm.weight"]
                for which, p in (("q", query), ("k", key))
            )
        if rotated:
            query, key = (turned(p, weights["rope.freqs"]) for p in (query, key))
        joined.append(softmax_attention(query, key, value))
    return linear(weights, f"{name}.proj", np.concatenate(joined, -1))


def turned(x: Array, frequencies: Array) -> Array:
    """Pairs of neighbours as complex numbers, times e^(i position frequency)."""
    numbers = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * np.arange(len(x))[:, None] * frequencies)
    return np.stack([numbers.real, numbers.imag], -1).reshape(x.shape)


def within_frames(weights: Arrays, name: str, x: Array, heads: int) -> Array:
    tokens = x.reshape(len(x), -1, x.shape[-1])
    return np.stack([self_attention(weights, name, frame, heads, rotated=False) for frame in tokens]).reshape(x.shape)


def across_frames(weights: Arrays, name: str, x: Array, heads: int) -> Array:
    out = np.empty_like(x)
    for i, j in np.ndindex(*x.shape[1:3]):
        out[:, i, j] = self_attention(weights, name, x[:, i, j], heads, rotated="rope.freqs" in weights)
    return out


def text_and_feed_forward(weights: Arrays, name: str, x: Array, text: Array, modulation: list[Array], heads: int) -> Array:
    query = np.split(linear(weights, f"{name}.cross_attn.q_linear", x.reshape(-1, x.shape[-1])), heads, -1)
    keys, values = np.split(linear(weights, f"{name}.cross_attn.kv_linear", text), 2, -1)
    mixed = [softmax_attention(*qkv) for qkv in zip(query, np.split(keys, heads, -1), np.split(values, heads, -1), strict=True)]
    x = x + linear(weights, f"{name}.cross_attn.proj", np.concatenate(mixed, -1)).reshape(x.shape)
    shift, scale, gate = modulation
    hidden = gelu(linear(weights, f"{name}.mlp.fc1", normed(x) * (1 + scale) + shift))
    out: Array = x + gate * linear(weights, f"{name}.mlp.fc2", hidden)
    return out
