"""SANA-Video (diffusers SanaVideoTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.correction import FrameOrder
from vditc.errors import InputError
from vditc.export.adapters.wan_blocks import RotaryTables, grid_of
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import frames_first
from vditc.export.patches import TimeFrequencies, plain_attention, replaced, rotate_neighbours
from vditc.model_dir import ModelDir

MASKED = -10000.0  # added to scores of hidden text: exp is 0, and float16 holds it


class SanaVideo(DiffusersAdapter):
    """Linear self-attention, cross-attention and a feed-forward of convolutions, which stay in floating point.

    Every frame has its own timestep, 0 for one that is given (image to video).
    """

    linear_attention = True

    name: ClassVar[str] = "sana-video"
    description: ClassVar[str] = "SANA-Video text-to-video and image-to-video"
    model_class: ClassVar[str] = "SanaVideoTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p81": (81, 480, 832), "704p81": (81, 704, 1280)}
    roles: ClassVar[Mapping[str, str]] = {
        r"patch_embedding": "patch_embed",
        r"caption_projection\.linear_1": "text_embed.in",
        r"caption_projection\.linear_2": "text_embed.out",
        r"time_embed\.emb\.timestep_embedder\.linear_1": "time_embed.in",
        r"time_embed\.emb\.timestep_embedder\.linear_2": "time_embed.out",
        r"time_embed\.linear": "modulation",
        r"transformer_blocks\.\d+\.attn1\.to_q": "self_attn.q",
        r"transformer_blocks\.\d+\.attn1\.to_k": "self_attn.k",
        r"transformer_blocks\.\d+\.attn1\.to_v": "self_attn.v",
        r"transformer_blocks\.\d+\.attn1\.to_out\.0": "self_attn.out",
        r"transformer_blocks\.\d+\.attn2\.to_q": "cross_attn.q",
        r"transformer_blocks\.\d+\.attn2\.to_k": "cross_attn.k",
        r"transformer_blocks\.\d+\.attn2\.to_v": "cross_attn.v",
        r"transformer_blocks\.\d+\.attn2\.to_out\.0": "cross_attn.out",
        # Convolutions, which recipes keep in floating point by these roles.
        r"transformer_blocks\.\d+\.ff\.conv_(inverted|depth)": "other_embed.in",
        r"transformer_blocks\.\d+\.ff\.conv_(point|temp)": "other_embed.out",
        r"proj_out": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = frames_first(
        r"transformer_blocks\.\d+\.attn1\.to_(q|k|v|out\.0)", r"transformer_blocks\.\d+\.attn2\.to_(q|out\.0)", "proj_out"
    )

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], encoder_hidden_states [B, T, caption_channels], timestep [B, F], encoder_attention_mask [B, T]."""
        config = source.config
        if config.get("guidance_embeds") or config["patch_size"][0] != 1:
            raise InputError(
                found=f"guidance_embeds {config.get('guidance_embeds')}, patch_size {config['patch_size']}",
                wanted="no embedded guidance, and patches of one frame, as in every published checkpoint",
                where=str(source.transformer / "config.json"),
                fix="use a published SANA-Video checkpoint",
            )
        return (
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["caption_channels"]))),
            InputSpec("timestep", "float32", ("batch", "frames"), "timestep"),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """81 frames of 480 x 832 behind Wan's autoencoder, of 704 x 1280 behind the deep one of 128 channels."""
        config = source.config
        _, height, width = config["patch_size"]
        most = int(config.get("rope_max_seq_len", 1024))
        deep = int(config["in_channels"]) >= 64
        frames, pixels = (8, 32) if deep else (4, 8)
        sizes = (11, 22, 40) if deep else (21, 60, 104)
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=sizes[0], high=most, unit="frames", stride=frames, causal=True),
            "height": Axis(default=sizes[1], multiple=height, low=height, high=most * height, unit="pixels", stride=pixels),
            "width": Axis(default=sizes[2], multiple=width, low=width, high=most * width, unit="pixels", stride=pixels),
            "text_tokens": Axis(default=300),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """As many out as in, unless config.json says otherwise."""
        return int(source.config.get("out_channels") or source.config["in_channels"])

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Modulation once for each frame instead of each token; plain attention; sums over tokens as means, which float16 holds.

        Rotary tables and modulation are the same float32 operations; both attentions round differently, about 1e-6 of the output.
        """
        time, blocks = model.time_embed.emb, model.transformer_blocks
        with replaced(
            (model, "forward", functools.partial(_run, model, RotaryTables(model.rope))),
            (time, "time_proj", TimeFrequencies(time.time_proj)),
            *((block, "forward", functools.partial(_block, block)) for block in blocks),
            *((block.attn1, "forward", functools.partial(_attend_linearly, block.attn1)) for block in blocks),
            *((block.attn2, "forward", functools.partial(_attend, block.attn2)) for block in blocks),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        frames, height, width = grid_of(feeds["hidden_states"], model.config.patch_size)
        times = feeds["timestep"][:, None, :, None, None].expand(-1, 1, frames, height, width)
        return model(**{**feeds, "timestep": times}, return_dict=False)[0]

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The class takes a time for every clip, or [B, 1, F, H, W]."""
        frames, times = call["hidden_states"].shape[2] // config["patch_size"][0], call["timestep"]
        return {**call, "timestep": times[:, None].expand(-1, frames) if times.ndim == 1 else times[:, 0, :, 0, 0]}


def _run(
    model: Any,
    tables: RotaryTables,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    return_dict: bool,
) -> tuple[torch.Tensor]:
    """The whole model, with timestep [B, 1, F, H, W] alike in all tokens of a frame."""
    batch, patch = hidden_states.shape[0], model.config.patch_size
    grid = grid_of(hidden_states, patch)
    rotary = tables(hidden_states)
    modulation, embedded = model.time_embed(timestep[:, 0, :, 0, 0].flatten(), batch_size=batch, hidden_dtype=torch.float32)
    modulation, embedded = (torch.unflatten(t, 0, (batch, grid[0])) for t in (modulation, embedded))
    modulation = torch.unflatten(modulation, 2, (6, -1))
    mask = ((1 - encoder_attention_mask.to(torch.float32)) * MASKED)[:, None, None]
    text = model.caption_norm(model.caption_projection(encoder_hidden_states))
    hidden = model.patch_embedding(hidden_states).flatten(3).permute(0, 2, 3, 1)
    for block in model.transformer_blocks:
        hidden = block(hidden, text, modulation, rotary, mask, grid)
    shift, scale = (model.scale_shift_table + embedded.unsqueeze(2)).unsqueeze(3).unbind(2)
    patches = model.proj_out(model.norm_out.norm(hidden) * (1 + scale) + shift)
    patches = patches.reshape(batch, *grid, *patch, model.config.out_channels or model.config.in_channels)
    return (patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3),)


def _block(
    block: Any,
    hidden: torch.Tensor,
    text: torch.Tensor,
    modulation: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
    grid: tuple[int, int, int],
) -> torch.Tensor:
    """hidden [B, F, tokens of a frame, dim], text [B, T, dim], modulation [B, F, 6, dim], mask [B, 1, 1, T] of the text."""
    shift, scale, gate, ff_shift, ff_scale, ff_gate = (block.scale_shift_table + modulation).unsqueeze(3).unbind(2)
    hidden = hidden + gate * block.attn1(block.norm1(hidden) * (1 + scale) + shift, rotary)
    hidden = block.attn2(hidden, text, mask) + hidden
    given = block.norm2(hidden) * (1 + ff_scale) + ff_shift
    out: torch.Tensor = hidden + ff_gate * block.ff(torch.unflatten(given, 2, grid[1:])).flatten(2, 3)
    return out


def _project(attn: Any, hidden: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normed query and key, and value: [B, heads, tokens, head_dim]."""
    query, key = attn.to_q(hidden), attn.to_k(memory)
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    query, key, value = (torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, attn.to_v(memory)))
    return query, key, value


def _attend_linearly(attn: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """hidden [B, F, tokens of a frame, dim] attends to itself: q' (k'^T v) / (q sum(k)), q' and k' rotated, q and k not negative."""
    given = hidden.flatten(1, 2)
    query, key, value = _project(attn, given, given)
    share = torch.rsqrt(torch.scalar_tensor(given.shape[1], dtype=torch.float32))  # twice makes of a sum a mean
    query, key = torch.relu(query), torch.relu(key) * share
    weights = query @ (key.sum(2, keepdim=True) * share).transpose(-1, -2)
    mixed = rotate_neighbours(query, *rotary) @ (rotate_neighbours(key, *rotary).transpose(-1, -2) @ (value * share))
    # Without weight the query is 0, and so is its answer.
    mixed = torch.where(weights > 0, mixed / weights, 0.0)
    out: torch.Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2)).reshape(hidden.shape)
    return out


def _attend(attn: Any, hidden: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """hidden [B, F, tokens of a frame, dim] attends to text [B, T, dim]."""
    query, key, value = _project(attn, hidden.flatten(1, 2), text)
    out: torch.Tensor = attn.to_out[0](plain_attention(query, key, value, mask).transpose(1, 2).flatten(2)).reshape(hidden.shape)
    return out
