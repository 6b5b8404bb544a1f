"""Allegro text-to-video (diffusers AllegroTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.correction import FrameOrder
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import block_frames, frames_first
from vditc.export.patches import TimeFrequencies, plain_attention, replaced
from vditc.model_dir import ModelDir
from vditc.profile import Axis

MASKED = -10000.0  # added to scores of hidden text: exp is 0, and float16 holds it
Tables = tuple[tuple[torch.Tensor, torch.Tensor], ...]  # cos and sin [positions, head_dim / 3] of frames, rows, columns


class Allegro(DiffusersAdapter):
    """Self-attention, cross-attention and feed-forward; each third of a head's channels is rotated by one axis."""

    name: ClassVar[str] = "allegro"
    description: ClassVar[str] = "Allegro text-to-video"
    model_class: ClassVar[str] = "AllegroTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"720p88": (88, 720, 1280)}
    roles: ClassVar[Mapping[str, str]] = {
        r"pos_embed\.proj": "patch_embed",
        r"caption_projection\.linear_1": "text_embed.in",
        r"caption_projection\.linear_2": "text_embed.out",
        r"adaln_single\.emb\.timestep_embedder\.linear_1": "time_embed.in",
        r"adaln_single\.emb\.timestep_embedder\.linear_2": "time_embed.out",
        r"adaln_single\.linear": "modulation",
        r"transformer_blocks\.\d+\.attn1\.to_q": "self_attn.q",
        r"transformer_blocks\.\d+\.attn1\.to_k": "self_attn.k",
        r"transformer_blocks\.\d+\.attn1\.to_v": "self_attn.v",
        r"transformer_blocks\.\d+\.attn1\.to_out\.0": "self_attn.out",
        r"transformer_blocks\.\d+\.attn2\.to_q": "cross_attn.q",
        r"transformer_blocks\.\d+\.attn2\.to_k": "cross_attn.k",
        r"transformer_blocks\.\d+\.attn2\.to_v": "cross_attn.v",
        r"transformer_blocks\.\d+\.attn2\.to_out\.0": "cross_attn.out",
        r"transformer_blocks\.\d+\.ff\.net\.0\.proj": "ffn.in",
        r"transformer_blocks\.\d+\.ff\.net\.2": "ffn.out",
        r"proj_out": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {**block_frames(), **frames_first("proj_out")}

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], encoder_hidden_states [B, T, text_dim], timestep [B], encoder_attention_mask [B, T]."""
        config = source.config
        return (
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["caption_channels"]))),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """The checkpoint's own size: 88 frames of 720 x 1280 are a latent of 22 x 90 x 160."""
        config = source.config
        patch = int(config["patch_size"])
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=int(config["sample_frames"]), unit="frames", stride=4),
            "height": Axis(default=int(config["sample_height"]), multiple=patch, low=patch, unit="pixels", stride=8),
            "width": Axis(default=int(config["sample_width"]), multiple=patch, low=patch, unit="pixels", stride=8),
            "text_tokens": Axis(default=512),
        }

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Without the squeezes that mean nothing; rotary tables joined once; plain attention; constant time frequencies.

        All float32 operations are the same, except those of softmax(q k^T) v.
        """
        time, blocks = model.adaln_single.emb, model.transformer_blocks
        with replaced(
            (model, "forward", functools.partial(_run, model)),
            (time, "time_proj", TimeFrequencies(time.time_proj)),
            *((block, "forward", functools.partial(_block, block)) for block in blocks),
            *((attn, "forward", functools.partial(_attend, attn)) for block in blocks for attn in (block.attn1, block.attn2)),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted noise [B, C, F, H, W]."""
        config = model.config
        frames, height, width = feeds["hidden_states"].shape[2:]
        sizes = (frames, height // config.patch_size, width // config.patch_size)
        scales = (config.interpolation_scale_t, config.interpolation_scale_h, config.interpolation_scale_w)
        dim = config.attention_head_dim // 3
        frequencies = 1.0 / (10000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
        tables = []
        for size, scale in zip(sizes, scales, strict=True):
            angles = (torch.arange(size, dtype=torch.float32) / scale)[:, None] * frequencies
            tables.append((torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)))
        grid = torch.meshgrid([torch.arange(size) for size in sizes], indexing="ij")
        noise = model(**feeds, image_rotary_emb=(tuple(tables), tuple(at.flatten()[None] for at in grid)), return_dict=False)[0]
        return noise

    made_inside: ClassVar[frozenset[str]] = frozenset({"image_rotary_emb"})


def _run(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    image_rotary_emb: tuple[Tables, Any],
    return_dict: bool,
) -> tuple[torch.Tensor]:
    """The whole model."""
    patch = model.config.patch_size
    batch, _, frames, height, width = hidden_states.shape
    modulation, embedded = model.adaln_single(timestep, batch_size=batch, hidden_dtype=torch.float32)
    modulation = torch.unflatten(modulation, 1, (6, -1))
    mask = ((1 - encoder_attention_mask.to(torch.float32)) * MASKED)[:, None, None]
    text = model.caption_projection(encoder_hidden_states)
    hidden = model.pos_embed(hidden_states.transpose(1, 2).flatten(0, 1))
    hidden = torch.unflatten(hidden, 0, (batch, frames)).flatten(1, 2)
    rotary = _join(image_rotary_emb[0])
    for block in model.transformer_blocks:
        hidden = block(hidden, text, modulation, rotary, mask)
    shift, scale = (model.scale_shift_table + embedded.unsqueeze(1)).unsqueeze(2).unbind(1)
    patches = model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)
    patches = patches.reshape(batch, frames, height // patch, width // patch, patch, patch, model.config.out_channels)
    return (patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, model.config.out_channels, frames, height, width),)


def _join(tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each [tokens, head_dim], the first half of each third of sin negative."""
    (frames, height, width) = sizes = [cos.shape[0] for cos, _ in tables]
    signs = torch.cat([-torch.ones(tables[0][0].shape[1] // 2), torch.ones(tables[0][0].shape[1] // 2)])
    parts: list[list[torch.Tensor]] = [[], []]
    for (cos, sin), shape in zip(tables, ((frames, 1, 1), (1, height, 1), (1, 1, width)), strict=True):
        for part, table in zip(parts, (cos, sin * signs), strict=True):
            part.append(table.reshape(*shape, table.shape[1]).expand(*sizes, -1))
    cos, sin = (torch.cat(part, -1).flatten(0, 2) for part in parts)
    return cos, sin


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves (a, b) of each third of x [B, heads, tokens, head_dim] to (a cos - b sin, b cos + a sin)."""
    a, b = torch.split(torch.unflatten(x, -1, (3, 2, -1)), 1, -2)
    return x * cos + torch.cat([b, a], -2).flatten(-3) * sin


def _block(
    block: Any,
    hidden: torch.Tensor,
    text: torch.Tensor,
    modulation: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
) -> torch.Tensor:
    """hidden [B, tokens, dim], text [B, T, dim], modulation [B, 6, dim], mask [B, 1, 1, T] of the text."""
    shift, scale, gate, ff_shift, ff_scale, ff_gate = (block.scale_shift_table + modulation).unsqueeze(2).unbind(1)
    hidden = gate * block.attn1(block.norm1(hidden) * (1 + scale) + shift, rotary=rotary) + hidden
    hidden = block.attn2(hidden, text, mask) + hidden
    out: torch.Tensor = ff_gate * block.ff(block.norm2(hidden) * (1 + ff_scale) + ff_shift) + hidden
    return out


def _attend(
    attn: Any,
    hidden: torch.Tensor,
    text: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """hidden [B, tokens, dim] attends to itself or to text [B, T, dim]."""
    memory = hidden if text is None else text
    projected = attn.to_q(hidden), attn.to_k(memory), attn.to_v(memory)
    query, key, value = (torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2) for x in projected)
    if rotary is not None:
        query, key = _rotate(query, *rotary), _rotate(key, *rotary)
    out: torch.Tensor = attn.to_out[0](plain_attention(query, key, value, mask).transpose(1, 2).flatten(2))
    return out
