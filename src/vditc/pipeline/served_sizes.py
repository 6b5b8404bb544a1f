"""Sizes of clips that a bundle is sampled at, and how many seeds they take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from vditc.axis import CLIP, Sizes
from vditc.bundle import Bundle
from vditc.errors import InputError
from vditc.experts import experts_of
from vditc.pipeline.components import clip_size
from vditc.profile import Profile

Size = str | Sequence[int | None]


@dataclasses.dataclass(frozen=True)
class ServedSizes:
    """What the graph takes, `sizes`, and of that what an engine was built for, where an `engine` runs."""

    bundle: Bundle
    sizes: Sizes
    engine: bool

    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of latents for a clip of `size`, in frames and pixels; InputError for one not served."""
        c, *own = (int(n) for n in self.bundle.manifest.sampling["latent_shape"])
        found = dict(zip(CLIP, own, strict=True))
        if size is not None:
            asked = [None] * 3 if isinstance(size, str) else list(size)
            fixed = [a for a, n in zip(CLIP, asked, strict=False) if a not in self.sizes.axes and (n is not None or isinstance(size, str))]
            if fixed:
                raise InputError(
                    found=f"a size, {size}",
                    wanted=f"the clip's own {', '.join(fixed)}, which the graph has fixed",
                    where=str(self.bundle.path),
                    fix="give None for these, or leave the size out",
                )
            found |= clip_size(size, self.sizes)
            self.check(found, "size")
        return c, found["frames"], found["height"], found["width"]

    def check(self, wanted: Mapping[str, int], where: str) -> None:
        """InputError for sizes that the graph does not take, or that the engine was not built for."""
        self.sizes.check(wanted, where)
        if self.engine:
            for expert in experts_of(self.bundle):
                Profile.from_json(expert.bundle.manifest.profile).check(wanted, self.sizes, where)


def clip_seeds(seed: int | Sequence[int], clips: int) -> tuple[int, ...]:
    """One a clip: a single number is counted up. InputError for another count."""
    if not isinstance(seed, Sequence):
        return tuple(range(seed, seed + clips))
    if len(seed) != clips:
        raise InputError(
            found=f"{len(seed)} seeds for {clips} clips", wanted="one a clip", where="sampler", fix="give as many, or one number"
        )
    return tuple(seed)
