"""Helios, long videos chunk by chunk (diffusers HeliosTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.correction import FrameOrder
from vditc.export.adapters.wan import Wan
from vditc.export.adapters.wan_blocks import latent_axes, unpack
from vditc.export.patches import TimeFrequencies, plain_attention, replaced, rotate_neighbours
from vditc.model_dir import ModelDir
from vditc.profile import Axis

# The frames of the past as diffusers' pipelines hand them out: the first frame of all (position 0), then 16, 2 and 1, then the chunk.
LONG, MID, SHORT = range(1, 17), range(17, 19), (0, 19)
CHUNK = 20  # position of the chunk's first frame
POSITIONS = 1024


class Helios(Wan):
    """Wan's blocks over a chunk and its past, whose older frames make larger patches; the past is modulated as timestep 0."""

    name: ClassVar[str] = "helios"
    description: ClassVar[str] = "Helios, long videos chunk by chunk"
    model_class: ClassVar[str] = "HeliosTransformer3DModel"
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"384p33": (33, 384, 640)}
    roles: ClassVar[Mapping[str, str]] = {**Wan.roles, r"patch_(short|mid|long)": "patch_embed"}
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {}  # what is before comes in front of the clip's tokens

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """Nobody reads what the last block makes of the past."""
        return (Loop(modules={"blocks": 1}, count=int(config["num_layers"]), last=1),)

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Wan's, latents_history_short and _mid [B, C, 2, rows, columns], latents_history_long [B, C, 16, rows, columns].

        The past has a height and width of its own: the pyramid pipeline starts chunks small.
        """
        channels = int(source.config["in_channels"])
        past = (("short", len(SHORT)), ("mid", len(MID)), ("long", len(LONG)))
        return (
            *super().inputs(source),
            *(
                InputSpec(f"latents_history_{name}", "float32", ("batch", channels, frames, "history_height", "history_width"))
                for name, frames in past
            ),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """384p, 33 frames: latent 9 x 48 x 80."""
        axes = latent_axes(source, 33, 384, 640)
        past = {f"history_{name}": axes[name] for name in ("height", "width")}
        return {**super().axes(source), **axes, **past}

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Constant position tables, averaged along each axis where older frames share patches; padding by index; one time
        embedding for chunk and past, which modulate their own tokens; rotation and attention as Wan's (about 1e-6 of the output).
        """
        embedder = model.condition_embedder
        with replaced(
            (model, "rope", _Tables(model.rope)),
            (embedder, "timesteps_proj", TimeFrequencies(embedder.timesteps_proj)),
            *((a, "processor", _attend) for b in model.blocks for a in (b.attn1, b.attn2)),
            *((b, "forward", functools.partial(_run_block, b)) for b in model.blocks),
            (model, "forward", functools.partial(_run, model)),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        if isinstance(model.rope, _Tables):
            return model(**feeds)
        frames = feeds["hidden_states"].shape[2] // model.config.patch_size[0]
        positions = {
            "indices_hidden_states": range(CHUNK, CHUNK + frames),
            "indices_latents_history_short": SHORT,
            "indices_latents_history_mid": MID,
            "indices_latents_history_long": LONG,
        }
        return model(**feeds, **{n: torch.tensor([list(p)]) for n, p in positions.items()}, return_dict=False)[0]

    made_inside: ClassVar[frozenset[str]] = frozenset(
        {
            "indices_hidden_states",
            "indices_latents_history_short",
            "indices_latents_history_mid",
            "indices_latents_history_long",
        }
    )


class _Tables(torch.nn.Module):
    """Cosines and sines [2, positions, dim / 2] of frames, rows and columns."""

    frames: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    signs: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        positions = torch.arange(CHUNK + POSITIONS, dtype=torch.float32)
        for name, base in (("frames", real.freqs_base_t), ("rows", real.freqs_base_y), ("columns", real.freqs_base_x)):
            angles = positions[:, None] * base
            self.register_buffer(name, torch.stack([angles.cos(), angles.sin()]), persistent=False)
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [-1.0, 1.0]])[:, None, None], persistent=False)

    def chunk(self, tokens: torch.Tensor) -> torch.Tensor:
        """The table [2, tokens, head_dim / 2] of tokens [B, dim, F, H, W]."""
        f, h, w = tokens.shape[2:]
        return _grid(self.frames[:, CHUNK : CHUNK + f], self.rows[:, :h], self.columns[:, :w])

    def past(self, positions: range | tuple[int, ...], factor: int, tokens: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
        """The table of tokens [B, dim, f, h, w], each the mean over a cube of `factor` of the grid of `short`."""
        h, w = tokens.shape[3:]
        frames = torch.cat([self.frames[:, p : p + 1] for p in positions], 1)
        return _grid(
            torch.unflatten(frames, 1, (-1, factor)).mean(2),
            _means(self.rows, short.shape[3], h, factor),
            _means(self.columns, short.shape[4], w, factor),
        )

    def forward(self, grids: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each [tokens, head_dim], for `rotate_neighbours`."""
        cos, sin = (torch.cat(grids, 1).unsqueeze(-1) * self.signs).flatten(2)
        return cos, sin


def _grid(frames: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    sizes = frames.shape[1], rows.shape[1], columns.shape[1]
    tables = (frames[:, :, None, None], rows[:, None, :, None], columns[:, None, None])
    return torch.cat([t.expand(-1, *sizes, -1) for t in tables], -1).flatten(1, 3)


def _means(table: torch.Tensor, size: int, count: int, factor: int) -> torch.Tensor:
    """Means of `count` groups of `factor` positions; behind position size - 1 that one is repeated."""
    if factor == 1:
        return table[:, :count]
    order = torch.arange(count * factor).clamp(max=size - 1)
    return torch.unflatten(torch.index_select(table, 1, order), 1, (-1, factor)).mean(2)


def _patches(conv: Any, latents: torch.Tensor) -> torch.Tensor:
    """Tokens [B, dim, f, h, w]; the last row and column of latents are repeated to whole patches."""
    for axis, patch in ((3, conv.stride[1]), (4, conv.stride[2])):
        size = latents.shape[axis]
        order = torch.arange((size + patch - 1) // patch * patch).clamp(max=size - 1)
        latents = torch.index_select(latents, axis, order)
    tokens: torch.Tensor = conv(latents)
    return tokens


def _run(
    model: Any,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    latents_history_short: torch.Tensor,
    latents_history_mid: torch.Tensor,
    latents_history_long: torch.Tensor,
) -> torch.Tensor:
    """The model's forward pass."""
    zeros = torch.zeros_like(timestep[:1])
    times, modulation, text = model.condition_embedder(torch.cat([zeros, timestep]), encoder_hidden_states)
    modulation = torch.unflatten(modulation, 1, (6, -1))
    now, then = modulation[1:], modulation[:1] if model.zero_history_timestep else modulation[1:]

    chunk, short = model.patch_embedding(hidden_states), model.patch_short(latents_history_short)
    mid, long = _patches(model.patch_mid, latents_history_mid), _patches(model.patch_long, latents_history_long)
    tables: _Tables = model.rope
    rotary = tables(
        [
            tables.past(LONG, 4, long, short),
            tables.past(MID, 2, mid, short),
            tables.past(SHORT, 1, short, short),
            tables.chunk(chunk),
        ]
    )
    past = torch.cat([x.flatten(2).transpose(1, 2) for x in (long, mid, short)], 1)
    count = past.shape[1]
    hidden = chunk.flatten(2).transpose(1, 2)
    for block in model.blocks:
        past, hidden = block(past, hidden, count, text, then, now, rotary)
    norm = model.norm_out
    shift, scale = torch.split(norm.scale_shift_table + times[1:].unsqueeze(1), 1, 1)
    tokens = model.proj_out(norm.norm(hidden) * (1 + scale) + shift)
    return unpack(tokens, hidden_states, model.config.patch_size)


def _run_block(
    block: Any,
    past: torch.Tensor,
    hidden: torch.Tensor,
    count: int,
    text: torch.Tensor,
    then: torch.Tensor,
    now: torch.Tensor,
    rotary: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Past [B, count, dim] modulated by `then` [B or 1, 6, dim], the chunk [B, tokens, dim] by `now` [B, 6, dim].

    count is one expression for all blocks: asked of each block's tokens, it would be another one in every block.
    """
    old, new = (torch.split(block.scale_shift_table + m, 1, 1) for m in (then, now))

    def modulated(norm: Any, i: int) -> torch.Tensor:
        return torch.cat([norm(x) * (1 + m[i + 1]) + m[i] for x, m in ((past, old), (hidden, new))], 1)

    attended = block.attn1(modulated(block.norm1, 0), None, None, rotary, count)
    past, hidden = past + attended[:, :count] * old[2], hidden + attended[:, count:] * new[2]
    if block.guidance_cross_attn:
        hidden = hidden + block.attn2(block.norm2(hidden), text)
    else:
        both = torch.cat([past, hidden], 1)
        both = both + block.attn2(block.norm2(both), text)
        past, hidden = both[:, :count], both[:, count:]
    out = block.ffn(modulated(block.norm3, 3))
    return past + out[:, :count] * old[5], hidden + out[:, count:] * new[5]


def _attend(
    attn: Any,
    hidden: torch.Tensor,
    memory: torch.Tensor | None = None,
    mask: None = None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    past: int | None = None,
) -> torch.Tensor:
    """Attention of [B, tokens, dim] to itself, whose first `past` tokens are the past, or to text."""
    memory = hidden if memory is None else memory

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2)

    query, key = heads(attn.norm_q(attn.to_q(hidden))), heads(attn.norm_k(attn.to_k(memory)))
    if rotary is not None:
        query, key = rotate_neighbours(query, *rotary), rotate_neighbours(key, *rotary)
    if past is not None and attn.is_amplify_history:
        scale = 1.0 + torch.sigmoid(attn.history_key_scale) * (attn.max_scale - 1.0)
        key = torch.cat([key[:, :, :past] * scale.view(1, -1, 1, 1), key[:, :, past:]], 2)
    attended = plain_attention(query, key, heads(attn.to_v(memory)))
    out: torch.Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return out
