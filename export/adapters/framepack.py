"""HunyuanVideo FramePack, which continues a clip section by section (diffusers HunyuanVideoFramepackTransformer3DModel)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.correction import FrameOrder
from vditc.export.adapters.hunyuan_blocks import Joint, block_changes, counted, key_mask, patch_grid, refiner_changes, unpatchify
from vditc.export.adapters.hunyuan_video import HunyuanVideo
from vditc.export.patches import GridRotary, TimeFrequencies, replaced
from vditc.model_dir import ModelDir

Pair = tuple[torch.Tensor, torch.Tensor]
_HISTORY = {"latents_clean": (2, 1), "latents_history_2x": (2, 2), "latents_history_4x": (16, 4)}  # latent frames, how much coarser
_COARSEST = 4
_IMAGE_TOKENS = 729  # of SigLIP at 384 pixels: 27 x 27 patches


class Framepack(HunyuanVideo):
    """HunyuanVideo that also sees what is before, the older the coarser, and tokens of an image encoder.

    The number of old latents is that of the published samplers: the first and the last one, 2 before it, and 16 before those.
    Which frames all of them are is not a size but the sampler's plan, so `indices_*` are inputs.
    """

    name: ClassVar[str] = "framepack"
    description: ClassVar[str] = "HunyuanVideo FramePack and FramePack-F1, image-to-video by sections"
    model_class: ClassVar[str] = "HunyuanVideoFramepackTransformer3DModel"
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p33": (33, 480, 832)}  # of one section
    roles: ClassVar[Mapping[str, str]] = {
        **HunyuanVideo.roles,
        r"clean_x_embedder\.proj(_[24]x)?": "patch_embed",
        r"image_projection\.up": "image_embed.in",
        r"image_projection\.down": "image_embed.out",
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {}  # what is before comes in front of the clip's tokens

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Those of `HunyuanVideo`, image_embeds [B, image_tokens, image_proj_dim], old latents [B, C, 2 or 16, H, W]; int64 indices."""
        config = source.config
        specs = [
            *super().inputs(source),
            InputSpec("image_embeds", "float32", ("batch", "image_tokens", int(config["image_proj_dim"]))),
            InputSpec("indices_latents", "int64", ("frames",), "timestep"),
        ]
        for name, (frames, _) in _HISTORY.items():
            specs.append(InputSpec(name, "float32", ("batch", int(config["in_channels"]), frames, "height", "width")))
            specs.append(InputSpec(f"indices_{name}", "int64", (frames,), "timestep"))
        return tuple(specs)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """A section of 33 frames of 480 x 832: latent 9 x 60 x 104. At least two of the coarsest tokens a side."""
        own: dict[str, dict[str, Any]] = {"frames": {"default": 9}, "height": {"default": 60}, "width": {"default": 104}}
        least = {"low": (_COARSEST + 1) * int(source.config["patch_size"])}  # one token a side would be traced as another graph
        own |= {side: {**own[side], **least} for side in ("height", "width")}
        axes = {n: dataclasses.replace(a, **own.get(n, {})) for n, a in super().axes(source).items()}
        return {**axes, "image_tokens": Axis(default=_IMAGE_TOKENS)}

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """As `HunyuanVideo`, for every batch size: the class cuts the text of a single clip, and hides it of several clips.

        Edges are repeated by taking rows and columns by their number. Coarse rotary tables are averaged along each axis, where the
        class averages over blocks of the whole grid: same numbers, another rounding.
        """
        rotary = GridRotary(model.config.rope_axes_dim, model.config.rope_theta)
        embed = model.time_text_embed
        with replaced(
            (model, "rope", rotary),
            (model, "forward", functools.partial(_run, model)),
            (embed, "time_proj", TimeFrequencies(embed.time_proj)),
            *refiner_changes(model.context_embedder, first_seen=True),
            *block_changes(model),
        ):
            yield


def _run(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    pooled_projections: torch.Tensor,
    image_embeds: torch.Tensor,
    indices_latents: torch.Tensor,
    guidance: torch.Tensor | None = None,
    return_dict: bool = False,
    **history: torch.Tensor,
) -> tuple[torch.Tensor]:
    """The whole model; see `Framepack.inputs`."""
    config, embedder = model.config, model.clean_x_embedder
    patch, grid = patch_grid(model, hidden_states)
    video = model.x_embedder(hidden_states)
    tokens = video.shape[1]
    rotary = _rotary(model.rope, indices_latents, grid, 1)
    convolutions = {"latents_clean": embedder.proj, "latents_history_2x": embedder.proj_2x, "latents_history_4x": embedder.proj_4x}
    for name, (_, coarser) in _HISTORY.items():  # each in front of the one before
        latents = history[name]
        for axis, size in ((3, grid[1]), (4, grid[2])):
            padded = _coarse(size, coarser) * coarser * config.patch_size
            latents = latents.index_select(axis, _repeat_edge(latents.shape[axis], padded))
        video = torch.cat([convolutions[name](latents).flatten(2).transpose(1, 2), video], 1)
        old = _rotary(model.rope, history[f"indices_{name}"], grid, coarser)
        rotary = torch.cat([old[0], rotary[0]]), torch.cat([old[1], rotary[1]])
    embedded, _ = model.time_text_embed(timestep, pooled_projections, guidance)
    image = model.image_projection(image_embeds)
    text = torch.cat([image, model.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask)], 1)
    mask = torch.cat([key_mask(torch.ones_like(image[..., 0])), key_mask(counted(encoder_attention_mask))], -1)
    joint = Joint(embedded, None, rotary, mask, 0)
    for block in model.transformer_blocks:
        video, text = block(video, text, joint)
    first, last, both = video.shape[1] - tokens, video.shape[1], torch.cat([video, text], 1)
    for block in model.single_transformer_blocks:
        both = block(both, joint)
    return (unpatchify(model.proj_out(model.norm_out(both[:, first:last], embedded)), grid, patch),)


def _coarse(size: int, coarser: int) -> int:
    """Tokens along an axis that has `size` fine ones, the last ones repeated."""
    return (size + coarser - 1) // coarser


def _repeat_edge(size: int, wanted: int) -> torch.Tensor:
    """0, 1, ..., size - 1, size - 1, ...: `wanted` numbers."""
    return torch.arange(wanted).clamp(max=size - 1)


def _rotary(rope: GridRotary, frames: torch.Tensor, grid: tuple[int, ...], coarser: int) -> Pair:
    """Tables of the tokens of latent frames number `frames` [n], averaged over `coarser` frames, rows and columns."""
    positions = (frames, *(_repeat_edge(size, _coarse(size, coarser) * coarser) for size in grid[1:]))
    tables = [rope.axis(i, p.to(torch.float32)) for i, p in enumerate(positions)]
    if coarser > 1:
        tables = [torch.unflatten(table, 1, (-1, coarser)).mean(2) for table in tables]
    return rope.grid(*tables)
