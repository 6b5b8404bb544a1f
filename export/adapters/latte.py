"""Latte text-to-video (diffusers LatteTransformer3DModel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.correction import FrameOrder
from vditc.export.adapters.pixart import PixArt, block_patches, head, text_dim
from vditc.export.frame_orders import block_frames, frames_first
from vditc.export.patches import replaced
from vditc.model_dir import ModelDir
from vditc.profile import Axis


class Latte(PixArt):
    """PixArt's blocks in turns: one over the tokens of each frame, with text, then one over the frames of each token.

    Clips may be shorter than the video_length that the model was made for. The pipeline cuts padding off the text, so there is
    no mask. Temporal attention, which a pipeline can leave out for single images, is always there.
    """

    name: ClassVar[str] = "latte"
    description: ClassVar[str] = "Latte text-to-video"
    model_class: ClassVar[str] = "LatteTransformer3DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers", "temporal_transformer_blocks": "num_layers"}
    published: ClassVar[Mapping[str, Any]] = {"patch_size": 2, "sample_size": 64, "num_layers": 28, "caption_channels": 4096}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"512p16": (16, 512, 512)}
    roles: ClassVar[Mapping[str, str]] = {
        **PixArt.roles,
        r"temporal_transformer_blocks\.\d+\.attn1\.to_q": "temporal_attn.q",
        r"temporal_transformer_blocks\.\d+\.attn1\.to_k": "temporal_attn.k",
        r"temporal_transformer_blocks\.\d+\.attn1\.to_v": "temporal_attn.v",
        r"temporal_transformer_blocks\.\d+\.attn1\.to_out\.0": "temporal_attn.out",
        r"temporal_transformer_blocks\.\d+\.ff\.net\.0\.proj": "ffn.in",
        r"temporal_transformer_blocks\.\d+\.ff\.net\.2": "ffn.out",
    }
    # Text is repeated for every frame in diffusers' module and broadcast in the exported one, so its layers have no order.
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {
        **block_frames(),
        r"temporal_transformer_blocks\.\d+\.(attn1\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))": FrameOrder.TOKENS_FIRST,
        **frames_first("proj_out"),
    }

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """One iteration is a block of either list."""
        return (Loop(modules=dict.fromkeys(self.lists, 1), count=int(config["num_layers"])),)

    def shortened(self, config: Mapping[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
        """One length for both lists."""
        return {**config, "num_layers": counts[0]}

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states [B, text_tokens, caption_channels]."""
        return (
            InputSpec("hidden_states", "float32", ("batch", self.latent_channels(source), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", text_dim(source.config))),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """512 pixels, 16 frames, each of them a latent frame."""
        size, patch = int(source.config.get("sample_size", 64)), int(source.config["patch_size"])
        frames = int(source.config.get("video_length", 16))
        side = Axis(default=size, low=patch, multiple=patch, unit="pixels", stride=8)
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": Axis(default=frames, high=frames, unit="frames"),
            "height": side,
            "width": side,
            "text_tokens": Axis(default=120),
        }

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """PixArt's patches; text and modulation broadcast over frames and tokens instead of being repeated.

        A single frame gets no temporal positions, as before, whatever the size that was traced.
        """
        with replaced((model, "forward", partial(_forward, model)), *block_patches(model)):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted noise and variances [B, 2 C, F, H, W]."""
        frames = feeds["hidden_states"].shape[2]
        with replaced((model, "temp_pos_embed", model.temp_pos_embed[:, :frames])):
            return model(
                hidden_states=feeds["hidden_states"],
                timestep=feeds["timestep"],
                encoder_hidden_states=feeds["encoder_hidden_states"],
                return_dict=False,
            )[0]

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """InputError where attention across frames is switched off."""
        feeds = dict(call)
        if feeds.pop("enable_temporal_attentions", True) is not True:
            raise self.no_form("enable_temporal_attentions = False", "True: blocks across frames are part of the graph")
        return feeds


def _forward(
    model: Any, *, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, return_dict: bool
) -> tuple[torch.Tensor]:
    """hidden_states [B, C, F, H, W] -> [B, 2 C, F, H, W]."""
    batch, _, frames, height, width = hidden_states.shape
    height, width = height // model.config.patch_size, width // model.config.patch_size
    time, embedded = model.adaln_single(timestep, None, batch_size=batch, hidden_dtype=hidden_states.dtype)
    text = model.caption_projection(encoder_hidden_states)
    several = torch.arange(frames, dtype=torch.float32).amax(0).clamp(max=1.0)  # 0 for a single frame
    positions = model.temp_pos_embed.expand(-1, frames, -1).unsqueeze(1) * several
    x = torch.unflatten(model.pos_embed(hidden_states.transpose(1, 2).flatten(0, 1)), 0, (batch, frames))
    for i, (spatial, temporal) in enumerate(zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)):
        x = spatial(x, time, text).transpose(1, 2)
        x = temporal(x + positions if i == 0 else x, time).transpose(1, 2)
    return (head(model, x, embedded, height, width),)
