"""STDiT, the transformer of Open-Sora 1.0.

Source: opensora/models/stdit/stdit.py of hpcaitech/Open-Sora at v1.0.0 (class STDiT, preset STDiT-XL/2).
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from vditc.export.open_sora.base import OpenSoraModel
from vditc.export.open_sora.layers import EPS, CrossAttention, Mlp, SelfAttention, from_frames, from_places, modulate, per_frame, per_place
from vditc.export.open_sora.positions import SinCos, grid


class STDiTBlock(nn.Module):
    """Attention within frames, across frames, to the text, then the feed-forward net."""

    def __init__(self, hidden: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, eps=EPS, elementwise_affine=False)
        self.attn = SelfAttention(hidden, heads)
        self.attn_temp = SelfAttention(hidden, heads)
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
        frame_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [B, F * S, hidden], modulation [B, 6, hidden]; frame_positions [F, hidden] are given to the first block alone.

        The attention across frames reads x as it is, not normalised, and shares the gate of the one within.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + modulation).chunk(6, 1)
        within = self.attn(per_frame(modulate(self.norm1(x), shift, scale), frames))
        x = x + gate * from_frames(within, frames)
        places = per_place(x, frames)
        if frame_positions is not None:
            places = places + frame_positions
        x = x + gate * from_places(self.attn_temp(places), x.shape[0])
        x = x + self.cross_attn(x, text, bias)
        fed: torch.Tensor = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))
        return x + gate_mlp * fed


class STDiT(OpenSoraModel):
    """Noise (and with `pred_sigma`, in the second half of the channels, its variance) of a clip; defaults are STDiT-XL/2.

    `space_scale` and `time_scale` divide positions: what a checkpoint was trained with stands in its configuration.
    """

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
        model_max_length: int = 120,
        space_scale: float = 1.0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.build_ends()
        self.place_waves = SinCos(hidden_size // 2)
        self.frame_waves = SinCos(hidden_size)
        self.blocks = nn.ModuleList([STDiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Latents [B, C, F, H, W], timestep [B], text [B, text_tokens, caption_channels], mask [B, text_tokens], 0 is hidden.

        Returns [B, out_channels, F, H, W].
        """
        patches = self.x_embedder(hidden_states)
        _, frames, height, width, _ = patches.shape
        x = (patches + self.place_positions(height, width)).flatten(1, 3)
        time = self.t_embedder(timestep)
        modulation = torch.unflatten(self.t_block(time), -1, (6, -1))
        text, bias = self.embed_text(encoder_hidden_states, encoder_attention_mask)
        frame_positions: torch.Tensor | None = self.frame_waves(self._arange(frames) / self.config.time_scale)
        for block in self.blocks:
            x = block(x, text, bias, modulation, frames, frame_positions)
            frame_positions = None
        return self.unpatchify(self.final_layer(x, time), frames, height, width)

    def place_positions(self, height: int, width: int) -> torch.Tensor:
        """[h, w, hidden]."""
        scale = self.config.space_scale
        return grid(self.place_waves(self._arange(height) / scale), self.place_waves(self._arange(width) / scale))

    def _arange(self, size: int) -> torch.Tensor:
        return torch.arange(size, dtype=torch.float32, device=self.place_waves.frequencies.device)
