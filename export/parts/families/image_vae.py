"""The VAE of images, which knows no time: Latte's, and that of others who took it over. One frame at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.video_plan import Tiles


class ImageVae(VaeDecoder):
    """Every latent frame is a picture."""

    model_class: ClassVar[str] = "AutoencoderKL"
    chunk: ClassVar[int] = 1
    apart: ClassVar[bool] = True

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`."""
        picture = z[:, :, 0]
        if model.post_quant_conv is not None:
            picture = model.post_quant_conv(picture)
        return model.decoder(picture)[:, :, None], {}

    def tiles(self, config: Mapping[str, Any]) -> Tiles:
        """As large as the pictures that it was trained on, a quarter overlaps."""
        sample = int(config["sample_size"])
        latent, blend = sample // self.stride, int(sample * 0.25)
        return Tiles(latent=(latent, latent), step=(int(latent * 0.75),) * 2, blend=(blend, blend), keep=(sample - blend,) * 2)
