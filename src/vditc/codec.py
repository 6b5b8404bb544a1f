"""The fixed latent codec of the bundled model: pixels are regrouped and standardised, nothing is lost.

Stored as the `vae` component of a diffusers directory: `config.json` alone, there are no weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class PixelShuffleCodec:
    """A block of `block x block` grey pixels becomes `block**2` latent channels, minus `mean`, over `std`."""

    block: int = 2
    mean: float = 0.0
    std: float = 1.0

    def encode(self, clips: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Clips [B, F, H, W] in [-1, 1] -> latents float32 [B, block**2, F, H/block, W/block]."""
        b, f, h, w = clips.shape
        k = self.block
        cut = clips.reshape(b, f, h // k, k, w // k, k).transpose(0, 3, 5, 1, 2, 4)
        return np.ascontiguousarray((cut.reshape(b, k * k, f, h // k, w // k) - self.mean) / self.std, np.float32)

    def decode(self, latents: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Latents [B, block**2, F, h, w] -> clips float32 [B, F, h*block, w*block], clipped to [-1, 1]."""
        b, _, f, h, w = latents.shape
        k = self.block
        pixels = (latents * self.std + self.mean).reshape(b, k, k, f, h, w).transpose(0, 3, 4, 1, 5, 2)
        return np.clip(pixels.reshape(b, f, h * k, w * k), -1.0, 1.0).astype(np.float32)

    @classmethod
    def load(cls, folder: Path) -> PixelShuffleCodec:
        """Read the component folder that `save` wrote."""
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return cls(int(config["block"]), float(config["latents_mean"]), float(config["latents_std"]))

    def save(self, folder: Path) -> None:
        """Write `config.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "_class_name": "PixelShuffleCodec",
            "block": self.block,
            "latents_mean": self.mean,
            "latents_std": self.std,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def to_pixels(clip: npt.NDArray[Any], scale: int = 1) -> Pixels:
    """[..., H, W] in [-1, 1] -> uint8 [..., H * scale, W * scale], every pixel repeated."""
    grey = np.clip(np.rint((np.asarray(clip, np.float64) + 1) * 127.5), 0, 255).astype(np.uint8)
    return grey.repeat(scale, -2).repeat(scale, -1)
