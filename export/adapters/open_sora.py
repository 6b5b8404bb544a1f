"""Open-Sora 1.0 (STDiT) and 1.2 (STDiT3), which diffusers has no classes for; docs/open_sora.md says how to get a model directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec, Loop
from vditc.correction import FrameOrder
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.frame_orders import frames_first
from vditc.export.open_sora.stdit import STDiT
from vditc.export.open_sora.stdit3 import STDiT3
from vditc.model_dir import ModelDir
from vditc.profile import Axis

STRIDE = 8  # pixels of a latent
ENDS = {
    r"x_embedder\.proj": "patch_embed",
    r"y_embedder\.y_proj\.fc1": "text_embed.in",
    r"y_embedder\.y_proj\.fc2": "text_embed.out",
    r"t_embedder\.mlp\.0": "time_embed.in",
    r"t_embedder\.mlp\.2": "time_embed.out",
    r"fps_embedder\.mlp\.0": "other_embed.in",
    r"fps_embedder\.mlp\.2": "other_embed.out",
    r"t_block\.1": "modulation",
    r"final_layer\.linear": "head",
}


def _block(prefix: str) -> dict[str, str]:
    """Roles of what every block has."""
    return {
        rf"{prefix}\.\d+\.cross_attn\.q_linear": "cross_attn.q",
        rf"{prefix}\.\d+\.cross_attn\.kv_linear": "cross_attn.kv",
        rf"{prefix}\.\d+\.cross_attn\.proj": "cross_attn.out",
        rf"{prefix}\.\d+\.mlp\.fc1": "ffn.in",
        rf"{prefix}\.\d+\.mlp\.fc2": "ffn.out",
    }


class OpenSora(DiffusersAdapter):
    """PixArt's blocks with attention across frames. The modules are our own and need no patches.

    The prediction may have learned variances (1.0), or channels that sampling ignores (1.2), behind those of the latents.
    """

    name: ClassVar[str] = "open-sora"
    description: ClassVar[str] = "Open-Sora 1.0 text-to-video"
    model_class: ClassVar[str] = "STDiT"
    in_pipelines: ClassVar[bool] = False
    lists: ClassVar[Mapping[str, str]] = {"blocks": "depth"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "256p16": (16, 256, 256),
        "512p16": (16, 512, 512),
        "512p64": (64, 512, 512),
    }
    roles: ClassVar[Mapping[str, str]] = {
        **ENDS,
        r"blocks\.\d+\.attn\.qkv": "self_attn.qkv",
        r"blocks\.\d+\.attn\.proj": "self_attn.out",
        r"blocks\.\d+\.attn_temp\.qkv": "temporal_attn.qkv",
        r"blocks\.\d+\.attn_temp\.proj": "temporal_attn.out",
        **_block("blocks"),
    }
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {
        **frames_first(r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|proj)|mlp\.fc[12])", r"final_layer\.linear"),
        r"blocks\.\d+\.attn_temp\.(qkv|proj)": FrameOrder.TOKENS_FIRST,
    }

    def class_(self) -> Any:
        """Not of diffusers."""
        return STDiT

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """One iteration is a block of each list."""
        return (Loop(modules=dict.fromkeys(self.lists, 1), count=int(config.get("depth", 28))),)

    def shortened(self, config: Mapping[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
        """One length for all lists."""
        return {**config, "depth": counts[0]}

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states [B, text_tokens, caption_channels] and its mask."""
        return (
            InputSpec("hidden_states", "float32", ("batch", self.latent_channels(source), "frames", "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", int(source.config.get("caption_channels", 4096)))),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
        )

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """16 frames of 512 x 512 pixels, each frame a latent."""
        return self.clip(source, Axis(default=16, unit="frames"), (64, 64), 120)

    def clip(self, source: ModelDir, frames: Axis, sides: tuple[int, int], text: int) -> dict[str, Axis]:
        """Axes of a family member."""
        patch = source.config.get("patch_size", (1, 2, 2))
        height, width = (
            Axis(default=side, low=p, multiple=p, unit="pixels", stride=STRIDE) for side, p in zip(sides, patch[1:], strict=True)
        )
        tokens = int(source.config.get("model_max_length", text))
        return {
            "batch": Axis(default=2, unit="clips"),
            "frames": frames,
            "height": height,
            "width": width,
            "text_tokens": Axis(default=tokens),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """Those that go in."""
        return int(source.config.get("in_channels", 4))

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """The prediction [B, C or 2 C, F, H, W]."""
        return model(**feeds)


class OpenSora12(OpenSora):
    """Blocks over the tokens of each frame and blocks over the frames of each place in turns; rotary positions of frames.

    The VAE makes 5 latents of every 17 frames, so a clip's length is told in latents: 15 of 51 frames, 2 seconds.
    """

    name: ClassVar[str] = "open-sora-1.2"
    description: ClassVar[str] = "Open-Sora 1.2 text-to-video"
    model_class: ClassVar[str] = "STDiT3"
    lists: ClassVar[Mapping[str, str]] = {"spatial_blocks": "depth", "temporal_blocks": "depth"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "144p51": (15, 144, 256),
        "240p51": (15, 240, 416),
        "480p51": (15, 480, 848),
        "480p102": (30, 480, 848),
        "720p51": (15, 720, 1280),
        "720p102": (30, 720, 1280),
    }
    roles: ClassVar[Mapping[str, str]] = {
        **ENDS,
        r"spatial_blocks\.\d+\.attn\.qkv": "self_attn.qkv",
        r"spatial_blocks\.\d+\.attn\.proj": "self_attn.out",
        r"temporal_blocks\.\d+\.attn\.qkv": "temporal_attn.qkv",
        r"temporal_blocks\.\d+\.attn\.proj": "temporal_attn.out",
        **_block("(spatial|temporal)_blocks"),
    }
    # Temporal blocks go over the frames of a place in their self-attention alone.
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {
        **frames_first(
            r"spatial_blocks\.\d+\.attn\.(qkv|proj)",
            r"(spatial|temporal)_blocks\.\d+\.(cross_attn\.(q_linear|proj)|mlp\.fc[12])",
            r"final_layer\.linear",
        ),
        r"temporal_blocks\.\d+\.attn\.(qkv|proj)": FrameOrder.TOKENS_FIRST,
    }

    def class_(self) -> Any:
        """Not of diffusers."""
        return STDiT3

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Also fps [B], frames a second of the clip. The pixels that the model wants to be told are the latents' times 8."""
        return (*super().inputs(source), InputSpec("fps", "float32", ("batch",), 24.0))

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """2 seconds, 480 x 848 pixels."""
        return self.clip(source, Axis(default=15, unit="latents"), (60, 106), 300)

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """The prediction [B, C or 2 C, F, H, W]."""
        batch, _, _, *sides = feeds["hidden_states"].shape
        height, width = (torch.full((batch,), side, dtype=torch.float32) * STRIDE for side in sides)
        return model(**feeds, height=height, width=width)
