"""The VAE of Cosmos 1: causal, with attention of every place over all frames before, so the whole clip is decoded at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import (
    CosmosCausalAttention,
    CosmosCausalConv3d,
    CosmosTemporalAttentionProcessor2_0,
    CosmosUnpatcher3d,
    CosmosUpsample3d,
)

from vditc.axis import Axis
from vditc.checkpoint import read_json
from vditc.errors import InputError
from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.export.patches import frames_before, plain_attention, replaced, spread_pixels
from vditc.files import data_digest
from vditc.model_dir import ModelDir
from vditc.video_plan import VideoPlan

_FILE = "scheduler/scheduler_config.json"


class CosmosVae(VaeDecoder):
    """Memory grows with the clip; the class has no tiles, whatever `enable_tiling()` says.

    Its latents are scaled frame by frame, which the graph does, behind the scheduler's sigma_data, which the plan does.
    """

    model_class: ClassVar[str] = "AutoencoderKLCosmos"
    chunk: ClassVar[int] = 0

    def __init__(self, source: ModelDir, frames: Any = ()) -> None:
        """InputError without a scheduler that tells sigma_data, and for clips of more frames than there are scales."""
        scheduler = source.path / _FILE
        data = read_json(scheduler).get("sigma_data") if scheduler.exists() else None
        if not isinstance(data, int | float) or data <= 0:
            raise InputError(
                found=f"sigma_data = {data!r}",
                wanted="a scheduler with a sigma_data above 0, by which the pipeline divides latents",
                where=str(scheduler),
                fix="save the pipeline with diffusers' save_pretrained",
            )
        self.sigma_data = float(data)
        super().__init__(source, frames)
        if self.longest is not None and max(self.frames) > self.longest:
            raise InputError(
                found=f"clips of {max(self.frames)} latent frames",
                wanted=f"at most {self.longest}, of which the config has means",
                where=str(source.transformer / "config.json"),
                fix="compile for shorter clips with --profile or --size",
            )

    @property
    def digest(self) -> str:
        """See `Part`."""
        return data_digest({"files": self.source.digest, "sigma_data": self.sigma_data})

    @property
    def longest(self) -> int | None:
        """Latent frames that the config has means and deviations for; None where they are the same for all."""
        counts = [len(self.source.config.get(key) or ()) // self.channels for key in ("latents_mean", "latents_std")]
        return min((n for n in counts if n > 1), default=None)

    def axes(self) -> Mapping[str, Axis]:
        """See `VaeDecoder`."""
        own = dict(super().axes())
        return (
            own if self.longest is None else {**own, "frames": dataclasses.replace(own["frames"], default=self.longest, high=self.longest)}
        )

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`."""
        return model.decoder(model.post_quant_conv(z)), {}

    def plan(self) -> VideoPlan:
        """See `VaeDecoder`; the config's scaling_factor is not the pipeline's."""
        return dataclasses.replace(super().plan(), mean=(), std=(), scaling=self.sigma_data, shift=0.0)

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Scales latents; nearest neighbours by repeating and wavelets of two numbers by sums, which are the same numbers."""
        changes: list[tuple[Any, str, Any]] = []
        for module in model.decoder.modules():
            if isinstance(module, CosmosCausalConv3d):
                changes.append((module, "forward", partial(_convolve, module)))
            elif isinstance(module, CosmosCausalAttention):
                over_time = isinstance(module.processor, CosmosTemporalAttentionProcessor2_0)
                changes.append((module, "forward", partial(_attend_time if over_time else _attend_place, module)))
            elif isinstance(module, CosmosUpsample3d):
                changes.append((module, "forward", partial(_upsample, module)))
            elif isinstance(module, CosmosUnpatcher3d):
                changes.append((module, "forward", partial(_unpatch, module)))
        changes.append((model.post_quant_conv, "forward", partial(_first, model.post_quant_conv, *self._scales())))
        with replaced(*changes):
            yield

    def _scales(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Means and deviations [1, C, frames or 1, 1, 1]; the pipeline has neither where the config lacks the mean."""
        values = [self.source.config.get(key) for key in ("latents_mean", "latents_std")]
        if values[0] is None:
            return None, None
        mean, std = (torch.tensor(v, dtype=torch.float32).view(1, self.channels, -1, 1, 1) for v in values)
        return mean, std


def _first(conv: Any, mean: torch.Tensor | None, std: torch.Tensor | None, z: torch.Tensor) -> torch.Tensor:
    if mean is not None and std is not None:
        z = z * _of_frames(std, z) + _of_frames(mean, z)
    return _convolve(conv, z)


def _of_frames(scale: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return scale if scale.shape[2] == 1 else scale.index_select(2, torch.arange(z.shape[2], device=scale.device))


def _convolve(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """In front of the clip the first frame stands; beyond a picture's sides, zeros."""
    if conv.temporal_pad:
        x = torch.cat([x[:, :, :1].expand(-1, -1, conv.temporal_pad, -1, -1), x], 2)
    side = conv.spatial_pad[0]
    return torch.nn.functional.conv3d(x, conv.weight, conv.bias, padding=(0, side, side))


def _attend_place(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """One head over the places of each frame."""
    query, key, value = (y[0].permute(1, 2, 3, 0).flatten(1, 2) for y in _products(attention, x))
    seen = torch.unflatten(plain_attention(query, key, value), 1, tuple(x.shape[3:]))
    return _added(attention, x, seen.permute(3, 0, 1, 2)[None])


def _attend_time(attention: Any, x: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
    """One head over the frames of each place: itself and those before, which is the mask."""
    query, key, value = (y[0].permute(2, 3, 1, 0).flatten(0, 1) for y in _products(attention, x))
    seen = torch.unflatten(plain_attention(query, key, value, frames_before(x.shape[2], x)), 0, tuple(x.shape[3:]))
    return _added(attention, x, seen.permute(3, 2, 0, 1)[None])


def _products(attention: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = attention.norm(x)
    return attention.to_q(y), attention.to_k(y), attention.to_v(y)


def _added(attention: Any, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = attention.to_out[0](seen) + x
    return added


def _upsample(up: Any, x: torch.Tensor) -> torch.Tensor:
    """The first frame stays one."""
    if up.temporal_upsample:
        x = torch.stack([x, x], 3).flatten(2, 3)[:, :, 1:]
        x = up.conv1(x) + x
    if up.spatial_upsample:
        x = spread_pixels(x, 2)
        x = up.conv2(x) + x
    upsampled: torch.Tensor = up.conv3(x)
    return upsampled


def _unpatch(unpatch: Any, x: torch.Tensor) -> torch.Tensor:
    """Channels become frames and pixels, the first frames of which the clip does not have."""
    size = unpatch.patch_size
    if unpatch.patch_method == "rearrange":
        x = torch.unflatten(x, 1, (-1, size, size, size)).permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    else:
        for _ in range(size.bit_length() - 1):
            x = _inverse_haar(x)
    return x[:, :, size - 1 :]


def _inverse_haar(x: torch.Tensor) -> torch.Tensor:
    """[1, 2 2 2 C, f, h, w] of sums and differences over time, rows and columns -> [1, C, 2 f, 2 h, 2 w].

    Each is 1/sqrt(2) of the wavelet, which the class's factor of sqrt(8) takes back.
    """
    for axis in (4, 3, 2):  # columns first, whose sums and differences are neighbours
        pairs = torch.unflatten(x, 1, (2 ** (axis - 2), 2, -1))
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.stack([low + high, low - high], axis + 2).flatten(axis + 1, axis + 2).flatten(1, 2)
    return x
