"""Small random VAEs of diffusers' video pipelines, besides those of tiny_pipeline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Video,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
)

CHANNELS = 4  # of the latents


def tiny_hunyuan_video15_vae(seed: int = 0) -> AutoencoderKLHunyuanVideo15:
    """HunyuanVideo 1.5's strides, of 4 frames and 16 pixels, take five levels."""
    torch.manual_seed(seed)
    vae = AutoencoderKLHunyuanVideo15(latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8, 16), layers_per_block=1)
    return _shaken(vae)


def tiny_mochi_vae(seed: int = 0, channels: int = CHANNELS) -> AutoencoderKLMochi:
    """Its norms have 32 groups; its pipeline wants 12 `channels`."""
    torch.manual_seed(seed)
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 64),
        latent_channels=channels,
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=torch.linspace(-0.5, 0.5, channels).tolist(),
        latents_std=torch.linspace(0.5, 1.5, channels).tolist(),
    ).eval()


def tiny_cosmos_vae(seed: int = 0, **changes: Any) -> AutoencoderKLCosmos:
    """Attention behind the middle too; means and deviations of seven latent frames."""
    torch.manual_seed(seed)
    known: dict[str, Any] = {
        "latent_channels": CHANNELS,
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 16),
        "attention_resolutions": (64,),
        "num_layers": 1,
        "latents_mean": torch.linspace(-0.5, 0.5, 7 * CHANNELS).tolist(),
        "latents_std": torch.linspace(0.5, 1.5, 7 * CHANNELS).tolist(),
    }
    return _shaken(AutoencoderKLCosmos(**(known | changes)))


def tiny_magvit_vae(seed: int = 0, **changes: Any) -> AutoencoderKLMagvit:
    """EasyAnimate's, with a stride of 4 frames and 8 pixels."""
    torch.manual_seed(seed)
    return AutoencoderKLMagvit(
        latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=2, **changes
    ).eval()


def tiny_ltx2_vae(seed: int = 0, **changes: Any) -> AutoencoderKLLTX2Video:
    """LTX-2's, with a stride of 8 frames and 32 pixels."""
    torch.manual_seed(seed)
    vae = AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        **changes,
    )
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    return vae.eval()


def _shaken(vae: Any) -> Any:
    """Fresh norms have one and zero for parameters, which would hide mistakes."""
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return vae.eval()
