"""Latents of a bundle's model as frames, and as files that people look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.codec import to_pixels
from vditc.errors import InputError
from vditc.pipeline.components import Components

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class VideoOutput:
    """`rate`: frames a second of what a decoder makes. Libraries for pictures are loaded when a clip is decoded or written."""

    parts: Components
    rate: int | None

    @property
    def fps(self) -> int:
        """Frames a second that clips are meant to be shown at."""
        from vditc.clips import FPS

        return FPS if self.rate is None or self.parts.codec is not None else self.rate

    def decode(self, latents: npt.NDArray[Any]) -> Iterator[Pixels]:
        """See `vditc.pipeline.sampler.Sampler.decode`."""
        z = latents if latents.ndim == 5 else latents[None]
        self.check_frames(z.shape[2])
        if (codec := self.parts.codec) is not None:
            return iter([to_pixels(codec.decode(z)[0])[..., None].repeat(3, -1)])
        assert self.parts.decoder is not None
        return self.parts.decoder.stream(z)

    def write(self, out: Path, latents: npt.NDArray[Any]) -> None:
        """A clip [1, C, F, H, W] as a video; grey ones of bundled models are small, and enlarged."""
        from vditc.clips import SCALE, write_clip, write_video

        codec = self.parts.codec
        if codec is not None and out.suffix in (".mp4", ".gif"):
            write_clip(out, codec.decode(latents)[0])
        elif codec is not None:
            grey = to_pixels(codec.decode(latents)[0], SCALE)
            write_video(out, (frame[..., None].repeat(3, -1) for frame in grey), self.fps)
        else:
            write_video(out, (frame for chunk in self.decode(latents) for frame in chunk), self.fps)

    def check(self, out: Path, clips: int, frames: int) -> None:
        """InputError for a file that cannot hold so many clips of so many latent frames."""
        if out.suffix == ".safetensors":
            return
        from vditc.clips import VIDEOS

        if out.suffix not in VIDEOS:
            raise InputError(found=f"-o {out}", wanted=f"{', '.join(VIDEOS)} or .safetensors", where="video", fix="change the ending")
        if clips > 1:
            raise InputError(
                found=f"{clips} clips for {out.name}", wanted="one, or latents.safetensors", where="video", fix="save them one by one"
            )
        self.check_frames(frames)

    def check_frames(self, frames: int) -> None:
        """InputError when latents of so many frames are not decoded."""
        if self.parts.codec is None and self.parts.decoder is None:
            raise InputError(
                found="no codec that vditc runs",
                wanted="-o latents.safetensors",
                where=str(self.parts.path),
                fix="write latents and decode them with the model's own VAE",
            )
        if self.parts.decoder is not None:
            self.parts.decoder.plan.check(frames)
