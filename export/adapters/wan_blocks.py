"""What Wan and the families made from it share: rotary tables, attention, modulation per frame, what the directory tells."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vditc.checkpoint import read_json
from vditc.export.patches import TimeFrequencies, plain_attention, rotate_neighbours
from vditc.model_dir import ModelDir
from vditc.profile import Axis

# Models with image attention take the last 512 tokens of their context for text, and what is before them for the image.
TEXT_TOKENS = 512
IMAGE_TOKENS = 257  # of CLIP ViT-H: 16 x 16 patches and one more

EMBEDDER_ROLES: Mapping[str, str] = {
    r"patch_embedding": "patch_embed",
    r"condition_embedder\.text_embedder\.linear_1": "text_embed.in",
    r"condition_embedder\.text_embedder\.linear_2": "text_embed.out",
    r"condition_embedder\.image_embedder\.ff\.net\.0\.proj": "image_embed.in",
    r"condition_embedder\.image_embedder\.ff\.net\.2": "image_embed.out",
    r"condition_embedder\.time_embedder\.linear_1": "time_embed.in",
    r"condition_embedder\.time_embedder\.linear_2": "time_embed.out",
    r"condition_embedder\.time_proj": "modulation",
    r"proj_out": "head",
}


def block_roles(blocks: str = "blocks") -> dict[str, str]:
    """Roles of the layers of one list of blocks."""
    parts = {f"attn{n}.to_{x}": f"{kind}_attn.{x}" for n, kind in ((1, "self"), (2, "cross")) for x in "qkv"}
    parts |= {"attn1.to_out.0": "self_attn.out", "attn2.to_out.0": "cross_attn.out"}
    parts |= {"attn2.add_k_proj": "image_attn.k", "attn2.add_v_proj": "image_attn.v"}
    parts |= {"ffn.net.0.proj": "ffn.in", "ffn.net.2": "ffn.out"}
    return {rf"{blocks}\.\d+\." + name.replace(".", r"\."): role for name, role in parts.items()}


def other_json(source: ModelDir, file: str) -> dict[str, Any]:
    """A JSON file beside the transformer; {} when the directory does not have it."""
    path = source.path / file
    return read_json(path) if path.exists() else {}


def latent_axes(source: ModelDir, frames: int, height: int, width: int) -> dict[str, Axis]:
    """Axes of a clip made for that many frames and pixels, in Wan's steps of 4 frames and 8 x 8 pixels.

    48 latent channels are those of Wan 2.2's VAE of 16 x 16 pixels.
    """
    config, time = source.config, 4
    space = 16 if config["out_channels"] == 48 else 8
    _, tall, wide = config["patch_size"]
    return {
        "batch": Axis(default=2, unit="clips"),
        "frames": Axis(
            default=(frames - 1) // time + 1, high=int(config.get("rope_max_seq_len", 1024)), unit="frames", stride=time, causal=True
        ),
        "height": Axis(default=height // space, multiple=tall, low=tall, unit="pixels", stride=space),
        "width": Axis(default=width // space, multiple=wide, low=wide, unit="pixels", stride=space),
    }


class RotaryTables(torch.nn.Module):
    """(cos, sin), each [tokens, head_dim], of the token grid of `hidden_states` [B, C, F, H, W]; see `rotate_neighbours`.

    `real` has tables freqs_cos, freqs_sin [positions, head_dim] with every number twice, for frames, rows and columns.
    """

    frames: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    signs: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.patch_size = real.patch_size
        side = real.attention_head_dim // 6
        tables = torch.stack([real.freqs_cos[:, 0::2], real.freqs_sin[:, 1::2]])  # [2, positions, head_dim / 2]
        frames, height, width = torch.split(tables, [real.attention_head_dim // 2 - 2 * side, side, side], -1)
        self.register_buffer("frames", frames[:, :, None, None].contiguous(), persistent=False)
        self.register_buffer("height", height[:, None, :, None].contiguous(), persistent=False)
        self.register_buffer("width", width[:, None, None].contiguous(), persistent=False)
        self.register_buffer("signs", torch.tensor([[1.0, 1.0], [-1.0, 1.0]])[:, None, None], persistent=False)

    def at(self, frames: int) -> torch.Tensor:
        """The table of that many frames [2, frames, 1, 1, dim]."""
        return self.frames[:, :frames]

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        f, h, w = grid_of(hidden_states, self.patch_size)
        tables = (self.at(f), self.height[:, :, :h], self.width[:, :, :, :w])
        grid = torch.cat([t.expand(-1, f, h, w, -1) for t in tables], -1).flatten(1, 3)
        cos, sin = (grid.unsqueeze(-1) * self.signs).flatten(2)
        return cos, sin


def grid_of(latents: torch.Tensor, patch_size: tuple[int, ...]) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens of latents [B, C, F, H, W]."""
    frames, height, width = (size // patch for size, patch in zip(latents.shape[2:], patch_size, strict=True))
    return frames, height, width


def attend(
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """An attention layer: hidden_states [B, tokens, dim] attends to itself, to text, or to an image and text.

    attention_mask is added to the scores.
    """
    memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    image = None
    if getattr(attn, "add_k_proj", None) is not None:
        image, memory = memory[:, :-TEXT_TOKENS], memory[:, -TEXT_TOKENS:]

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2)

    query, key = heads(attn.norm_q(attn.to_q(hidden_states))), heads(attn.norm_k(attn.to_k(memory)))
    if rotary_emb is not None:
        query, key = rotate_neighbours(query, *rotary_emb), rotate_neighbours(key, *rotary_emb)
    attended = plain_attention(query, key, heads(attn.to_v(memory)), attention_mask)
    if image is not None:
        key = heads(attn.norm_added_k(attn.add_k_proj(image)))
        attended = attended + plain_attention(query, key, heads(attn.add_v_proj(image)))
    out: torch.Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return out


def wan_changes(model: Any, *lists: str, times: Callable[[Any], torch.nn.Module] = TimeFrequencies) -> list[tuple[Any, str, Any]]:
    """What `replaced` sets in a model with blocks like Wan's: positions, time frequencies, attention, modulation per frame."""
    embedder = model.condition_embedder
    blocks = [b for name in lists for b in model.get_submodule(name)]
    return [
        (model, "rope", RotaryTables(model.rope)),
        (embedder, "timesteps_proj", times(embedder.timesteps_proj)),
        *((a, "processor", attend) for b in blocks for a in (b.attn1, b.attn2)),
        *((b, "forward", functools.partial(_dispatch, b, b.forward)) for b in blocks),
    ]


def _dispatch(
    block: Any, plain: Any, hidden: torch.Tensor, text: torch.Tensor, modulation: torch.Tensor, rotary: Any, *rest: Any
) -> torch.Tensor:
    """As the class does, or as `run_block`."""
    out: torch.Tensor = (plain if hidden.ndim == 3 else functools.partial(run_block, block))(hidden, text, modulation, rotary, *rest)
    return out


def run_block(
    block: Any, hidden: torch.Tensor, text: torch.Tensor, modulation: torch.Tensor, rotary: Any, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """A block over a clip [B, frames, tokens of a frame, dim], modulated by [B, frames or 1, 6, dim]."""
    parts = torch.split(block.scale_shift_table.unsqueeze(0) + modulation, 1, 2)
    shape = hidden.shape
    normed = block.norm1(hidden) * (1 + parts[1]) + parts[0]
    attended = block.attn1(normed.flatten(1, 2), attention_mask=mask, rotary_emb=rotary)
    hidden = hidden + attended.reshape(shape) * parts[2]
    hidden = hidden + block.attn2(block.norm2(hidden).flatten(1, 2), encoder_hidden_states=text).reshape(shape)
    normed = block.norm3(hidden) * (1 + parts[4]) + parts[3]
    out: torch.Tensor = hidden + block.ffn(normed.flatten(1, 2)).reshape(shape) * parts[5]
    return out


def frame_tokens(embedding: Any, latents: torch.Tensor) -> torch.Tensor:
    """Tokens [B, frames, tokens of a frame, dim] of latents [B, C, F, H, W]."""
    tokens: torch.Tensor = embedding(latents)
    return tokens.flatten(3).permute(0, 2, 3, 1)


def finish(model: Any, hidden: torch.Tensor, times: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """The prediction [B, C, F, H, W] of tokens [B, F, tokens of a frame, dim]; times [B, frames or 1, dim]."""
    shift, scale = torch.split(model.scale_shift_table.unsqueeze(0) + times.unsqueeze(2), 1, 2)
    tokens = model.proj_out((model.norm_out(hidden) * (1 + scale) + shift).flatten(1, 2))
    return unpack(tokens, latents, model.config.patch_size)


def unpack(tokens: torch.Tensor, latents: torch.Tensor, patch_size: tuple[int, int, int]) -> torch.Tensor:
    """[B, tokens, patch frames x rows x columns x channels] -> [B, channels, F, H, W], sizes as those of `latents`."""
    f, h, w = grid_of(latents, patch_size)
    tokens = tokens.reshape(latents.shape[0], f, h, w, *patch_size, -1)
    return tokens.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
