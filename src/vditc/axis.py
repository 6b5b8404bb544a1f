"""Dynamic axes: which sizes they may have, in the graph's own steps and in the units that people use."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Self

from vditc.errors import InputError

SUFFIXES = {"frames": "f", "pixels": "px"}  # unit -> how a size in that unit ends: 81f, 480px
CLIP = ("frames", "height", "width")  # the axes of a preset, in its order


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

    @property
    def least(self) -> int:
        """Smallest size."""
        return -(-self.low // self.multiple) * self.multiple

    @property
    def greatest(self) -> int | None:
        """Largest size; None when there is no limit."""
        return None if self.high is None else self.high // self.multiple * self.multiple

    @property
    def suffix(self) -> str:
        """What a size in `unit` ends with, or "" where a step is one unit."""
        return SUFFIXES.get(self.unit, "")

    def units(self, size: int) -> int:
        """Frames or pixels of a size."""
        return (size - 1) * self.stride + 1 if self.causal else size * self.stride

    def steps(self, amount: int) -> int | None:
        """The size that is exactly so many frames or pixels; None when no size is."""
        size, rest = divmod(amount - 1, self.stride) if self.causal else divmod(amount, self.stride)
        return None if rest else size + self.causal

    def allows(self, size: int) -> bool:
        """Whether the model takes this size."""
        return size % self.multiple == 0 and size >= self.least and (self.greatest is None or size <= self.greatest)

    def nearest(self, amount: int) -> tuple[int, ...]:
        """The allowed sizes next to so many frames or pixels: one below and one above, or only one at an end."""
        steps = (amount - 1) // self.stride + 1 if self.causal else amount // self.stride
        below = steps // self.multiple * self.multiple
        sizes = [below] if self.units(below) == amount else [below, below + self.multiple]
        top = math.inf if self.greatest is None else self.greatest
        return tuple(dict.fromkeys(int(min(max(s, self.least), top)) for s in sizes))

    def with_stride(self, stride: int) -> Axis:
        """The same axis behind a VAE of another stride; the default stays as many frames or pixels as can be."""
        moved = dataclasses.replace(self, stride=stride)
        amount = self.units(self.default)
        return dataclasses.replace(moved, default=min(moved.nearest(amount), key=lambda s: abs(moved.units(s) - amount)))

    @property
    def rule(self) -> str:
        """Which sizes fit, without the limits: "4n + 1", "a multiple of 16 pixels (VAE stride 8 x patch 2)"."""
        step = self.stride * self.multiple
        if step == 1:
            return f"any number of {self.unit}"
        if self.causal and self.stride > 1:
            return f"{step}n + {self.units(self.multiple) % step}{'' if self.multiple == 1 else ' ' + self._origin}"
        return f"a multiple of {step} {self.unit}{'' if self.unit not in SUFFIXES else ' ' + self._origin}"

    @property
    def _origin(self) -> str:
        factors = {"VAE stride": self.stride, "patch": self.multiple}
        return f"({' x '.join(f'{name} {n}' for name, n in factors.items() if n > 1)})"

    @property
    def limits(self) -> str:
        """Least and greatest size in units: "1 to 93 frames", "at least 16 pixels"."""
        least = self.units(self.least)
        return f"at least {least} {self.unit}" if self.greatest is None else f"{least} to {self.units(self.greatest)} {self.unit}"

    @property
    def words(self) -> str:
        """Rule and limits: "4n + 1 frames, at most 4093"."""
        unit = f" {self.unit}" if self.unit not in self.rule else ""
        least = f", at least {self.units(self.least)}" if self.least > self.multiple else ""
        greatest = "" if self.greatest is None else f", at most {self.units(self.greatest)}"
        return f"{self.rule}{unit}{least}{greatest}"

    @property
    def short(self) -> str:
        """The same for a table: "4n + 1 <= 4093", "16n", "any"."""
        step = self.stride * self.multiple
        offset = self.units(self.multiple) % step
        rule = "any" if step == 1 else f"{step}n{f' + {offset}' if offset else ''}"
        return f"{rule}{'' if self.greatest is None else f' <= {self.units(self.greatest)}'}"

    def check(self, name: str, size: int, where: str) -> None:
        """InputError for a size that the model does not take."""
        if not self.allows(size):
            steps = f"{size} steps, which are " if self.stride > 1 else ""
            raise self.refusal(name, self.units(size), f"{name} of {steps}{self.units(size)} {self.unit}", where, in_steps=True)

    def refusal(self, name: str, amount: int, found: str, where: str, *, in_steps: bool = False) -> InputError:
        """What to say of an amount, in units, that does not fit. `in_steps`: the size was, and shall be, written in steps."""
        near = self.nearest(amount)
        outside = amount < self.units(self.least) or (self.greatest is not None and amount > self.units(self.greatest))
        wanted = self.limits if outside else self.rule
        return InputError(
            found=found,
            wanted=f"{wanted}, nearest {' or '.join(str(self.units(s)) for s in near)}",
            where=where,
            fix=f"for example {name}={near[-1] if in_steps else f'{self.units(near[-1])}{self.suffix}'}",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**data)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What sizes a model takes: facts of every named axis, and clip sizes that have a name."""

    axes: Mapping[str, Axis]
    # name -> (frames, height, width) of the clip, in frames and pixels
    presets: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def unknown(cls, names: tuple[str, ...]) -> Self:
        """Of a graph that says nothing but its axes' names: any size."""
        return cls({name: Axis(default=1, unit="steps") for name in names})

    def pinned(self, name: str, size: int) -> Sizes:
        """The same with one size of an axis; as it is, where there is no such axis."""
        own = {name: dataclasses.replace(self.axes[name], default=size, low=size, high=size)} if name in self.axes else {}
        return Sizes({**self.axes, **own}, self.presets)

    def check(self, sizes: Mapping[str, int], where: str) -> None:
        """InputError for the first size that the model does not take; axes that it has not are left alone."""
        for name, size in sizes.items():
            if name in self.axes:
                self.axes[name].check(name, size, where)

    def preset(self, name: str, where: str) -> dict[str, int]:
        """Steps of each axis of a preset; InputError when this model's VAE or its limits make it impossible."""
        return {
            axis: self._steps(axis, amount, f"preset {name} of {axis} {amount} {self.axes[axis].unit}", where)
            for axis, amount in zip(CLIP, self.presets[name], strict=True)
            if axis in self.axes
        }

    def read(self, name: str, text: str, where: str) -> int | None:
        """Steps of "16", "480px" or "81f"; None for no such text, InputError when it does not fit the axis."""
        if (match := re.fullmatch(r"(-?\d+)([a-z]*)", text)) is None:
            return None
        axis, amount = self.axes[name], int(match[1])
        if not match[2]:
            return amount  # steps; checked when the range is whole
        if match[2] != axis.suffix:
            own = f" or {axis.unit} ({axis.units(axis.default)}{axis.suffix})" if axis.suffix else ""
            raise InputError(
                found=f"{name}={text}", wanted=f"steps ({axis.default}){own}", where=where, fix="change the ending of the size"
            )
        return self._steps(name, amount, f"{name} {amount} {axis.unit}", where)

    def _steps(self, name: str, amount: int, found: str, where: str) -> int:
        axis = self.axes[name]
        steps = axis.steps(amount)
        if steps is None or not axis.allows(steps):
            raise axis.refusal(name, amount, found, where)
        return steps

    def tokens(self, sizes: Mapping[str, int]) -> int:
        """Video tokens of one clip: steps over the patch along frames, height and width."""
        return math.prod(sizes[a] // self.axes[a].multiple for a in CLIP if a in self.axes)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return {"axes": {n: a.to_json() for n, a in self.axes.items()}, "presets": {n: list(p) for n, p in self.presets.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        presets = {name: (int(f), int(h), int(w)) for name, (f, h, w) in data["presets"].items()}
        return cls({name: Axis.from_json(axis) for name, axis in data["axes"].items()}, presets)
