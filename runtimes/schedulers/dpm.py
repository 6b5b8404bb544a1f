"""DPM-Solver++ and DPM-Solver of several steps (Lu et al., arXiv 2211.01095, 2206.00927): diffusers' DPMSolverMultistepScheduler."""

from __future__ import annotations

import math
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
    preserving,
    sigma_table,
    signal_shares,
    spaced,
    times_of,
    with_end,
)
from vditc.runtimes.schedulers.flow_match_euler import shifted
from vditc.runtimes.schedulers.options import Options
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.unipc import check_flow
from vditc.runtimes.schedulers.walk import Levels, Row, Walk

Array = npt.NDArray[Any]
SOLVER: dict[str, Any] = {  # what EDM's variant has as well
    "solver_order": 2,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
}
DEFAULTS: dict[str, Any] = {
    **BETAS,
    **SOLVER,
    **dict.fromkeys(CONVERSIONS, False),
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
SOLVER_CHOICES = {
    "solver_order": (1, 2, 3),
    "thresholding": (False,),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),  # the last three are other solvers' names, and mean midpoint
    "final_sigmas_type": ("zero", "sigma_min"),
}
CHOICES = {
    **SOLVER_CHOICES,
    "beta_schedule": SCHEDULES,
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),  # the last means dpmsolver++
    "variance_type": (None,),
    "timestep_spacing": SPACINGS,
    "time_shift_type": ("exponential",),
}


def build(config: Mapping[str, Any], steps: int, given: Given, where: str) -> Walk:
    """The walk of a configuration; InputError for what it does not say, or what vditc does not compute."""
    options = Options({**config, "lambda_min_clipped": _infinite(config.get("lambda_min_clipped", -math.inf))}, DEFAULTS, CHOICES, where)
    if options["algorithm_type"] in ("dpmsolver", "sde-dpmsolver"):
        if options["final_sigmas_type"] == "zero" or options["use_flow_sigmas"]:
            raise options.bad(
                f"algorithm_type = {options['algorithm_type']!r} to a level without noise, or of a flow",
                "dpmsolver++, or final_sigmas_type = 'sigma_min' without flow sigmas",
                "correct the scheduler's configuration",
            )
        if options["algorithm_type"] == "sde-dpmsolver" and options["solver_order"] == 3:
            raise options.bad("sde-dpmsolver of order 3", "order 1 or 2", "correct the scheduler's configuration")
    check_flow(options)
    times, sigmas = _levels(options, steps, given)
    sigma = sigmas.astype(np.float64)
    signal, noise = (1 - sigma, sigma) if options["use_flow_sigmas"] else preserving(sigma)
    levels = Levels.along(times.astype(np.int64), signal, noise, options["prediction_type"])
    with np.errstate(all="ignore"):  # the last level may have no noise; what is not finite then is refused
        rows = solver_rows(options, levels, signal, noise)
    return Walk(sigmas=sigmas, levels=levels, rows=rows, where=where, about=given.about(config, steps))


def _infinite(value: Any) -> Any:
    """JSON has no -Infinity of its own; configurations write it as a word."""
    return -math.inf if value in ("-inf", "-Infinity", None) else value


def _levels(options: Options, steps: int, given: Given) -> tuple[Array, npt.NDArray[np.float32]]:
    """Times [steps] and noise levels [steps + 1]."""
    kind, trained, cosine = (
        options.one_of(*CONVERSIONS, "use_lu_lambdas"),
        options["num_train_timesteps"],
        options["beta_schedule"] == SCHEDULES[2],
    )
    shares = signal_shares(options, rescale=options["rescale_betas_zero_snr"], terminal=True)
    table = sigma_table(shares)
    end = float(table[0]) if options["final_sigmas_type"] == "sigma_min" else 0.0
    if options["use_flow_sigmas"]:
        if kind:
            raise options.bad(f"{kind} with use_flow_sigmas", "one of them", "correct the scheduler's configuration")
        shift = math.exp(given.mu(options)) if options["use_dynamic_shifting"] else options["flow_shift"]
        sigmas = shifted(1.0 - np.linspace(1, 1 / trained, steps + 1), shift)[::-1][:-1]
        return sigmas * trained, with_end(sigmas, end)
    log_table = np.log(table)
    if kind is None:
        half_snr = np.log(np.sqrt(shares)) - np.log(np.sqrt(1 - shares))
        clipped = int(np.searchsorted(half_snr[::-1], np.float32(options["lambda_min_clipped"])))
        times = spaced(options, steps, ends=1, last=trained - clipped)
        return times, with_end(np.interp(times, np.arange(len(table)), table), end)
    if kind == "use_lu_lambdas":
        low, high = float(log_table[0]), float(log_table[-1])
        sigmas = np.exp(high + np.linspace(0, 1, steps) * (low - high))
    else:
        sigmas = converted(kind, table[::-1], steps, None, None, options)
    times = times_of(sigmas, log_table)
    whole = kind in ("use_karras_sigmas", "use_lu_lambdas") and not cosine
    return times.round() if whole else times, with_end(sigmas, end)


def solver_rows(options: Options, levels: Levels, signal: Array, noise: Array) -> list[Row]:
    """One row a step, from signal and noise of the levels [steps + 1]."""
    steps, kind, heun = len(levels.alpha), options["algorithm_type"], options["solver_type"] == "heun"
    half_snr, clean, few = np.log(signal) - np.log(noise), kind not in ("dpmsolver", "sde-dpmsolver"), steps < 15
    rows = []
    for i in range(steps):
        last = i == steps - 1 and (
            options["euler_at_final"] or (options["lower_order_final"] and few) or options["final_sigmas_type"] == "zero"
        )
        second = i == steps - 2 and options["lower_order_final"] and few
        order = 1 if last else min(options["solver_order"], i + 1, 2 if second else 3)
        h = half_snr[i + 1] - half_snr[i]
        x, d0, d1, d2, added = _coefficients(kind, heun or order == 3, h, signal[i : i + 2], noise[i : i + 2])
        weights = [d0]
        if order > 1:
            r0 = (half_snr[i] - half_snr[i - 1]) / h
            if order == 2:
                weights = [d0 + d1 / r0, -d1 / r0]
            else:
                r1 = (half_snr[i - 1] - half_snr[i - 2]) / h
                first = d1 * (1 + r0 / (r0 + r1)) + d2 / (r0 + r1)  # of the newer difference
                then = -d1 * r0 / (r0 + r1) - d2 / (r0 + r1)  # of the older one
                weights = [d0 + first / r0, then / r1 - first / r0, -then / r1]
        converted_ = levels.clip(i) if clean else levels.noise(i)
        rows.append(Row(converted=converted_, following=(x, *weights), noise=added))
    return rows


def _coefficients(kind: str, heun: bool, h: float, signal: Array, noise: Array) -> tuple[float, float, float, float, float]:
    """Weights of x, of the newest m, of its first and second difference in units of h, and of noise."""
    a, s = signal[1], noise[1]
    if kind == "dpmsolver":
        e = np.expm1(h)
        return signal[1] / signal[0], -s * e, -s * (e / h - 1 if heun else 0.5 * e), -s * ((e - h) / h**2 - 0.5), 0.0
    if kind == "sde-dpmsolver":
        e = np.expm1(h)
        return signal[1] / signal[0], -2 * s * e, -s * (2 * (e / h - 1) if heun else e), 0.0, s * np.sqrt(np.expm1(2 * h))
    if kind == "sde-dpmsolver++":
        e = -np.expm1(-2 * h)
        first = a * (e / (-2 * h) + 1) if heun else 0.5 * a * e
        return s / noise[0] * np.exp(-h), a * e, first, a * ((e - 2 * h) / (2 * h) ** 2 - 0.5), s * np.sqrt(e)
    e = np.expm1(-h)
    return s / noise[0], -a * e, a * (e / h + 1) if heun else -0.5 * a * e, -a * ((e + h) / h**2 - 0.5), 0.0
