"""The causal VAE of Mochi: one latent frame at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d

from vditc.export.parts.remembered import remembering
from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.video_plan import Tiles

_BEFORE = 2  # frames that a convolution of three sees of those before


class MochiVae(VaeDecoder):
    """The first latent frame is one frame, every other six.

    The class decodes the whole clip at once. Its convolutions repeat the clip's first frame in front and see none that comes, its norms
    are over a frame, so frame by frame is the same.
    """

    model_class: ClassVar[str] = "AutoencoderKLMochi"
    chunk: ClassVar[int] = 1

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`. The first latent frame is decoded to six frames as well, of which the last is the clip's first."""
        convs = {name: module for name, module in model.decoder.named_modules() if isinstance(module, CogVideoXCausalConv3d)}
        with remembering(convs, _BEFORE, _convolve, states) as left:
            video, _ = model.decoder(z)
        return video[:, :, model.temporal_compression_ratio - 1 :] if states is None else video, left

    def tiles(self, config: Mapping[str, Any]) -> Tiles:
        """256 pixels, every 192."""
        latent, step = 256 // self.stride, 192 // self.stride
        return Tiles(latent=(latent, latent), step=(step, step), blend=(64, 64), keep=(192, 192))


def _convolve(causal: Any, seen: torch.Tensor) -> tuple[torch.Tensor, None]:
    """In one go, where the class splits inputs of more than 2 GB; its cache is not used."""
    sides = (causal.width_pad, causal.width_pad, causal.height_pad, causal.height_pad, 0, 0)
    padded = torch.nn.functional.pad(seen, sides, mode="replicate")
    return torch.nn.Conv3d.forward(causal.conv, padded), None
