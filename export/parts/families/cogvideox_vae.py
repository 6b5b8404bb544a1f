"""The causal VAE of CogVideoX: two latent frames at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSafeConv3d, CogVideoXSpatialNorm3D
from diffusers.models.upsampling import CogVideoXUpsample3D

from vditc.export.parts.vae import Tensors, VaeDecoder
from vditc.export.patches import replaced, spread_pixels
from vditc.video_plan import Tiles


class CogVideoXVae(VaeDecoder):
    """A convolution over time remembers its last frames; in front of the clip it sees the first one. Norms are over a chunk's frames."""

    model_class: ClassVar[str] = "AutoencoderKLCogVideoX"
    chunk: ClassVar[int] = 2

    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """See `VaeDecoder`. The class's nested caches have their names joined by dots."""
        if model.post_quant_conv is not None:
            z = model.post_quant_conv(z)
        video, left = model.decoder(z, conv_cache=None if states is None else _nested(states))
        return video, dict(_flat(left))

    def tiles(self, config: Mapping[str, Any]) -> Tiles:
        """Half of the clip's published height and width, of which a sixth and a fifth overlap."""
        sample = int(config["sample_height"]) // 2, int(config["sample_width"]) // 2
        latent = sample[0] // self.stride, sample[1] // self.stride
        step = int(latent[0] * (1 - 1 / 6)), int(latent[1] * (1 - 1 / 5))
        blend = int(sample[0] * (1 / 6)), int(sample[1] * (1 / 5))
        return Tiles(latent=latent, step=step, blend=blend, keep=(sample[0] - blend[0], sample[1] - blend[1]))

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Convolutions in one go, where the class splits those of more than 2 GB; nearest neighbours by repeating, the same numbers."""
        changes: list[tuple[Any, str, Any]] = []
        levels = {f"up_blocks.{i}": 2**i for i in range(len(model.decoder.up_blocks))}
        levels["norm_out"] = 2 ** (len(model.decoder.up_blocks) - 1)
        for name, module in model.decoder.named_modules():
            if isinstance(module, CogVideoXSafeConv3d):
                changes.append((module, "forward", partial(torch.nn.Conv3d.forward, module)))
            elif isinstance(module, CogVideoXSpatialNorm3D):
                factor = next((n for prefix, n in levels.items() if f"{name}.".startswith(f"{prefix}.")), 1)
                changes.append((module, "forward", partial(_norm, module, factor)))
            elif isinstance(module, CogVideoXUpsample3D):
                changes.append((module, "forward", partial(_upsample, module)))
        with replaced(*changes):
            yield


def _flat(caches: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Convolutions over one frame leave what they saw, which nobody reads: conv_y and conv_b of the norms."""
    for name, cache in caches.items():
        if isinstance(cache, Mapping):
            yield from _flat(cache, f"{path}{name}.")
        elif cache is not None and name not in ("conv_y", "conv_b"):
            yield f"{path}{name}", cache


def _nested(states: Tensors) -> dict[str, Any]:
    caches: dict[str, Any] = {}
    for name, state in states.items():
        *path, last = name.split(".")
        at = caches
        for part in path:
            at = at.setdefault(part, {})
        at[last] = state
    return caches


def _nearest(length: int, wanted: int) -> list[int]:
    """Which of `length` frames each of `wanted` is; the first stands for itself alone where they are odd in number."""
    if wanted > 1 and wanted % 2:
        return [0, *(1 + i * (length - 1) // (wanted - 1) for i in range(wanted - 1))]
    return [i * length // wanted for i in range(wanted)]


def _norm(norm: Any, factor: int, f: torch.Tensor, zq: torch.Tensor, conv_cache: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
    """`factor`: how many pixels of f a latent is. A product over channels alone may come before the repeating."""
    chosen = torch.stack([zq[:, :, i] for i in _nearest(zq.shape[2], f.shape[2])], 2)
    y, b = norm.conv_y.conv(chosen), norm.conv_b.conv(chosen)
    return norm.norm_layer(f) * spread_pixels(y, factor) + spread_pixels(b, factor), {}


def _upsample(up: Any, x: torch.Tensor) -> torch.Tensor:
    if up.compress_time and x.shape[2] > 1:
        wanted = 2 * x.shape[2] - x.shape[2] % 2
        x = torch.stack([x[:, :, i] for i in _nearest(x.shape[2], wanted)], 2)
    frames = x.shape[2]
    flat = up.conv(spread_pixels(x.transpose(1, 2).flatten(0, 1), 2))
    return torch.unflatten(flat, 0, (-1, frames)).transpose(1, 2)
