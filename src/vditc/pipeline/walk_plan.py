"""How a bundle's clips are walked: experts, scheduler, guidance and step cache, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vditc.adapter import InputSpec
from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.experts import Expert, experts_of
from vditc.pipeline.guidance_passes import PORTABLE, guidance_passes
from vditc.pipeline.schedules import AS_COMPILED, WalkOptions, bundle_schedule, bundle_scheduler
from vditc.sampling import Passes
from vditc.schedule import Scheduler
from vditc.step_cache import UNPROMPTED, StepCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How clips are walked, where that is not left to the bundle."""

    walk: WalkOptions = AS_COMPILED
    guidance: float | None = None
    guidance_2: float | None = None  # of a second expert
    embedded_guidance: float | None = None  # of models that are told a guidance scale
    passes: Passes | None = None  # of guidance; None: as the engine's profile allows
    step_cache: str | None = None  # a threshold, or a share of steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class WalkPlan:
    """What `RunOptions` come to for one bundle, one backend and one size."""

    experts: tuple[Expert, ...]
    scheduler: Scheduler
    passes: Passes
    cache: tuple[StepCache, float] | None  # and its threshold

    @property
    def steps(self) -> int:
        """Of all experts together."""
        return len(self.scheduler.timesteps)

    @classmethod
    def of(cls, bundle: Bundle, backend: str, size: Sequence[int], options: RunOptions) -> WalkPlan:
        """`size`: latent frames, height, width. InputError for options that the bundle or its engine does not take."""
        experts = experts_of(bundle, options.guidance, options.guidance_2)
        scheduler = bundle_scheduler(bundle, None if backend == PORTABLE else backend, size, options.walk)
        steps, own = len(scheduler.timesteps), experts[-1].steps.stop
        if len(experts) > 1 and steps != own:
            raise InputError(
                found=f"{steps} steps",
                wanted=f"{own}, which the experts share",
                where=str(bundle.path),
                fix="leave out --steps, or compile for another number of them",
            )
        guided = {expert.guidance_scale for expert in experts} != {1.0}
        passes = guidance_passes(bundle, backend, options.passes) if guided else "batched"
        cache = None if options.step_cache is None else step_cache(bundle, options.step_cache, experts[0].guidance_scale, scheduler)
        return cls(experts=experts, scheduler=scheduler, passes=passes, cache=cache)


def with_embedded_guidance(given: Conditioning, specs: Sequence[InputSpec], scale: float | None) -> Conditioning:
    """Clips whose model is told a guidance scale, in thousandths as HunyuanVideo is; InputError for a model that is told none."""
    if scale is None:
        return given
    told = next((spec for spec in specs if spec.name == "guidance" and not isinstance(spec.fill, str)), None)
    if told is None:
        raise InputError(
            found=f"--embedded-guidance {scale:g}",
            wanted="a model with an input `guidance`",
            where="sampler",
            fix="use --guidance: this model is guided by two branches",
        )
    value = np.full(told.shape({"batch": len(given)}), 1000 * scale, told.dtype)
    return dataclasses.replace(given, inputs={**given.inputs, told.name: value})


def step_cache(bundle: Bundle, asked: str, guidance: float, scheduler: Scheduler) -> tuple[StepCache, float]:
    """The bundle's calibrated step cache and the threshold; InputError for a bundle without one, or another walk than its own."""
    about, where = bundle.manifest.sampling.get("step_cache"), f"bundle {bundle.path}"
    if about is None:
        raise InputError(
            found="no step cache",
            wanted="a polynomial that was fitted at compile",
            where=where,
            fix="compile the model again, in more than 3 steps",
        )
    table = bundle_schedule(bundle)
    if len(scheduler.timesteps) != len(table.timesteps) or not np.allclose(scheduler.timesteps, table.timesteps, atol=1):
        raise InputError(
            found=f"--step-cache on {len(scheduler.timesteps)} steps of another schedule",
            wanted=f"the {len(table.timesteps)} steps that it was fitted to",
            where=where,
            fix="leave out --steps, --shift and --solver, or --step-cache; or compile for this schedule",
        )
    cache = StepCache.from_json(about)
    if guidance != 1.0 and UNPROMPTED not in cache.coefficients:
        raise InputError(
            found=f"--step-cache at guidance {guidance:g}",
            wanted="guidance 1, which it was fitted to",
            where=where,
            fix="compile with --guidance",
        )
    return cache, cache.threshold(asked)
