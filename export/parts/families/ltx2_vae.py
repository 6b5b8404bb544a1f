"""The video VAE of LTX-2, without the sound's: the whole clip at once, as LTX-Video's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import PerChannelRMSNorm

from vditc.errors import InputError
from vditc.export.parts.families.ltx_vae import LtxVae
from vditc.export.patches import replaced
from vditc.model_dir import ModelDir


class Ltx2Vae(LtxVae):
    """Whether convolutions see frames behind, the config says. Pictures are mirrored at their sides, so they are two latents or more."""

    model_class: ClassVar[str] = "AutoencoderKLLTX2Video"

    def __init__(self, source: ModelDir, frames: Any = ()) -> None:
        """InputError for a decoder that adds noise, besides what LTX-Video's refuses."""
        super().__init__(source, frames)
        noise = source.config.get("decoder_inject_noise") or False
        if noise is True or (noise and any(noise)):
            raise InputError(
                found="decoder_inject_noise = true: a decoder that adds noise of its own",
                wanted="a decoder of latents alone",
                where=str(source.transformer / "config.json"),
                fix="decode with the model's own pipeline",
            )

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """RMS norms by a reciprocal root, in a form that lowering knows."""
        norms = [module for module in model.decoder.modules() if isinstance(module, PerChannelRMSNorm)]
        with replaced(*((norm, "forward", partial(_norm, norm)) for norm in norms)):
            yield


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(norm.channel_dim, keepdim=True) + norm.eps)
