"""HunyuanVideo 1.5, text-to-video and image-to-video (diffusers HunyuanVideo15Transformer3DModel)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.axis import Axis
from vditc.correction import FrameOrder
from vditc.export.adapters.hunyuan_blocks import (
    DOUBLE_FRAMES,
    DOUBLE_ROLES,
    TEXT_ROLES,
    Joint,
    block_changes,
    key_mask,
    patch_grid,
    refiner_changes,
    unpatchify,
)
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.patches import GridRotary, TimeFrequencies, replaced
from vditc.model_dir import ModelDir

_IMAGE_TOKENS = 729  # of SigLIP at 384 pixels: 27 x 27 patches


class HunyuanVideo15(DiffusersAdapter):
    """Blocks in which text and video have weights of their own; text is of two encoders, and of an image encoder.

    `task_type` of config.json says whether the model sees an image: the class looks whether all numbers of the image are zero, and
    hides it if so. Encoded first frame and mask are constant channels behind the latents, zeros for text-to-video.
    """

    name: ClassVar[str] = "hunyuan-video-1.5"
    description: ClassVar[str] = "HunyuanVideo 1.5, text-to-video and image-to-video"
    model_class: ClassVar[str] = "HunyuanVideo15Transformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"480p121": (121, 480, 848), "720p121": (121, 720, 1280)}
    roles: ClassVar[Mapping[str, str]] = {
        r"x_embedder\.proj": "patch_embed",
        r"time_embed\.timestep_embedder(_r)?\.linear_1": "time_embed.in",
        r"time_embed\.timestep_embedder(_r)?\.linear_2": "time_embed.out",
        r"context_embedder_2\.linear_1": "text_embed.in",
        r"context_embedder_2\.linear_[23]": "text_embed.out",
        r"image_embedder\.linear_1": "image_embed.in",
        r"image_embedder\.linear_2": "image_embed.out",
        **DOUBLE_ROLES,
        **TEXT_ROLES,
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = DOUBLE_FRAMES

    def is_layer(self, source: ModelDir, weight: str) -> bool:
        """All but the table of kinds of text and what the last block computes for text, which nobody reads."""
        last = rf"transformer_blocks\.{int(source.config['num_layers']) - 1}\.(attn\.to_add_out|ff_context\.net\..*)\.weight"
        return weight != "cond_type_embed.weight" and not re.fullmatch(last, weight) and super().is_layer(source, weight)

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """One, whose last block need not update the text."""
        return (Loop(modules={"transformer_blocks": 1}, count=int(config["num_layers"]), last=1),)

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], texts of two encoders [B, T, dim] and their masks [B, T].

        Image-to-video models also image_embeds [B, image_tokens, image_embed_dim], MeanFlow models timestep_r [B].
        """
        config = source.config
        specs = [
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["text_embed_dim"]))),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
            InputSpec("encoder_hidden_states_2", "float32", ("batch", "text_tokens_2", int(config["text_embed_2_dim"]))),
            InputSpec("encoder_attention_mask_2", "int64", ("batch", "text_tokens_2"), "mask"),
        ]
        if config["task_type"] == "i2v":
            specs.append(InputSpec("image_embeds", "float32", ("batch", "image_tokens", int(config["image_embed_dim"]))))
        if config.get("use_meanflow"):
            specs.append(InputSpec("timestep_r", "float32", ("batch",), "timestep"))
        return tuple(specs)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """121 frames of 480 x 848 or 720 x 1280: latent 31 x 30 x 53 or 31 x 45 x 80."""
        config = source.config
        depth, patch = int(config["patch_size_t"]), int(config["patch_size"])
        height, width = (30, 53) if int(config.get("target_size", 640)) <= 640 else (45, 80)
        side: dict[str, Any] = {"low": patch, "multiple": patch, "unit": "pixels", "stride": 16}
        axes = {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=31, low=depth, multiple=depth, unit="frames", stride=4, causal=True),
            "height": Axis(default=height, **side),
            "width": Axis(default=width, **side),
            "text_tokens": Axis(default=1000),
            "text_tokens_2": Axis(default=256),
        }
        if config["task_type"] == "i2v":
            axes["image_tokens"] = Axis(default=_IMAGE_TOKENS)
        return axes

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Texts one behind the other with hidden tokens where they are, instead of packed; hidden by an additive mask; rotary tables
        made for each axis; plain attention.

        All float32 operations are the same but for softmax(q k^T) v. The image that text-to-video hides is left out.
        """
        rotary, embed = GridRotary(model.config.rope_axes_dim, model.config.rope_theta), model.time_embed
        changes = [(embed, "time_proj", TimeFrequencies(embed.time_proj))]
        if embed.use_meanflow:
            changes.append((embed, "time_proj_r", TimeFrequencies(embed.time_proj_r)))
        with replaced(
            (model, "rope", rotary),
            (model, "forward", functools.partial(_run, model)),
            *changes,
            *refiner_changes(model.context_embedder, first_seen=False),
            *block_changes(model),
        ):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        feeds, latents = dict(feeds), feeds["hidden_states"]
        if "image_embeds" not in feeds:
            feeds["image_embeds"] = latents.new_zeros(latents.shape[0], 1, model.config.image_embed_dim)
        return model(**feeds, return_dict=False)[0]

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Without an image, pipelines pass zeros for one, which the class sees as none."""
        feeds = dict(call)
        if "image_embeds" in feeds and config["task_type"] != "i2v" and not feeds["image_embeds"].any():
            del feeds["image_embeds"]
        return feeds


def _run(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    encoder_hidden_states_2: torch.Tensor,
    encoder_attention_mask_2: torch.Tensor,
    image_embeds: torch.Tensor,
    timestep_r: torch.Tensor | None = None,
    return_dict: bool = False,
) -> tuple[torch.Tensor]:
    """The whole model; see `HunyuanVideo15.inputs`."""
    config = model.config
    patch, grid = patch_grid(model, hidden_states)
    rotary = model.rope(*(torch.arange(n, dtype=torch.float32, device=hidden_states.device) for n in grid))
    embedded = model.time_embed(timestep, timestep_r)
    kinds = model.cond_type_embed.weight
    texts = [
        model.context_embedder_2(encoder_hidden_states_2) + kinds[1],
        model.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask) + kinds[0],
    ]
    masks = [key_mask(encoder_attention_mask_2), key_mask(encoder_attention_mask)]
    if config.task_type == "i2v":
        texts.insert(0, model.image_embedder(image_embeds) + kinds[2])
        masks.insert(0, key_mask(torch.ones_like(texts[0][..., 0])))
    video, text = model.x_embedder(hidden_states), torch.cat(texts, 1)
    joint = Joint(embedded, None, rotary, torch.cat(masks, -1), grid[1] * grid[2])
    for block in model.transformer_blocks:
        video, text = block(video, text, joint)
    return (unpatchify(model.proj_out(model.norm_out(video, embedded)), grid, patch),)
