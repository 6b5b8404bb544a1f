"""The causal VAE of EasyAnimate: one latent frame at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_magvit import EasyAnimateCausalConv3d, EasyAnimateUpsampler3D

from vditc.export.parts.remembered import remembering
from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.export.patches import replaced, spread_pixels
from vditc.video_plan import Tiles

_BEFORE = 2  # frames that a convolution of three sees of those before


class MagvitVae(VaeDecoder):
    """The first latent frame is one frame, every other four. Norms are over a frame, or over a chunk's frames."""

    model_class: ClassVar[str] = "AutoencoderKLMagvit"
    chunk: ClassVar[int] = 1

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`."""
        convs = {name: module for name, module in model.decoder.named_modules() if isinstance(module, EasyAnimateCausalConv3d)}
        ups = [module for module in model.decoder.modules() if isinstance(module, EasyAnimateUpsampler3D)]
        changes = [(up, "forward", partial(_upsample, up, doubled=up.temporal_upsample and states is not None)) for up in ups]
        with remembering(convs, _BEFORE, torch.nn.Conv3d.forward, states) as left, replaced(*changes):
            video = model.decoder(model.post_quant_conv(z))
        return video, left

    def tiles(self, config: Mapping[str, Any]) -> Tiles:
        """512 pixels, every 448."""
        latent, step = 512 // self.stride, 448 // self.stride
        return Tiles(latent=(latent, latent), step=(step, step), blend=(64, 64), keep=(448, 448))


def _upsample(up: Any, x: torch.Tensor, *, doubled: bool) -> torch.Tensor:
    """Nearest neighbours by repeating, the same numbers; `doubled`: frames too, none of a clip's first chunk."""
    x = up.conv(spread_pixels(x, 2))
    if not doubled:
        return x
    return _between(x) if not up.spatial_group_norm else torch.stack([x, x], 3).flatten(2, 3)


def _between(x: torch.Tensor) -> torch.Tensor:
    """Twice the frames, a quarter of the way to the neighbour on either side; none is beyond the first and the last."""
    before, behind = torch.cat([x[:, :, :1], x[:, :, :-1]], 2), torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)
    return torch.stack([x * 0.75 + before * 0.25, x * 0.75 + behind * 0.25], 3).flatten(2, 3)
