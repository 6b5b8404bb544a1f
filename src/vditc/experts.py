"""Models of two experts, of which one walks the steps of high noise and the other the rest (Wan 2.2 A14B), when they run.

Who samples counts the steps of the whole schedule. Each expert's graph and engine have tables of its own steps alone, from 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from vditc.bundle import Bundle
from vditc.errors import InputError
from vditc.sampling import Array, Denoiser, Feeds


class Expert(NamedTuple):
    """A transformer of a bundle, or the only one."""

    bundle: Bundle
    steps: range  # of the bundle's schedule
    guidance_scale: float


def experts_of(bundle: Bundle, guidance_scale: float | None = None, guidance_scale_2: float | None = None) -> tuple[Expert, ...]:
    """In the order in which they walk. Without `guidance_scale`: the bundle's; a second expert has that of the first unless told.

    InputError for a bundle that is the second expert of another, and for a second scale where there is no second expert.
    """
    about = bundle.manifest.sampling
    if about["schedule"].get("first", 0):
        raise InputError(
            found=f"{bundle.manifest.model['part']}, which goes on with clips that another expert has begun",
            wanted="the bundle of the whole model",
            where=str(bundle.path),
            fix=f"use {bundle.path.resolve().parent}",
        )
    if guidance_scale_2 is not None and not bundle.experts:
        raise InputError(found="--guidance-2", wanted="a bundle of two experts", where=str(bundle.path), fix="give --guidance alone")
    first = about["guidance_scale"] if guidance_scale is None else guidance_scale
    second = about.get("guidance_scale_2", first) if guidance_scale_2 is None else guidance_scale_2
    begins = [0, *(int(expert["first_step"]) for expert in bundle.manifest.experts.values())]
    ends = [*begins[1:], len(about["schedule"]["timesteps"])]
    return tuple(
        Expert(own, range(begin, end), first if own is bundle else second)
        for own, begin, end in zip((bundle, *bundle.experts.values()), begins, ends, strict=True)
    )


class ExpertSwitch:
    """A `vditc.sampling.Denoiser` over all steps: opens the expert whose step it is, after closing the one before.

    One is in memory at a time, so walk one expert's steps of every clip before the next one's.
    """

    def __init__(self, experts: Sequence[tuple[range, Callable[[], AbstractContextManager[Denoiser]]]]) -> None:
        self.experts, self.now, self.stack = experts, range(0), contextlib.ExitStack()
        self.denoise: Denoiser | None = None

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """See `vditc.sampling.Denoiser`; InputError for a step that no expert walks."""
        if self.denoise is None or step not in self.now:
            self._open(step)
        assert self.denoise is not None
        return self.denoise(feeds, step - self.now.start)

    def layer_seconds(self, feeds: Feeds, step: int, runs: int) -> dict[str, float] | None:
        """Module -> seconds of a step of the expert whose step it is, the mean of `runs`; None where its runtime does not tell."""
        if self.denoise is None or step not in self.now:
            self._open(step)
        measure = getattr(self.denoise, "layer_seconds", None)
        return None if measure is None else measure(feeds, step - self.now.start, runs)

    @property
    def context_bytes(self) -> int | None:
        """Of the GPU, of the expert that is open; None where its runtime does not tell."""
        return getattr(self.denoise, "context_bytes", None)

    def _open(self, step: int) -> None:
        found = next(((steps, opened) for steps, opened in self.experts if step in steps), None)
        if found is None:
            raise InputError(
                found=f"step {step}",
                wanted=f"0 to {self.experts[-1][0].stop - 1}",
                where="experts",
                fix="sample with the schedule of the bundle",
            )
        self.close()
        self.now, opened = found
        self.denoise = self.stack.enter_context(opened())

    def close(self) -> None:
        """Close the expert that is open."""
        self.denoise = None
        self.stack.close()
