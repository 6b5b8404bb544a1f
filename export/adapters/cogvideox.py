"""CogVideoX 1.0 and 1.5, text-to-video and image-to-video (diffusers CogVideoXTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from vditc.adapter import InputSpec, Loop
from vditc.axis import Axis
from vditc.correction import FrameOrder
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.patches import GridRotary, TimeFrequencies, plain_attention, replaced, rotate_neighbours, still
from vditc.model_dir import ModelDir

Pair = tuple[torch.Tensor, torch.Tensor]
Grid = tuple[int, int, int]
_THETA = 10000.0
_FRAMES_STEP = 4  # of the VAE that every published model has
_PIXELS_STEP = 8


class CogVideoX(DiffusersAdapter):
    """Blocks in which text and video tokens are one sequence, normed and gated apart.

    Positions are a sum of sines (2B), rotations scaled to the size that the model was trained at (5B), learned besides (5B-I2V),
    or rotations by plain coordinates (1.5, whose patches are two frames deep). Image-to-video models see the encoded first frame
    as constant channels behind the latents.
    """

    name: ClassVar[str] = "cogvideox"
    description: ClassVar[str] = "CogVideoX 1.0 and 1.5, text-to-video and image-to-video"
    model_class: ClassVar[str] = "CogVideoXTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    # 1.5 rounds latent frames up to whole patches: 81 frames, 21 latents, become 22 latents, 85 frames
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p49": (49, 480, 720), "768p85": (85, 768, 1360)}
    roles: ClassVar[Mapping[str, str]] = {
        r"patch_embed\.proj": "patch_embed",
        r"patch_embed\.text_proj": "text_embed.in",
        r"time_embedding\.linear_1": "time_embed.in",
        r"time_embedding\.linear_2": "time_embed.out",
        r"ofs_embedding\.linear_1": "other_embed.in",
        r"ofs_embedding\.linear_2": "other_embed.out",
        r"transformer_blocks\.\d+\.norm[12]\.linear": "modulation",
        r"transformer_blocks\.\d+\.attn1\.to_q": "self_attn.q",
        r"transformer_blocks\.\d+\.attn1\.to_k": "self_attn.k",
        r"transformer_blocks\.\d+\.attn1\.to_v": "self_attn.v",
        r"transformer_blocks\.\d+\.attn1\.to_out\.0": "self_attn.out",
        r"transformer_blocks\.\d+\.ff\.net\.0\.proj": "ffn.in",
        r"transformer_blocks\.\d+\.ff\.net\.2": "ffn.out",
        r"norm_out\.linear": "modulation",
        r"proj_out": "head",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {}  # attention and feed-forward see text and video as one sequence

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """One, whose last block need not update the text."""
        return (Loop(modules={"transformer_blocks": 1}, count=int(config["num_layers"]), last=1),)

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], encoder_hidden_states [B, text_tokens, text_embed_dim], timestep [B]; 1.5-I2V also ofs [1].

        A model with added positions has one of them for every text token, so the text has the length of config.json. Learned
        positions (5B-I2V) fix the clip's size as well: the class refuses other heights and widths, and takes other, untrained
        positions for other frames.
        """
        config = source.config
        frames: int | str = "frames"
        height: int | str = "height"
        width: int | str = "width"
        if _learned(config):
            frames = (int(config["sample_frames"]) - 1) // int(config["temporal_compression_ratio"]) + 1
            height, width = int(config["sample_height"]), int(config["sample_width"])
        added = _learned(config) or not config.get("use_rotary_positional_embeddings")
        text: int | str = int(config["max_text_seq_length"]) if added else "text_tokens"
        specs = [
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), frames, height, width)),
            InputSpec("encoder_hidden_states", "float32", ("batch", text, int(config["text_embed_dim"]))),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
        ]
        if config.get("ofs_embed_dim"):
            specs.append(InputSpec("ofs", "float32", (1,), 2.0))
        return tuple(specs)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """1.0: 49 frames of 480 x 720, latent 13 x 60 x 90. 1.5: 85 frames of 768 x 1360, latent 22 x 96 x 170."""
        config = source.config
        patch, depth = int(config["patch_size"]), int(config.get("patch_size_t") or 1)
        frames, height, width = (22, 96, 170) if depth > 1 else (13, int(config["sample_height"]), int(config["sample_width"]))
        # 1.5 has coordinates for so many rows and columns; 1.0 scales any number of them
        high = {n: int(config[f"sample_{n}"]) if depth > 1 else None for n in ("height", "width")}
        side: dict[str, Any] = {"low": patch, "multiple": patch, "unit": "pixels", "stride": _PIXELS_STEP}
        axes = {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=frames, low=depth, multiple=depth, unit="frames", stride=_FRAMES_STEP, causal=True),
            "height": Axis(default=height, high=high["height"], **side),
            "width": Axis(default=width, high=high["width"], **side),
            "text_tokens": Axis(default=int(config["max_text_seq_length"])),
        }
        named = {d for spec in self.inputs(source) for d in spec.dims}
        return {name: axis for name, axis in axes.items() if name in named}

    def build(self, config: Mapping[str, Any]) -> Any:
        """See `DiffusersAdapter`; learned positions in float32, where the class starts with float64."""
        model = super().build(config)
        if _learned(config):
            model.patch_embed.pos_embedding = model.patch_embed.pos_embedding.to(torch.float32)
        return model

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Positions made of symbolic sizes; rotation without indexed assignment, of the whole sequence, text by zero; plain attention.

        Rotation is the same float32 operations; its tables and the sines, which the class computes in float64, differ in the
        last bits, softmax(q k^T) v too. The scale of 1.0's coordinates is rounded to whole patches, ties to even; the class
        meets ties with the error of its division: another scale at 9 of 40000 grids up to 200 x 200, all beyond 3:1.
        """
        changes = [(model, "patch_embed", _Embed(model)), (model, "time_proj", TimeFrequencies(model.time_proj))]
        if getattr(model, "ofs_proj", None) is not None:
            changes.append((model, "ofs_proj", TimeFrequencies(model.ofs_proj)))
        attentions = [block.attn1 for block in model.transformer_blocks]
        with replaced(*changes, *((attn, "forward", functools.partial(attend, attn)) for attn in attentions)):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        feeds = dict(feeds)
        latents, text = feeds.pop("hidden_states").transpose(1, 2), feeds["encoder_hidden_states"]
        rotary = None
        if model.config.use_rotary_positional_embeddings:
            config, grid, own = model.config, grid_of(latents, model.config), getattr(model.patch_embed, "rotary", None)
            sizes = config.sample_height // config.patch_size, config.sample_width // config.patch_size
            base = None if getattr(config, "patch_size_t", None) else sizes
            if own is None:
                rotary = plain_rotary(config.attention_head_dim, grid, base, latents.device)
            else:
                rotary = still(text.shape[1], own(*own.positions(grid, base)))
        return model(hidden_states=latents, image_rotary_emb=rotary, **feeds, return_dict=False)[0].transpose(1, 2)

    made_inside: ClassVar[frozenset[str]] = frozenset({"image_rotary_emb"})

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The class has frames before channels."""
        return {**call, "hidden_states": call["hidden_states"].transpose(1, 2)}

    def handed_back(self, prediction: Any, call: Mapping[str, Any]) -> Any:
        """[B, F, C, H, W]."""
        return prediction.transpose(1, 2)


def _learned(config: Mapping[str, Any]) -> bool:
    return bool(config.get("use_learned_positional_embeddings"))


def grid_of(latents: torch.Tensor, config: Any) -> Grid:
    """Frames, rows and columns of tokens of latents [B, F, C, H, W]."""
    frames, _, height, width = latents.shape[1:]
    return frames // (getattr(config, "patch_size_t", None) or 1), height // config.patch_size, width // config.patch_size


def plain_rotary(dim: int, grid: Grid, base: tuple[int, int] | None, device: torch.device) -> Pair:
    """(cos, sin), each [tokens, dim], by diffusers, of a grid of known size; `base`: rows and columns that it is scaled to."""
    frames, height, width = grid
    if base is None:
        return get_3d_rotary_pos_embed(dim, None, (height, width), frames, grid_type="slice", max_size=(height, width), device=device)  # type: ignore[no-any-return]
    tall, wide = base
    high = height / width > tall / wide
    size = (tall, round(tall / height * width)) if high else (round(wide / width * height), wide)
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    region = (top, left), (top + size[0], left + size[1])
    return get_3d_rotary_pos_embed(dim, region, (height, width), frames, device=device)  # type: ignore[no-any-return]


class Rotary(GridRotary):
    """The same of a grid of any size, sin with the signs of `rotate_neighbours`."""

    def __init__(self, dim: int) -> None:
        super().__init__((dim // 4, dim // 8 * 3, dim // 8 * 3), _THETA)

    def positions(self, grid: Grid, base: tuple[int, ...] | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Coordinates of frames, rows and columns; `base` as in `plain_rotary`."""
        times, rows, columns = (torch.arange(n, dtype=torch.float32) for n in grid)
        return (times, rows, columns) if base is None else (times, *_scaled(rows, columns, grid[1], grid[2], base))


def _scaled(rows: torch.Tensor, columns: torch.Tensor, height: int, width: int, base: tuple[int, ...]) -> Pair:
    """Coordinates of a grid that is fitted into the middle of the grid `base`, whole patches."""
    tall, wide = (float(n) for n in base)
    h, w = (torch.scalar_tensor(n, dtype=torch.float32) for n in (height, width))
    found = []
    # products of small integers are exact in float32, and so is the rounding of their quotients
    for line, n, across, most, other in ((rows, h, w, tall, wide), (columns, w, h, wide, tall)):
        size = torch.clamp(torch.round(n * other / across), max=most)
        start = torch.round((most - size) * 0.5)
        end = (start + size) * (n - 1) / n
        found.append(start + line * ((end - start) / torch.clamp(n - 1, min=1.0)))
    return found[0], found[1]


class _Embed(torch.nn.Module):
    """The model's patch embedding with positions of any size, and the rotations of its blocks."""

    pos_embedding: torch.Tensor
    frames: torch.Tensor
    sides: torch.Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        real = model.patch_embed
        self.patch_size, self.patch_size_t = real.patch_size, real.patch_size_t
        self.scales = real.temporal_interpolation_scale, real.spatial_interpolation_scale
        self.proj, self.text_proj = real.proj, real.text_proj
        self.rotary = Rotary(model.config.attention_head_dim)
        self.added = real.use_positional_embeddings
        self.learned = real.use_learned_positional_embeddings
        if self.learned:
            self.register_buffer("pos_embedding", real.pos_embedding)
        elif self.added:
            dim: int = real.embed_dim
            for name, part in (("frames", dim // 4), ("sides", 3 * dim // 8)):
                exponent = torch.arange(part // 2, dtype=torch.float64) / (part / 2)
                self.register_buffer(name, (1.0 / _THETA**exponent).to(torch.float32), persistent=False)

    def forward(self, text: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """text [B, T, text_embed_dim] and latents [B, F, C, H, W] -> tokens [B, T + video tokens, dim], the text first."""
        batch, frames, _, height, width = latents.shape
        p = self.patch_size
        if self.patch_size_t is None:
            video = torch.unflatten(self.proj(latents.flatten(0, 1)).flatten(2).transpose(1, 2), 0, (batch, frames)).flatten(1, 2)
        else:
            t = self.patch_size_t
            patches = latents
            for axis, size, part in ((4, width, p), (3, height, p), (1, frames, t)):
                patches = torch.unflatten(patches, axis, (size // part, part))
            video = self.proj(patches.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3))
        words = self.text_proj(text)
        if self.learned:
            return torch.cat([words, video], 1) + self.pos_embedding
        if self.added:
            video = video + self.sines((frames, height // p, width // p))
        return torch.cat([words, video], 1)

    def sines(self, grid: Grid) -> torch.Tensor:
        """Sines and cosines of frame, column and row: [tokens, dim]."""
        time, space = self.scales
        times, rows, columns = (torch.arange(n, dtype=torch.float32) / s for n, s in zip(grid, (time, space, space), strict=True))
        angles = (
            torch.outer(times, self.frames)[:, None, None],
            torch.outer(columns, self.sides)[None, None],
            torch.outer(rows, self.sides)[None, :, None],
        )
        return torch.cat([torch.cat([torch.sin(a), torch.cos(a)], -1).expand(*grid, -1) for a in angles], -1).flatten(0, 2)


def attend(
    attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, image_rotary_emb: Pair | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Video [B, tokens, dim] and text [B, T, dim] attend to both; rotations [T + tokens, head_dim], or none."""
    length = encoder_hidden_states.shape[1]
    both = torch.cat([encoder_hidden_states, hidden_states], 1)
    query, key, value = (
        torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(both), attn.to_k(both), attn.to_v(both))
    )
    if attn.norm_q is not None:
        query, key = attn.norm_q(query), attn.norm_k(key)
    if image_rotary_emb is not None:
        query, key = rotate_neighbours(query, *image_rotary_emb), rotate_neighbours(key, *image_rotary_emb)
    out = attn.to_out[0](plain_attention(query, key, value).transpose(1, 2).flatten(2))
    return out[:, length:], out[:, :length]
