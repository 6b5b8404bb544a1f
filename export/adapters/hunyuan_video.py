"""HunyuanVideo, text-to-video and both kinds of image-to-video (diffusers HunyuanVideoTransformer3DModel)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.correction import FrameOrder
from vditc.export.adapters.hunyuan_blocks import (
    DOUBLE_FRAMES,
    TEXT_ROLES,
    VIDEO_ROLES,
    Joint,
    block_changes,
    counted,
    key_mask,
    patch_grid,
    refiner_changes,
    unpatchify,
)
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.patches import GridRotary, TimeFrequencies, replaced
from vditc.model_dir import ModelDir


class HunyuanVideo(DiffusersAdapter):
    """Blocks in which text and video have weights of their own, then blocks that treat both as one sequence.

    Of the image-to-video models one sees the encoded first frame and a mask as constant channels behind the latents
    (`latent_concat`); the other gets it in place of the first latent, whose tokens are modulated as at time 0 (`token_replace`).
    """

    name: ClassVar[str] = "hunyuan-video"
    description: ClassVar[str] = "HunyuanVideo, text-to-video and image-to-video"
    model_class: ClassVar[str] = "HunyuanVideoTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"544p129": (129, 544, 960), "720p129": (129, 720, 1280)}
    roles: ClassVar[Mapping[str, str]] = {**VIDEO_ROLES, **TEXT_ROLES}
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = DOUBLE_FRAMES

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states [B, text_tokens, text_embed_dim], its mask [B, text_tokens],
        pooled_projections [B, pooled_projection_dim]; distilled models also guidance [B], a thousand times the scale."""
        config = source.config
        specs = [
            InputSpec("hidden_states", "float32", ("batch", int(config["in_channels"]), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(config["text_embed_dim"]))),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
            InputSpec("pooled_projections", "float32", ("batch", int(config["pooled_projection_dim"]))),
        ]
        if config.get("guidance_embeds"):
            specs.append(InputSpec("guidance", "float32", ("batch",), 6000.0))
        return tuple(specs)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """129 frames of 720 x 1280: latent 33 x 90 x 160."""
        config = source.config
        depth, patch = int(config["patch_size_t"]), int(config["patch_size"])
        side: dict[str, Any] = {"low": patch, "multiple": patch, "unit": "pixels", "stride": 8}
        return {
            "batch": Axis(default=1 if config.get("guidance_embeds") else 2, unit="clips"),
            "frames": Axis(default=33, low=depth, multiple=depth, unit="frames", stride=4, causal=True),
            "height": Axis(default=90, **side),
            "width": Axis(default=160, **side),
            "text_tokens": Axis(default=256),
        }

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Text hidden by an additive mask; rotary tables made for each axis; a single sequence through the single blocks; what differs
        between the first frame's tokens and others chosen token by token; plain attention.

        All float32 operations are the same but for softmax(q k^T) v. Hidden text tokens, which nobody reads, get other values.
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

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted velocity [B, C, F, H, W]."""
        return model(**feeds, return_dict=False)[0]


def _run(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    pooled_projections: torch.Tensor,
    guidance: torch.Tensor | None = None,
    return_dict: bool = False,
) -> tuple[torch.Tensor]:
    """The whole model; see `HunyuanVideo.inputs`."""
    patch, grid = patch_grid(model, hidden_states)
    rotary = model.rope(*(torch.arange(n, dtype=torch.float32, device=hidden_states.device) for n in grid))
    embedded, first_embedded = model.time_text_embed(timestep, pooled_projections, guidance)
    video = model.x_embedder(hidden_states)
    text = model.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask)
    joint = Joint(embedded, first_embedded, rotary, key_mask(counted(encoder_attention_mask)), grid[1] * grid[2])
    for block in model.transformer_blocks:
        video, text = block(video, text, joint)
    tokens, both = video.shape[1], torch.cat([video, text], 1)
    for block in model.single_transformer_blocks:
        both = block(both, joint)
    return (unpatchify(model.proj_out(model.norm_out(both[:, :tokens], embedded)), grid, patch),)
