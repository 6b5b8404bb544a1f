"""Cosmos 1, Cosmos-Predict 2 and 2.5 (diffusers CosmosTransformer3DModel)."""

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
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import block_frames, frames_first
from vditc.export.patches import TimeFrequencies, plain_attention, replaced, rotate_halves
from vditc.model_dir import ModelDir


class Cosmos(DiffusersAdapter):
    """Self-attention, cross-attention and feed-forward, each modulated through a low-rank projection of the time.

    config.json tells the variants apart. `extra_pos_embed_type` "learnable": Cosmos 1. 17 input channels: video to world, whose
    last channel says which frames are given; from Cosmos 2 on it has a timestep for every frame. 16 and no learned positions:
    Cosmos 2 text to image. `use_crossattn_projection`: Cosmos 2.5. The padding mask, zero in every pipeline, is a constant.
    Cosmos-Transfer, which needs the block outputs of a second network, is refused.
    """

    name: ClassVar[str] = "cosmos"
    description: ClassVar[str] = "Cosmos 1 and Cosmos-Predict 2 and 2.5 world models"
    model_class: ClassVar[str] = "CosmosTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "704p121": (121, 704, 1280),
        "704p93": (93, 704, 1280),
        "480p93": (93, 480, 832),
        "768p1": (1, 768, 1360),
    }
    roles: ClassVar[Mapping[str, str]] = {
        r"patch_embed\.proj": "patch_embed",
        r"time_embed\.t_embedder\.linear_1": "time_embed.in",
        r"time_embed\.t_embedder\.linear_2": "time_embed.out",
        r"crossattn_proj\.0": "text_embed.in",
        r"transformer_blocks\.\d+\.norm[123]\.linear_[12]": "modulation",
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
        r"norm_out\.linear_[12]": "modulation",
        r"proj_out": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {**block_frames(), **frames_first(r"patch_embed\.proj", "proj_out")}

    def is_layer(self, source: ModelDir, weight: str) -> bool:
        """Learned positions are tables."""
        return not weight.startswith("learnable_pos_embed.") and super().is_layer(source, weight)

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W] with its condition channel, timestep [B] or [B, F], encoder_hidden_states [B, T, D], fps [1]."""
        config = source.config
        if config.get("controlnet_block_every_n") or config.get("img_context_dim_in"):
            raise InputError(
                found="a Cosmos-Transfer checkpoint",
                wanted="Cosmos 1, Cosmos-Predict 2 or 2.5",
                where=str(source.transformer / "config.json"),
                fix="Transfer needs a second network's block outputs, which no engine input holds",
            )
        text = config.get("crossattn_proj_in_channels", 1024) if config.get("use_crossattn_projection") else config["text_embed_dim"]
        per_frame = config["extra_pos_embed_type"] is None and not _is_image(source)
        frames: int | str = 1 if _is_image(source) else "frames"
        specs = (
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), frames, "height", "width")),
            InputSpec("timestep", "float32", ("batch", "frames") if per_frame else ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(text))),
        )
        if _is_image(source):
            return specs
        # Cosmos 2.5 knows no frame rate: its positions are those of 24 frames a second.
        rate = 24.0 if config.get("use_crossattn_projection") else 16.0 if per_frame else 30.0
        return (*specs, InputSpec("fps", "float32", (1,), rate))

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """704 x 1280, 121 frames (Cosmos 1) or 93; 768 x 1360 for images."""
        config, image = source.config, _is_image(source)
        first = config["extra_pos_embed_type"] == "learnable"
        _, height, width = config["patch_size"]
        most = [int(n) for n in config["max_size"]]
        frames = {"frames": Axis(default=16 if first else 24, high=most[0], unit="frames", stride=8 if first else 4, causal=True)}
        return {
            "batch": Axis(default=2, unit="clips"),
            **({} if image else frames),
            "height": Axis(default=96 if image else 88, multiple=height, low=height, high=most[1], unit="pixels", stride=8),
            "width": Axis(default=170 if image else 160, multiple=width, low=width, high=most[2], unit="pixels", stride=8),
            "text_tokens": Axis(default=512),
        }

    def build(self, config: Mapping[str, Any]) -> Any:
        """float32, eval; told to expect no padding mask, which `forward` appends itself: diffusers needs torchvision to resize it."""
        model = super().build(config)
        model.register_to_config(concat_padding_mask=False)
        model.padded = bool(config.get("concat_padding_mask", True))
        return model

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Time projections once for each frame instead of each token; tables once for the batch; plain attention.

        Rotations, learned positions and modulation are the same float32 operations; softmax(q k^T) v and matrix products with
        fewer rows round differently.
        """
        blocks, learned = model.transformer_blocks, model.learnable_pos_embed
        with replaced(
            (model, "forward", functools.partial(_run, model, _RotaryTables(model.rope))),
            (model.time_embed, "time_proj", TimeFrequencies(model.time_embed.time_proj)),
            *([] if learned is None else [(learned, "forward", functools.partial(_learned_positions, learned))]),
            *((attn, "forward", functools.partial(_attend, attn)) for block in blocks for attn in (block.attn1, block.attn2)),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """What the model predicts of the denoised channels [B, C, F, H, W]."""
        latents, timestep = feeds["hidden_states"], feeds["timestep"]
        batch, _, *sizes = latents.shape
        return model(
            hidden_states=latents,
            timestep=timestep[:, None, :, None, None] if timestep.ndim == 2 else timestep,
            encoder_hidden_states=feeds["encoder_hidden_states"],
            fps=feeds.get("fps"),
            condition_mask=latents.new_zeros(batch, 1, *sizes) if model.padded else None,
            return_dict=False,
        )[0]

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The class takes frames' times as [B, 1, F, 1, 1], and masks, which are zero where nothing is given or padded."""
        feeds, times = dict(call), call["timestep"]
        feeds["timestep"] = times[:, 0, :, 0, 0] if times.ndim == 5 else times
        for name in ("condition_mask", "padding_mask"):
            if name in feeds and feeds.pop(name).any():
                raise self.no_form(f"a {name} that is not zero", "no frame given and nothing padded")
        if "fps" in feeds:
            feeds["fps"] = torch.as_tensor(feeds["fps"], dtype=torch.float32).reshape(-1)[:1]
        return feeds


def _is_image(source: ModelDir) -> bool:
    """Cosmos 2 text to image."""
    config = source.config
    return config["extra_pos_embed_type"] is None and int(config["in_channels"]) == int(config["out_channels"])


class _RotaryTables(torch.nn.Module):
    """(cos, sin), each [tokens, head_dim], of a token grid; see `rotate_halves`. Frames are `base` to the second."""

    signs: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.base = real.base_fps
        dims, factors = (real.dim_t, real.dim_h, real.dim_w), (real.t_ntk_factor, real.h_ntk_factor, real.w_ntk_factor)
        for axis, dim, factor in zip(("frames", "height", "width"), dims, factors, strict=True):
            exponents = torch.arange(0, dim, 2, dtype=torch.float32)[: dim // 2] / dim
            self.register_buffer(axis, 1.0 / ((10000.0 * factor) ** exponents), persistent=False)
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [-1.0, 1.0]])[:, None, :, None], persistent=False)

    def forward(self, grid: tuple[int, int, int], fps: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        places = [torch.arange(size, dtype=torch.float32) for size in grid]
        if fps is not None:
            places[0] = places[0] / fps * self.base
        tables = []
        for axis, (name, at) in enumerate(zip(("frames", "height", "width"), places, strict=True)):
            angles = at[:, None] * self.get_buffer(name)
            table = torch.stack([torch.cos(angles), torch.sin(angles)])
            shape = [2, 1, 1, 1, table.shape[2]]
            shape[axis + 1] = grid[axis]
            tables.append(table.reshape(shape).expand(2, *grid, -1))
        half = torch.cat(tables, -1).flatten(1, 3)  # [2, tokens, head_dim / 2]
        cos, sin = (half.unsqueeze(2) * self.signs).flatten(2)
        return cos, sin


def _learned_positions(learned: Any, grid: tuple[int, int, int]) -> torch.Tensor:
    """Positions [1, F, tokens of a frame, dim], of unit mean square."""
    frames, height, width = grid
    tables = learned.pos_emb_t[:frames, None, None], learned.pos_emb_h[:height, None], learned.pos_emb_w[:width]
    total = tables[0] + tables[1] + tables[2]
    norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
    positions: torch.Tensor = (total / (learned.eps + norm * total.shape[-1] ** -0.5)).flatten(1, 2)[None]
    return positions


def _run(
    model: Any,
    tables: _RotaryTables,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    fps: torch.Tensor | None,
    condition_mask: torch.Tensor | None,
    return_dict: bool,
) -> tuple[torch.Tensor]:
    """The whole model; between the blocks tokens are [B, F, tokens of a frame, dim], and the time is [B, F or 1, 1, dim]."""
    batch = hidden_states.shape[0]
    patch = model.config.patch_size
    grid = tuple(size // p for size, p in zip(hidden_states.shape[2:], patch, strict=True))
    if condition_mask is not None:
        hidden_states = torch.cat([hidden_states, condition_mask], 1)
    rotary = tables(grid, fps)
    positions = None if model.learnable_pos_embed is None else model.learnable_pos_embed(grid)
    hidden = model.patch_embed(hidden_states).flatten(2, 3)
    steps = 1 if timestep.ndim == 1 else grid[0]
    times = [torch.unflatten(t, 0, (batch, steps)).unsqueeze(2) for t in model.time_embed(hidden, timestep.flatten())]
    text = model.crossattn_proj(encoder_hidden_states) if model.config.use_crossattn_projection else encoder_hidden_states
    for block in model.transformer_blocks:
        hidden = block(hidden, text, times[1], times[0], rotary, positions)
    patches = model.proj_out(model.norm_out(hidden, times[1], times[0]))
    # A patch of the output has its channels last, of the input first.
    patches = patches.reshape(batch, *grid, patch[1], patch[2], patch[0], model.config.out_channels)
    return (patches.permute(0, 7, 1, 6, 2, 4, 3, 5).flatten(6, 7).flatten(4, 5).flatten(2, 3),)


def _attend(
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: None = None,
    image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """hidden_states [B, F, tokens of a frame, dim] attends to itself or to encoder_hidden_states [B, T, dim]."""
    hidden = hidden_states.flatten(1, 2)
    memory = hidden if encoder_hidden_states is None else encoder_hidden_states
    projected = attn.to_q(hidden), attn.to_k(memory), attn.to_v(memory)
    query, key, value = (torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2) for x in projected)
    query, key = attn.norm_q(query), attn.norm_k(key)
    if image_rotary_emb is not None:
        query, key = rotate_halves(query, *image_rotary_emb), rotate_halves(key, *image_rotary_emb)
    out: torch.Tensor = attn.to_out[0](plain_attention(query, key, value).transpose(1, 2).flatten(2)).reshape(hidden_states.shape)
    return out
