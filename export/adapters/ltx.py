"""LTX-Video 0.9.x, 2B and 13B (diffusers LTXVideoTransformer3DModel)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.checkpoint import read_json
from vditc.correction import FrameOrder
from vditc.errors import InputError
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import block_frames, frames_first
from vditc.export.patches import TimeFrequencies, plain_attention, replaced, rotate_neighbours
from vditc.model_dir import ModelDir
from vditc.profile import Axis

FRAMES_STEP, PIXELS_STEP = 8, 32  # of the video autoencoder: frames and pixels that one latent stands for


class LtxVideo(DiffusersAdapter):
    """Self-attention, cross-attention and feed-forward over single latents; rotary positions in seconds and pixels.

    From 0.9.5 on (LTXConditionPipeline) the first latent stands for one frame, before that for eight like all others: the input
    `first_frames` says which. Each frame has its own timestep, so a frame that is given (image to video) has timestep 0.
    """

    name: ClassVar[str] = "ltx-video"
    description: ClassVar[str] = "LTX-Video 0.9.x text-to-video and image-to-video"
    model_class: ClassVar[str] = "LTXVideoTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "480p161": (161, 480, 704),
        "512p161": (161, 512, 704),
        "704p121": (121, 704, 1216),
    }
    roles: ClassVar[Mapping[str, str]] = {
        r"proj_in": "patch_embed",
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
        r"transformer_blocks\.\d+\.ff\.net\.0\.proj": "ffn.in",
        r"transformer_blocks\.\d+\.ff\.net\.2": "ffn.out",
        r"proj_out": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {**block_frames(), **frames_first("proj_in", "proj_out")}

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], encoder_hidden_states [B, T, caption_channels], timestep [B, F], mask [B, T], frame_rate [1]."""
        config = source.config
        if (config.get("patch_size", 1), config.get("patch_size_t", 1)) != (1, 1):
            raise InputError(
                found=f"patch_size {config['patch_size']}, patch_size_t {config['patch_size_t']}",
                wanted="1 and 1, as in every published checkpoint",
                where=str(source.transformer / "config.json"),
                fix="use a checkpoint whose tokens are single latents",
            )
        return (
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["caption_channels"]))),
            InputSpec("timestep", "float32", ("batch", "frames"), "timestep"),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
            InputSpec("frame_rate", "float32", (1,), 25.0),
            InputSpec("first_frames", "float32", (1,), 1.0 if _causal(source) else float(FRAMES_STEP)),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """161 frames of 512 x 704: latent 21 x 16 x 22."""
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=21, unit="frames", stride=FRAMES_STEP, causal=True),
            "height": Axis(default=16, unit="pixels", stride=PIXELS_STEP),
            "width": Axis(default=22, unit="pixels", stride=PIXELS_STEP),
            "text_tokens": Axis(default=256 if _causal(source) else 128),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """As many out as in, unless config.json says otherwise."""
        return int(source.config.get("out_channels") or source.config["in_channels"])

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Modulation once for each frame instead of each token; rotary tables made for each axis; plain attention.

        All float32 operations are the same, except those of softmax(q k^T) v and of matrix products with fewer rows.
        """
        time, blocks = model.time_embed.emb, model.transformer_blocks
        with replaced(
            (model, "forward", functools.partial(_run, model, _RotaryTables(model.rope))),
            (time, "time_proj", TimeFrequencies(time.time_proj)),
            *((block, "forward", functools.partial(_block, block)) for block in blocks),
            *((attn, "processor", _attend) for block in blocks for attn in (block.attn1, block.attn2)),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        latents = feeds["hidden_states"]
        frames, height, width = latents.shape[2:]
        seconds, rows, columns = (torch.arange(n, dtype=torch.float32, device=latents.device) for n in (frames, height, width))
        seconds = (seconds * FRAMES_STEP + (feeds["first_frames"] - FRAMES_STEP)).clamp(min=0) * (1.0 / feeds["frame_rate"])
        grid = (seconds[:, None, None], rows[:, None] * PIXELS_STEP, columns * PIXELS_STEP)
        velocity = model(
            hidden_states=latents.flatten(2).transpose(1, 2),
            encoder_hidden_states=feeds["encoder_hidden_states"],
            timestep=feeds["timestep"].unsqueeze(-1).expand(-1, -1, height * width).flatten(1),
            encoder_attention_mask=feeds["encoder_attention_mask"],
            num_frames=frames,
            height=height,
            width=width,
            video_coords=torch.stack([axis.expand(frames, height, width) for axis in grid]).flatten(1)[None],
            return_dict=False,
        )[0]
        return velocity.transpose(1, 2).unflatten(2, (frames, height, width))

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The class takes tokens; times of clips or of tokens; the scale of a frame's seconds, or every token's coordinates."""
        feeds = dict(call)
        coordinates, scale = feeds.pop("video_coords", None), feeds.pop("rope_interpolation_scale", None)
        sizes = [feeds.pop(name, None) for name in ("num_frames", "height", "width")]
        grid = tuple(map(int, sizes)) if coordinates is None else tuple(len(axis.unique()) for axis in coordinates[0])
        frames, height, width = grid
        if frames * height * width != feeds["hidden_states"].shape[1]:
            raise self.no_form(f"{feeds['hidden_states'].shape[1]} tokens on a grid of {grid}", "one token for every place of the clip")
        feeds["hidden_states"] = feeds["hidden_states"].transpose(1, 2).unflatten(2, grid)
        times = feeds["timestep"]
        feeds["timestep"] = times[:, :: height * width] if times.ndim == 2 else times[:, None].expand(-1, frames)
        if coordinates is None:
            if scale is not None:
                feeds["frame_rate"] = torch.tensor([FRAMES_STEP / float(scale[0])])
        elif frames > 2:  # seconds of latent frames: 0, first / rate, (first + 8) / rate, ...
            _, second, third = coordinates[0, 0].unflatten(0, grid)[:3, 0, 0].double()
            rate = FRAMES_STEP / (third - second)
            feeds |= {"frame_rate": rate.float()[None], "first_frames": (second * rate).round().float()[None]}
        elif frames == 2:
            raise self.no_form("coordinates of 2 latent frames", "1 frame, or at least 3, which tell the frame rate")
        return feeds

    def handed_back(self, prediction: Any, call: Mapping[str, Any]) -> Any:
        """[B, tokens, C]."""
        return prediction.flatten(2).transpose(1, 2)


def _causal(source: ModelDir) -> bool:
    """Whether the first latent stands for one frame."""
    index = source.path / "model_index.json"
    return index.exists() and "Condition" in str(read_json(index).get("_class_name"))


class _RotaryTables(torch.nn.Module):
    """(cos, sin), each [tokens, dim], of coordinates video_coords [1, 3, tokens] of a grid; see `rotate_neighbours`."""

    frequencies: torch.Tensor
    signs: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        count = real.dim // 6
        self.bases = (real.base_num_frames, real.base_height, real.base_width)
        self.rest = real.dim % 6  # channels in front that are not rotated
        exponents = torch.linspace(math.log(1.0, real.theta), math.log(real.theta, real.theta), count, dtype=torch.float32)
        self.register_buffer("frequencies", real.theta**exponents * math.pi / 2.0, persistent=False)
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [-1.0, 1.0]])[:, None, None, None, None], persistent=False)

    def forward(self, video_coords: torch.Tensor, frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        seconds, rows, columns = torch.unflatten(video_coords[0], 1, (frames, height, width))
        tables = []
        for axis, base in zip((seconds[:, :1, :1], rows[:1, :, :1], columns[:1, :1]), self.bases, strict=True):
            angles = self.frequencies * (axis.unsqueeze(-1) / base * 2 - 1)
            tables.append(torch.stack([torch.cos(angles), torch.sin(angles)]).expand(-1, frames, height, width, -1))
        grid = torch.stack(tables, -1).flatten(4)  # [2, F, H, W, dim / 2], the axes neighbours
        cos, sin = (grid.unsqueeze(-1) * self.signs).flatten(4).flatten(1, 3)
        if self.rest:
            cos, sin = (torch.nn.functional.pad(table, (self.rest, 0), value=value) for table, value in ((cos, 1.0), (sin, 0.0)))
        return cos, sin


def _run(
    model: Any,
    tables: _RotaryTables,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    num_frames: int,
    height: int,
    width: int,
    video_coords: torch.Tensor,
    return_dict: bool,
) -> tuple[torch.Tensor]:
    """The whole model, with timestep [B, tokens] alike in all tokens of a frame."""
    batch = hidden_states.shape[0]
    rotary = tables(video_coords, num_frames, height, width)
    mask = ((1 - encoder_attention_mask.to(torch.float32)) * -10000.0)[:, None, None]
    times = torch.unflatten(timestep, 1, (num_frames, -1))[:, :, 0]
    modulation, embedded = model.time_embed(times.flatten(), batch_size=batch, hidden_dtype=torch.float32)
    modulation = modulation.unflatten(0, (batch, num_frames)).unflatten(2, (6, -1))
    text = model.caption_projection(encoder_hidden_states)
    hidden = model.proj_in(hidden_states).unflatten(1, (num_frames, height * width))
    for block in model.transformer_blocks:
        hidden = block(hidden, text, modulation, rotary, mask)
    shift, scale = (model.scale_shift_table + embedded.unflatten(0, (batch, num_frames)).unsqueeze(2)).unsqueeze(3).unbind(2)
    return (model.proj_out((model.norm_out(hidden) * (1 + scale) + shift).flatten(1, 2)),)


def _block(
    block: Any,
    hidden: torch.Tensor,
    text: torch.Tensor,
    modulation: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
) -> torch.Tensor:
    """hidden [B, F, tokens of a frame, dim], text [B, T, dim], modulation [B, F, 6, dim], mask [B, 1, 1, T] of the text."""
    shape = hidden.shape[1:3]
    shift, scale, gate, ff_shift, ff_scale, ff_gate = (block.scale_shift_table + modulation).unsqueeze(3).unbind(2)
    given = block.norm1(hidden) * (1 + scale) + shift
    hidden = hidden + block.attn1(given.flatten(1, 2), image_rotary_emb=rotary).unflatten(1, shape) * gate
    hidden = hidden + block.attn2(hidden.flatten(1, 2), text, mask).unflatten(1, shape)
    out: torch.Tensor = hidden + block.ff(block.norm2(hidden) * (1 + ff_scale) + ff_shift) * ff_gate
    return out


def _attend(
    attn: Any,
    hidden: torch.Tensor,
    text: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """hidden [B, tokens, dim] attends to itself or to text [B, T, dim]; positions rotate all heads' channels as one."""
    memory = hidden if text is None else text
    query, key, value = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(memory)), attn.to_v(memory)
    if rotary is not None:
        query, key = rotate_neighbours(query, *rotary), rotate_neighbours(key, *rotary)
    query, key, value = (torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    out: torch.Tensor = attn.to_out[0](plain_attention(query, key, value, mask).transpose(1, 2).flatten(2))
    return out
