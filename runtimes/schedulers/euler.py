"""Euler steps over noise levels in units of the signal (Karras et al., arXiv 2206.00364): diffusers' EulerDiscreteScheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.runtimes.schedulers.betas import (
    BETAS,
    CONVERSIONS,
    SCHEDULES,
    SPACINGS,
    converted,
    sigma_table,
    signal_shares,
    times_of,
    with_end,
)
from vditc.runtimes.schedulers.options import Options
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.walk import Levels, Row, Walk

DEFAULTS: dict[str, Any] = {
    **BETAS,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    **dict.fromkeys(CONVERSIONS, False),
    "sigma_min": None,
    "sigma_max": None,
    "timestep_spacing": "linspace",
    "timestep_type": "discrete",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "final_sigmas_type": "zero",
}
CHOICES = {
    "beta_schedule": SCHEDULES,
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "interpolation_type": ("linear",),
    "timestep_spacing": SPACINGS,
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero", "sigma_min"),
}


def build(config: Mapping[str, Any], steps: int, given: Given, where: str) -> Walk:
    """The walk of a configuration; InputError for what it does not say, or what vditc does not compute."""
    options = Options(config, DEFAULTS, CHOICES, where)
    trained, kind = options["num_train_timesteps"], options.one_of(*CONVERSIONS)
    table = sigma_table(signal_shares(options, rescale=options["rescale_betas_zero_snr"], terminal=True))
    match options["timestep_spacing"]:
        case "linspace":
            times = np.linspace(0, trained - 1, steps, dtype=np.float32)[::-1]
        case "leading":
            times = (np.arange(steps) * (trained // steps))[::-1].astype(np.float32) + np.float32(options["steps_offset"])
        case _:
            times = np.arange(trained, 0, -trained / steps).round().astype(np.float32)[:steps] - 1
    sigmas: npt.NDArray[Any] = np.interp(times, np.arange(len(table)), table)
    if kind:
        sigmas = converted(kind, sigmas, steps, options["sigma_min"], options["sigma_max"], options)
        times = times_of(sigmas, np.log(table))
    sigmas = with_end(sigmas, float(table[0]) if options["final_sigmas_type"] == "sigma_min" else 0.0)
    noise = sigmas.astype(np.float64)
    prediction = "v_exploding" if options["prediction_type"] == "v_prediction" else options["prediction_type"]
    levels = Levels.along(times, np.ones(steps + 1), noise, prediction)
    greatest = float(sigmas.max())
    return Walk(
        sigmas=sigmas,
        levels=levels,
        rows=[Row(seen=float(1 / np.sqrt(s**2 + 1)), following=levels.mixed(i)) for i, s in enumerate(noise[:-1])],
        start=greatest if options["timestep_spacing"] in ("linspace", "trailing") else (greatest**2 + 1) ** 0.5,
        where=where,
        about=given.about(config, steps),
    )
