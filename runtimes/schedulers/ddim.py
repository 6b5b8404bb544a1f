"""DDIM without added noise (Song et al., arXiv 2010.02502, eq. 12): diffusers' DDIMScheduler, the scheduler of Latte and EasyAnimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.runtimes.schedulers.betas import BETAS, SCHEDULES, SPACINGS, signal_shares, spaced
from vditc.runtimes.schedulers.options import Options
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.walk import Levels, Row, Walk

Array = npt.NDArray[Any]
DEFAULTS: dict[str, Any] = {
    **BETAS,
    "clip_sample": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
}
CHOICES = {
    "beta_schedule": SCHEDULES,
    "clip_sample": (False,),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "thresholding": (False,),
    "timestep_spacing": SPACINGS,
}


def build(config: Mapping[str, Any], steps: int, given: Given, where: str) -> Walk:
    """The walk of a configuration; InputError for what it does not say, or what vditc does not compute."""
    options = Options(config, DEFAULTS, CHOICES, where)
    shares = signal_shares(options, rescale=options["rescale_betas_zero_snr"])
    return ddim_walk(options, shares, steps, where, given.about(config, steps))


def visited(options: Options, shares: Array, steps: int) -> tuple[npt.NDArray[np.int64], Levels]:
    """Training steps, and the levels there and a whole stride later, which for some numbers of steps is not the next one visited."""
    times = spaced(options, steps, ends=0)
    then = times - options["num_train_timesteps"] // steps
    final = 1.0 if options["set_alpha_to_one"] else float(shares[0])
    at, after = shares[times].astype(np.float64), np.where(then >= 0, shares[np.maximum(then, 0)].astype(np.float64), final)
    return times, Levels(
        timesteps=times.astype(np.float32),
        alpha=np.sqrt(at),
        sigma=np.sqrt(1 - at),
        after_alpha=np.sqrt(after),
        after_sigma=np.sqrt(1 - after),
        prediction=options["prediction_type"],
    )


def ddim_walk(options: Options, shares: Array, steps: int, where: str, about: Mapping[str, Any]) -> Walk:
    """Clip and noise, mixed anew for each level."""
    _, levels = visited(options, shares, steps)
    with np.errstate(all="ignore"):  # a level without signal says nothing of a clip by its noise: refused
        rows = [Row(following=levels.mixed(i)) for i in range(steps)]
    return Walk(sigmas=np.append(levels.sigma, levels.after_sigma[-1]), levels=levels, rows=rows, where=where, about=about)
