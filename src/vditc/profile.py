"""The range of sizes that an engine must serve, and how people write it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vditc.axis import Axis, Sizes
from vditc.errors import InputError

__all__ = ["Axis", "Profile", "Range", "Sizes"]
CUSTOM = "custom"
WHERE = "--profile"


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
                where=WHERE,
                fix="write AXIS=MIN:OPT:MAX with growing numbers",
            )

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclasses.dataclass(frozen=True)
class Profile:
    """Axis name -> range."""

    axes: Mapping[str, Range]

    @property
    def largest(self) -> dict[str, int]:
        """Greatest size of every axis."""
        return {name: r.max for name, r in self.axes.items()}

    @classmethod
    def parse(cls, text: str, defaults: Profile, sizes: Sizes | None = None) -> Profile:
        """ "480p81,batch=1:2:2" over defaults: at most one preset, then axes; one size fixes an axis.

        A size is in steps, or in units with an ending: height=60, height=480px, frames=1f:41f:81f. A preset fixes frames, height
        and width; `custom` takes no default, so every axis must follow. InputError for a size that `sizes` does not allow, and
        for an axis without a range.
        """
        sizes = sizes or Sizes.unknown(tuple(defaults.axes))
        words = [w.strip() for w in text.split(",") if w.strip()]
        named = [w for w in words if w in sizes.presets or w == CUSTOM]
        if len(named) > 1:
            raise InputError(found=" and ".join(named), wanted="one preset", where=WHERE, fix="give the other sizes axis by axis")
        axes = {} if named == [CUSTOM] else dict(defaults.axes)
        if named and named != [CUSTOM]:
            axes |= {axis: Range(size, size, size) for axis, size in sizes.preset(named[0], WHERE).items()}
        for word in words:
            if word not in named:
                name, given = _item(word, sizes)
                axes[name] = given
        for name, r in axes.items():
            for size in (r.min, r.opt, r.max):
                sizes.axes[name].check(name, size, WHERE)
        if missing := [a for a in sizes.axes if a not in axes]:
            raise InputError(
                found=f"no sizes for {', '.join(missing)}",
                wanted=f"all of {', '.join(sizes.axes)}",
                where=WHERE,
                fix=f"add {','.join(f'{a}={sizes.axes[a].default}' for a in missing)}",
            )
        return cls({name: axes[name] for name in sizes.axes})

    def check(self, wanted: Mapping[str, int], sizes: Sizes, where: str) -> None:
        """InputError for a size outside of the range that an engine was built for."""
        for name, size in wanted.items():
            if name in self.axes and not self.axes[name].min <= size <= self.axes[name].max:
                axis, r = sizes.axes[name], self.axes[name]
                ends = axis.units(r.min), axis.units(r.max)
                raise InputError(
                    found=f"{name} of {axis.units(size)} {axis.unit}",
                    wanted=f"{ends[0] if ends[0] == ends[1] else f'{ends[0]} to {ends[1]}'} {axis.unit}, which the engine serves",
                    where=where,
                    fix=f"build an engine with {name} up to {axis.units(size)}{axis.suffix} in --profile, or run with onnxruntime",
                )

    def to_json(self) -> dict[str, list[int]]:
        """{"frames": [1, 8, 16], ...}."""
        return {name: [r.min, r.opt, r.max] for name, r in self.axes.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, list[int]]) -> Profile:
        """Read what `to_json` wrote."""
        return cls({name: Range(*sizes) for name, sizes in data.items()})


def _item(word: str, sizes: Sizes) -> tuple[str, Range]:
    """ "frames=1:8:16" -> ("frames", 1:8:16)."""
    name, _, text = word.partition("=")
    numbers = [sizes.read(name, part, WHERE) for part in text.split(":")] if name in sizes.axes else []
    if len(numbers) not in (1, 3) or None in numbers:
        presets = ", ".join([*sizes.presets, CUSTOM])
        raise InputError(
            found=repr(word),
            wanted=f"AXIS=SIZE or AXIS=MIN:OPT:MAX, AXIS one of {', '.join(sizes.axes)}; or one of the presets {presets}",
            where=WHERE,
            fix="for example frames=1:8:16,height=16 in steps, frames=81f,height=480px in frames and pixels",
        )
    whole = [n for n in numbers if n is not None]
    return name, Range(*(whole * 3 if len(whole) == 1 else whole))
