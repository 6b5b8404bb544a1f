"""EDM's noise levels (Karras et al., arXiv 2206.00364): diffusers' EDMEulerScheduler and EDMDPMSolverMultistepScheduler, of Cosmos 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.runtimes.schedulers.betas import linspace, with_end
from vditc.runtimes.schedulers.dpm import SOLVER, SOLVER_CHOICES, solver_rows
from vditc.runtimes.schedulers.options import Options
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.walk import Levels, Row, Walk

Array = npt.NDArray[Any]
EULER: dict[str, Any] = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
CHOICES = {
    "sigma_schedule": ("karras", "exponential"),
    "prediction_type": ("epsilon", "v_prediction"),
    "final_sigmas_type": ("zero", "sigma_min"),
}
DPM: dict[str, Any] = {**SOLVER, **EULER}
DPM_CHOICES = {**SOLVER_CHOICES, **CHOICES, "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis")}


def build(config: Mapping[str, Any], steps: int, given: Given, where: str) -> Walk:
    """The walk of a configuration; InputError for what it does not say, or what vditc does not compute."""
    euler = config["_class_name"] == "EDMEulerScheduler"
    options = Options(config, EULER if euler else DPM, CHOICES if euler else DPM_CHOICES, where)
    if not euler and options["algorithm_type"] == "sde-dpmsolver++" and options["solver_order"] == 3:
        raise options.bad("sde-dpmsolver++ of order 3", "order 1 or 2", "correct the scheduler's configuration")
    found = _sigmas(options, linspace(0, 1, steps, np.float64 if euler else np.float32)).astype(np.float32)
    end = 0.0 if options["final_sigmas_type"] == "zero" else float(found[-1]) if euler else options["sigma_min"]
    sigmas = with_end(found, end)
    noise, data = sigmas.astype(np.float64), options["sigma_data"]
    signal = np.ones(steps + 1)
    levels = Levels.along(0.25 * np.log(found), signal, noise, options["prediction_type"], data)
    seen = 1 / np.sqrt(noise[:-1] ** 2 + data**2)
    with np.errstate(all="ignore"):  # the last level may have no noise; what is not finite then is refused
        rows = [Row(following=levels.mixed(i)) for i in range(steps)] if euler else solver_rows(options, levels, signal, noise)
    return Walk(
        sigmas=sigmas,
        levels=levels,
        rows=[Row(seen=float(s), converted=r.converted, following=r.following, noise=r.noise) for s, r in zip(seen, rows, strict=True)],
        start=(options["sigma_max"] ** 2 + 1) ** 0.5,
        where=where,
        about=given.about(config, steps),
    )


def _sigmas(options: Options, ramp: Array) -> Array:
    low, high, rho = options["sigma_min"], options["sigma_max"], options["rho"]
    if options["sigma_schedule"] == "exponential":
        return np.exp(linspace(math.log(low), math.log(high), len(ramp)))[::-1]
    return np.asarray((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)
