"""The VAE of LTX-Video: its convolutions see frames before and behind, so the whole clip is decoded at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from vditc.errors import InputError
from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.model_dir import ModelDir
from vditc.video_plan import Tiles, VideoPlan


class LtxVae(VaeDecoder):
    """Memory grows with the clip; tiles bound it in height and width."""

    model_class: ClassVar[str] = "AutoencoderKLLTXVideo"
    chunk: ClassVar[int] = 0

    def __init__(self, source: ModelDir, frames: Any = ()) -> None:
        """InputError for a decoder that denoises as well: it wants a time and noise of its own."""
        super().__init__(source, frames)
        if source.config.get("timestep_conditioning"):
            raise InputError(
                found="timestep_conditioning = true: a decoder that takes a time, and noise in its latents",
                wanted="a decoder of latents alone",
                where=str(source.transformer / "config.json"),
                fix="decode with the model's own pipeline",
            )

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`."""
        return model.decoder(z, None), {}

    def used(self, name: str) -> bool:
        """What scales latents goes into the plan."""
        return super().used(name) and name not in ("latents_mean", "latents_std")

    def plan(self) -> VideoPlan:
        """See `VaeDecoder`; the checkpoint has mean and deviation of the latents' channels."""
        own = super().plan()
        if not {"latents_mean", "latents_std"} <= self.source.weights.keys():
            return own
        mean, std = (tuple(map(float, self.source.weights[name].read())) for name in ("latents_mean", "latents_std"))
        return dataclasses.replace(own, mean=mean, std=std)

    def tiles(self, config: Mapping[str, Any]) -> Tiles:
        """512 pixels, every 448."""
        latent, step = 512 // self.stride, 448 // self.stride
        return Tiles(latent=(latent, latent), step=(step, step), blend=(64, 64), keep=(448, 448))
