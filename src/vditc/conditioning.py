"""What clips are sampled from: encoded prompts, noise seeds and the latent size. Saved as one safetensors file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.safetensors_file import read_header, write_tensors
from vditc.sampling import noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
    """A set of clips to sample. Clip i starts from `noise(latent_shape, seeds[i])`."""

    prompts: tuple[str, ...]
    text: npt.NDArray[np.float32]  # [clips, tokens, dim]
    empty: npt.NDArray[np.float32]  # [1, tokens, dim], the unconditional branch
    seeds: tuple[int, ...]
    latent_shape: tuple[int, int, int, int]  # channels, frames, height, width
    channels: npt.NDArray[np.float32] | None = None  # [E, frames, height, width], constant, appended to the latents at every step

    def __post_init__(self) -> None:
        if not len(self.prompts) == len(self.text) == len(self.seeds) or self.empty.shape[1:] != self.text.shape[1:]:
            raise InputError(
                found=f"{len(self.prompts)} prompts, text {self.text.shape}, empty {self.empty.shape}, {len(self.seeds)} seeds",
                wanted="as many prompts, encodings and seeds; empty like one encoding",
                where="conditioning",
                fix="encode every prompt once",
            )
        if self.channels is not None and self.channels.shape[1:] != self.latent_shape[1:]:
            raise InputError(
                found=f"extra channels {list(self.channels.shape)}",
                wanted=f"[channels, {', '.join(map(str, self.latent_shape[1:]))}]",
                where="conditioning",
                fix="make them as large as the latents",
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def noise(self, index: int) -> npt.NDArray[np.float32]:
        """Starting latents of clip `index`, [1, C, F, H, W]."""
        return noise(self.latent_shape, self.seeds[index])[None]

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        info = {"prompts": self.prompts, "seeds": self.seeds, "latent_shape": self.latent_shape}
        tensors = {"text": self.text, "empty": self.empty} | ({} if self.channels is None else {"channels": self.channels})
        write_tensors(path, tensors, {"vditc": json.dumps(info)})

    @classmethod
    def load(cls, path: Path) -> Conditioning:
        """Read what `save` wrote."""
        entries, metadata = read_header(path)
        try:
            info: dict[str, Any] = json.loads(metadata["vditc"])
            c, f, h, w = info["latent_shape"]
            return cls(
                prompts=tuple(info["prompts"]),
                text=np.array(entries["text"].read(), np.float32),
                empty=np.array(entries["empty"].read(), np.float32),
                seeds=tuple(info["seeds"]),
                latent_shape=(c, f, h, w),
                channels=np.array(entries["channels"].read(), np.float32) if "channels" in entries else None,
            )
        except (KeyError, ValueError) as error:
            raise InputError(
                found=f"no conditioning ({error})", wanted="tensors text and empty, metadata vditc", where=str(path), fix="save it again"
            ) from error
