"""STDiT3, the transformer of Open-Sora 1.2.

Source: opensora/models/stdit/stdit3.py of hpcaitech/Open-Sora at v1.2.0 (classes STDiT3 and STDiT3Config, preset STDiT3-XL/2).
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from vditc.export.open_sora.base import OpenSoraModel
from vditc.export.open_sora.layers import (
    EPS,
    CrossAttention,
    Mlp,
    ScalarEmbedder,
    SelfAttention,
    from_frames,
    from_places,
    modulate,
    per_frame,
    per_place,
)
from vditc.export.open_sora.positions import SinCos, TemporalRotation, grid


class STDiT3Block(nn.Module):
    """Self-attention, within frames or (given a rotation) across them, attention to the text, the feed-forward net."""

    def __init__(self, hidden: int, heads: int, mlp_ratio: float, *, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, eps=EPS, elementwise_affine=False)
        self.attn = SelfAttention(hidden, heads, qk_norm=qk_norm)
        self.cross_attn = CrossAttention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden, eps=EPS, elementwise_affine=False)
        self.mlp = Mlp(hidden, int(hidden * mlp_ratio), hidden)
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden) / hidden**0.5)

    def forward(
        self,
        x: torch.Tensor,
        text: torch.Tensor,
        bias: torch.Tensor,
        modulation: torch.Tensor,
        frames: int,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """x [B, F * S, hidden], modulation [B, 6, hidden]; `rotation`, cos and sin of the frames, makes this a temporal block."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + modulation).chunk(6, 1)
        attended = modulate(self.norm1(x), shift, scale)
        if rotation is None:
            attended = from_frames(self.attn(per_frame(attended, frames)), frames)
        else:
            attended = from_places(self.attn(per_place(attended, frames), rotation), x.shape[0])
        x = x + gate * attended
        x = x + self.cross_attn(x, text, bias)
        fed: torch.Tensor = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))
        return x + gate_mlp * fed


class STDiT3(OpenSoraModel):
    """Velocity (and with `pred_sigma` as many channels more, which sampling ignores) of a clip; defaults are STDiT3-XL/2."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pred_sigma: bool = True,
        caption_channels: int = 4096,
        model_max_length: int = 300,
        qk_norm: bool = True,
        input_sq_size: int = 512,
    ) -> None:
        super().__init__()
        self.build_ends()
        self.fps_embedder = ScalarEmbedder(hidden_size)
        self.place_waves = SinCos(hidden_size // 2)
        self.rope = TemporalRotation(hidden_size // num_heads)

        def blocks() -> nn.ModuleList:
            return nn.ModuleList([STDiT3Block(hidden_size, num_heads, mlp_ratio, qk_norm=qk_norm) for _ in range(depth)])

        self.spatial_blocks, self.temporal_blocks = blocks(), blocks()

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        fps: torch.Tensor,
        height: torch.Tensor,
        width: torch.Tensor,
    ) -> torch.Tensor:
        """Latents [B, C, F, H, W], text [B, text_tokens, caption_channels], mask [B, text_tokens], 0 is hidden; the others [B].

        `height` and `width` are the clip's, in pixels. Returns [B, out_channels, F, H, W].
        """
        patches = self.x_embedder(hidden_states)
        _, frames, rows, columns, _ = patches.shape
        x = (patches + self.place_positions(rows, columns, height, width).unsqueeze(1)).flatten(1, 3)
        time = self.t_embedder(timestep) + self.fps_embedder(fps)
        modulation = torch.unflatten(self.t_block(time), -1, (6, -1))
        text, bias = self.embed_text(encoder_hidden_states, encoder_attention_mask)
        rotation = self.rope(frames)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = spatial(x, text, bias, modulation, frames)
            x = temporal(x, text, bias, modulation, frames, rotation)
        return self.unpatchify(self.final_layer(x, time), frames, rows, columns)

    def place_positions(self, rows: int, columns: int, height: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """[B, rows, columns, hidden] of clips of height [B] and width [B] pixels.

        The grid is stretched to a square of as many patches, then by input_sq_size over the side of a square of as many pixels.
        The original asks the first clip of a batch for its pixels, here every clip has its own.
        """
        device = self.place_waves.frequencies.device
        # The root of each, then their product: an area of pixels does not fit into float16.
        side_pixels = torch.sqrt(height.float()) * torch.sqrt(width.float())
        stretch = (self.config.input_sq_size / side_pixels).unsqueeze(-1)
        side = torch.round(torch.sqrt(torch.scalar_tensor(rows * columns, dtype=torch.float32, device=device)))

        def waves(size: int) -> torch.Tensor:
            out: torch.Tensor = self.place_waves(torch.arange(size, dtype=torch.float32, device=device) * stretch * (side / size))
            return out

        return grid(waves(rows), waves(columns))
