"""The causal VAE of HunyuanVideo, FramePack and SkyReels V1: tiles of five latent frames, of which the last two are decoded again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoMidBlock3D, HunyuanVideoUpsampleCausal3D

from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.export.patches import plain_attention, replaced, spread_pixels
from vditc.video_plan import Tiles, TimeTiles


class HunyuanVideoVae(VaeDecoder):
    """The first latent frame of a tile is one frame, every other four; norms and attention are over a tile's frames.

    The class has the sizes of its tiles in its code: 16 frames, every 12, and the one of the first latent frame.
    """

    model_class: ClassVar[str] = "AutoencoderKLHunyuanVideo"
    chunk: ClassVar[int] = 0
    time: ClassVar[TimeTiles | None] = TimeTiles(latent=5, step=3, whole=4, lead=1, blend=4, keep=12)

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`."""
        return model.decoder(model.post_quant_conv(z)), {}

    def tiles(self, config: Mapping[str, Any]) -> Tiles:
        """256 pixels, every 192."""
        latent, step = 256 // self.stride, 192 // self.stride
        return Tiles(latent=(latent, latent), step=(step, step), blend=(64, 64), keep=(192, 192))

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Nearest neighbours by repeating, the same numbers; attention frame by frame, over no frame that the mask would hide."""
        changes: list[tuple[Any, str, Any]] = []
        for module in model.decoder.modules():
            if isinstance(module, HunyuanVideoUpsampleCausal3D):
                changes.append((module, "forward", partial(_upsample, module)))
            elif isinstance(module, HunyuanVideoMidBlock3D):
                changes.append((module, "forward", partial(_middle, module)))
        with replaced(*changes):
            yield


def _upsample(up: Any, x: torch.Tensor) -> torch.Tensor:
    """The first frame stays one."""
    frames, pixels, _ = up.upsample_factor
    if frames > 1 and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], x[:, :, 1:, None].expand(-1, -1, -1, frames, -1, -1).flatten(2, 3)], 2)
    upsampled: torch.Tensor = up.conv(spread_pixels(x, pixels))
    return upsampled


def _middle(block: Any, x: torch.Tensor) -> torch.Tensor:
    x = block.resnets[0](x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = resnet(x if attention is None else _attend(attention, x))
    return x


def _attend(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """One head; a place of a frame sees every place of that frame and of those before."""
    frames, height, width = x.shape[2:]
    y = attention.group_norm(x.flatten(2)).transpose(1, 2)
    query, key, value = (
        torch.unflatten(product(y), 1, (frames, height * width)) for product in (attention.to_q, attention.to_k, attention.to_v)
    )
    seen = [plain_attention(query[:, i], key[:, : i + 1].flatten(1, 2), value[:, : i + 1].flatten(1, 2)) for i in range(frames)]
    y = attention.to_out[0](torch.cat(seen, 1)).transpose(1, 2)
    return torch.unflatten(y, 2, (frames, height, width)) + x
