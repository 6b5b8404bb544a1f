"""Dynamic axes and the range of sizes that an engine must serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vditc.errors import InputError


@dataclasses.dataclass(frozen=True)
class Range:
    """Least, best and greatest size of an axis; the engine is fastest at `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(
                found=f"{self.min}:{self.opt}:{self.max}",
                wanted="1 <= min <= opt <= max",
                where="--profile",
                fix="write AXIS=MIN:OPT:MAX with growing numbers",
            )

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """What sizes a dynamic axis may have, in the graph's own steps (latents, tokens), and what they mean to people.

    A step of a latent clip is `stride` frames or pixels. `causal`: the first step stands for one frame alone, so n steps are
    (n - 1) * stride + 1 frames.
    """

    default: int  # what the published model was made for
    low: int = 1
    high: int | None = None  # None: as much as fits in memory
    multiple: int = 1  # of which sizes must be: the patch
    unit: str = "tokens"  # or frames, pixels, clips
    stride: int = 1
    causal: bool = False

    def units(self, size: int) -> int:
        """Frames or pixels of a size."""
        return (size - 1) * self.stride + 1 if self.causal else size * self.stride


@dataclasses.dataclass(frozen=True)
class Profile:
    """Axis name -> range."""

    axes: Mapping[str, Range]

    @classmethod
    def parse(cls, text: str, defaults: Profile) -> Profile:
        """ "frames=1:8:16,height=16" over defaults; one number fixes the axis."""
        axes = dict(defaults.axes)
        for item in filter(None, text.split(",")):
            name, _, sizes = item.partition("=")
            try:
                numbers = [int(n) for n in sizes.split(":")]
            except ValueError:
                numbers = []
            if name not in axes or len(numbers) not in (1, 3):
                raise InputError(
                    found=repr(item),
                    wanted=f"AXIS=SIZE or AXIS=MIN:OPT:MAX, AXIS one of {', '.join(axes)}",
                    where="--profile",
                    fix="for example frames=1:8:16,height=16",
                )
            axes[name] = Range(*(numbers * 3 if len(numbers) == 1 else numbers))
        return cls(axes)

    def to_json(self) -> dict[str, list[int]]:
        """{"frames": [1, 8, 16], ...}."""
        return {name: [r.min, r.opt, r.max] for name, r in self.axes.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, list[int]]) -> Profile:
        """Read what `to_json` wrote."""
        return cls({name: Range(*sizes) for name, sizes in data.items()})
