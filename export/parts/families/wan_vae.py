"""The causal VAE of Wan 2.1 and 2.2: one latent frame at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanRMS_norm, unpatchify

from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.export.patches import plain_attention, replaced, unit_norm
from vditc.video_plan import Tiles

_CACHED = 2  # frames that a convolution of three sees of those before


class WanVae(VaeDecoder):
    """The first latent frame is one frame, every other four.

    A convolution's state is the last two frames that it saw, zeros in front of the clip. The class knows a shorter state behind the
    first frame and pads it with zeros, which is the same.
    """

    model_class: ClassVar[str] = "AutoencoderKLWan"
    chunk: ClassVar[int] = 1

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`."""
        first = states is None
        known = states or {}
        # "Rep" is the class's word for a convolution over time that the first frame has skipped.
        cache: list[Any] = [known.get(f"state{i}", None if first else "Rep") for i in range(model._cached_conv_counts["decoder"])]
        video = model.decoder(model.post_quant_conv(z), feat_cache=cache, feat_idx=[0], first_chunk=first)
        if model.config.patch_size is not None:
            video = unpatchify(video, model.config.patch_size)
        left = {f"state{i}": _padded(x) for i, x in enumerate(cache) if isinstance(x, torch.Tensor)}
        return video, left

    def tiles(self, config: Mapping[str, Any]) -> Tiles:
        """256 pixels, every 192. The class blends in the pixels of its last convolution, which a patch then enlarges."""
        latent, step, patch = 256 // self.stride, 192 // self.stride, config.get("patch_size") or 1
        blend = (256 // patch - 192 // patch) * patch
        return Tiles(latent=(latent, latent), step=(step, step), blend=(blend, blend), keep=(192 // patch * patch,) * 2, unit=patch)

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """RMS norms as x / sqrt(mean(x^2)), a form that lowering knows and keeps in float32; attention spelt out."""
        changes: list[tuple[Any, str, Any]] = []
        for module in model.decoder.modules():
            if isinstance(module, WanRMS_norm):
                changes.append((module, "forward", partial(_norm, module)))
            elif isinstance(module, WanAttentionBlock):
                changes.append((module, "forward", partial(_attend, module)))
        with replaced(*changes):
            yield


def _padded(x: torch.Tensor) -> torch.Tensor:
    missing = _CACHED - x.shape[2]
    return torch.nn.functional.pad(x, (0, 0, 0, 0, missing, 0)) if missing else x


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = unit_norm(x, 1 if norm.channel_first else -1) * norm.gamma + norm.bias
    return normed


def _attend(block: Any, x: torch.Tensor) -> torch.Tensor:
    """One head over the places of each frame."""
    batch, _, time, height, width = x.shape
    y = block.norm(x.transpose(1, 2).flatten(0, 1))
    query, key, value = block.to_qkv(y).flatten(2).transpose(1, 2).chunk(3, -1)
    y = block.proj(torch.unflatten(plain_attention(query, key, value).transpose(1, 2), 2, (height, width)))
    return torch.unflatten(y, 0, (batch, time)).transpose(1, 2) + x
