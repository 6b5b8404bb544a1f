"""The VAE of HunyuanVideo 1.5: causal, with attention over all frames before, so the whole clip is decoded at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import (
    HunyuanVideo15AttnBlock,
    HunyuanVideo15RMS_norm,
    HunyuanVideo15Upsample,
)

from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.export.patches import frames_before, plain_attention, replaced, unit_norm
from vditc.video_plan import Tiles


class HunyuanVideo15Vae(VaeDecoder):
    """Memory grows with the clip, and with the square of a picture's places; tiles bound it in height and width."""

    model_class: ClassVar[str] = "AutoencoderKLHunyuanVideo15"
    chunk: ClassVar[int] = 0

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`."""
        return model.decoder(z), {}

    def tiles(self, config: Mapping[str, Any]) -> Tiles:
        """256 pixels, every 192."""
        latent, step = 256 // self.stride, int(256 // self.stride * 0.75)
        return Tiles(latent=(latent, latent), step=(step, step), blend=(64, 64), keep=(192, 192))

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """RMS norms in a form that lowering knows; attention with a mask of frames, where the class writes one of all places."""
        kinds = {HunyuanVideo15RMS_norm: _norm, HunyuanVideo15AttnBlock: _attend, HunyuanVideo15Upsample: _upsample}
        with replaced(
            *((m, "forward", partial(forward, m)) for m in model.decoder.modules() for kind, forward in kinds.items() if type(m) is kind)
        ):
            yield


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = unit_norm(x, 1 if norm.channel_first else -1) * norm.gamma + norm.bias
    return normed


def _attend(block: Any, x: torch.Tensor) -> torch.Tensor:
    """One head; a place of a frame sees every place of that frame and of those before."""
    frames, height, width = x.shape[2:]
    y = block.norm(x)
    query, key, value = (product(y)[0].flatten(1).transpose(0, 1) for product in (block.to_q, block.to_k, block.to_v))
    mask = frames_before(frames, x)[:, None, :, None].expand(-1, -1, -1, height * width).flatten(2)
    seen = plain_attention(torch.unflatten(query, 0, (frames, height * width)), key, value, mask)
    attended: torch.Tensor = block.proj_out(torch.unflatten(seen, 1, (height, width)).permute(3, 0, 1, 2)[None]) + x
    return attended


def _upsample(up: Any, x: torch.Tensor) -> torch.Tensor:
    """Channels become pixels, and frames of all but the first: it has half as many channels left."""
    h = up.conv(x)
    if not up.add_temporal_upsample:
        return _spread(h, 1) + _spread(x.repeat_interleave(up.repeats, 1), 1)
    first, half = _spread(h[:, :, :1], 1), up.repeats // 2
    h = torch.cat([first[:, : first.shape[1] // 2], _spread(h, 2)[:, :, 2:]], 2)
    shortcut = [_spread(x[:, :, :1].repeat_interleave(half, 1), 1), _spread(x.repeat_interleave(up.repeats, 1), 2)[:, :, 2:]]
    return h + torch.cat(shortcut, 2)


def _spread(x: torch.Tensor, frames: int) -> torch.Tensor:
    """[1, frames 2 2 C, f, h, w] -> [1, C, frames f, 2 h, 2 w]."""
    return torch.unflatten(x, 1, (frames, 2, 2, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3).flatten(6, 7).flatten(4, 5).flatten(2, 3)
