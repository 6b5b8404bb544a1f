"""What a sampler gives: its steps while it works, and its clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vditc.safetensors_file import write_tensors

if TYPE_CHECKING:
    from vditc.pipeline.sampler import Sampler

Latents = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What `on_step` is told after each step of each clip."""

    clip: int
    clips: int
    index: int  # of the step, from 0
    steps: int
    timestep: float  # that the model was told
    latents: Latents  # [1, C, F, H, W] after the step; good during the call only: copy what is kept


OnStep = Callable[[Step], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Clips that a sampler made. Frames are decoded by it, so it must be open for them."""

    sampler: Sampler
    latents: Latents  # [clips, C, F, H, W]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    skipped: int = 0  # runs of the model that a step cache left out,
    asked: int = 0  # of so many; 0 without a step cache

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def fps(self) -> int:
        """Frames a second that the clips are meant to be shown at."""
        return self.sampler.video.fps

    def frames(self, clip: int = 0) -> Pixels:
        """A clip as uint8 [frames, height, width, 3]."""
        return np.concatenate(list(self.stream(clip)))

    def stream(self, clip: int = 0) -> Iterator[Pixels]:
        """The same in chunks of frames, as the decoder makes them: a long video needs the memory of a chunk."""
        return self.sampler.decode(self.latents[clip])

    def save(self, path: str | PathLike[str], clip: int | None = None) -> None:
        """Write one clip as a video (vditc.clips.VIDEOS), or the latents of all, or of `clip`, as .safetensors (`latents`).

        InputError for another ending, for several clips of which none is chosen, and for latents that vditc cannot decode.
        """
        out, chosen = Path(path), self.latents if clip is None else self.latents[clip][None]
        self.sampler.video.check(out, len(chosen), chosen.shape[2])
        if out.suffix == ".safetensors":
            write_tensors(out, {"latents": chosen})
        else:
            self.sampler.video.write(out, chosen)
