"""UniPC, B(h) versions 1 and 2 (Zhao et al., arXiv 2302.04867): diffusers' UniPCMultistepScheduler, the scheduler of Wan and SkyReels."""

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
    preserving,
    sigma_table,
    signal_shares,
    spaced,
    times_of,
    with_end,
)
from vditc.runtimes.schedulers.flow_match_euler import dynamic, shifted, stretched
from vditc.runtimes.schedulers.options import Options
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.walk import Levels, Row, Walk

Array = npt.NDArray[Any]
DEFAULTS: dict[str, Any] = {
    **BETAS,
    "solver_order": 2,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "predict_x0": True,
    "solver_type": "bh2",
    "lower_order_final": True,
    "disable_corrector": [],
    "solver_p": None,
    **dict.fromkeys(CONVERSIONS, False),
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "final_sigmas_type": "zero",
    "rescale_betas_zero_snr": False,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "sigma_min": None,
    "sigma_max": None,
    "shift_terminal": None,
}
CHOICES = {
    "beta_schedule": SCHEDULES,
    "solver_order": (1, 2, 3),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "thresholding": (False,),
    "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),  # the last three are other solvers' names, and mean bh2
    "solver_p": (None,),
    "timestep_spacing": SPACINGS,
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential",),
}
START = 1e-6  # what a first noise level of 1 is lowered by, or its signal's logarithm would be infinite


def build(config: Mapping[str, Any], steps: int, given: Given, where: str) -> Walk:
    """The walk of a configuration; InputError for what it does not say, or what vditc does not compute."""
    options = Options(config, DEFAULTS, CHOICES, where)
    timesteps, sigmas = _levels(options, steps, given)
    check_flow(options)
    if options["prediction_type"] == "flow_prediction" and not options["predict_x0"]:
        raise options.bad("predict_x0 = false of a flow", "true", "correct the scheduler's configuration")
    sigma = sigmas.astype(np.float64)
    signal, noise = (1 - sigma, sigma) if options["use_flow_sigmas"] else preserving(sigma)
    levels = Levels.along(timesteps.astype(np.int64), signal, noise, options["prediction_type"])
    with np.errstate(all="ignore"):  # the last level may have no noise; what is not finite then is refused
        rows = _rows(options, levels, np.log(signal) - np.log(noise), signal, noise)
    return Walk(sigmas=sigmas, levels=levels, rows=rows, where=where, about=given.about(config, steps))


def check_flow(options: Options) -> None:
    """InputError for a model of flows on other levels, or the other way round."""
    if options["use_flow_sigmas"] != (options["prediction_type"] == "flow_prediction"):
        raise options.bad(
            f"use_flow_sigmas = {options['use_flow_sigmas']} and prediction_type = {options['prediction_type']!r}",
            "flow_prediction with flow sigmas, and no other prediction with them",
            "correct the scheduler's configuration",
        )


def _levels(options: Options, steps: int, given: Given) -> tuple[Array, npt.NDArray[np.float32]]:
    """Times [steps] and noise levels [steps + 1]."""
    conversion, trained = options.one_of(*CONVERSIONS), options["num_train_timesteps"]
    flow, last = options["use_flow_sigmas"], options["final_sigmas_type"] == "sigma_min"
    if flow and conversion not in (None, "use_karras_sigmas"):
        raise options.bad(f"{conversion} with use_flow_sigmas", "one of them", "correct the scheduler's configuration")
    if flow and conversion is None:
        sigmas = given.spacing(steps)
        sigmas = np.linspace(1, 1 / trained, steps + 1)[:-1] if sigmas is None else sigmas
        sigmas = dynamic(sigmas, given.mu(options), options) if options["use_dynamic_shifting"] else shifted(sigmas, options["flow_shift"])
        if options["shift_terminal"]:
            sigmas = stretched(sigmas, options["shift_terminal"])
        if abs(sigmas[0] - 1) < START:
            sigmas[0] -= START
        return sigmas * trained, with_end(sigmas, sigmas[-1] if last else 0.0)
    rescale = options["rescale_betas_zero_snr"]
    table = sigma_table(signal_shares(options, rescale=rescale, terminal=True))
    if conversion:
        sigmas = converted(conversion, table[::-1], steps, options["sigma_min"], options["sigma_max"], options)
        if flow:
            sigmas = sigmas / (sigmas + 1)
            return sigmas * trained, with_end(sigmas, sigmas[-1] if last else 0.0)
        times = times_of(sigmas, np.log(table))
        return times.round() if conversion == "use_karras_sigmas" else times, with_end(sigmas, sigmas[-1] if last else 0.0)
    times = spaced(options, steps, ends=1)
    return times, with_end(np.interp(times, np.arange(len(table)), table), float(table[0]) if last else 0.0)


def _rows(options: Options, levels: Levels, half_snr: Array, signal: Array, noise: Array) -> list[Row]:
    """`half_snr`: log(signal / noise), [steps + 1]."""
    steps, clean, most = len(levels.alpha), options["predict_x0"], options["solver_order"]

    def update(begin: int, order: int, corrects: bool) -> tuple[float, list[float], float]:
        """From level `begin` to the next: weights of x there, of m there and before, newest first, and of m at the end."""
        a, b = (signal, noise) if clean else (noise, signal)  # what is expanded, and what only scales
        h = half_snr[begin + 1] - half_snr[begin]
        hh = -h if clean else h
        phi = np.expm1(hh)
        scale = hh if options["solver_type"] == "bh1" else phi
        ratios = [(half_snr[begin - k] - half_snr[begin]) / h for k in range(1, order)]
        rhos = _rhos([*ratios, 1.0], hh, scale, order, corrects)
        weights = [-a[begin + 1] * phi, *(0.0 for _ in ratios)]
        for k, (ratio, rho) in enumerate(zip(ratios, rhos, strict=False), start=1):
            weights[k] -= a[begin + 1] * scale * rho / ratio
            weights[0] += a[begin + 1] * scale * rho / ratio
        end = -a[begin + 1] * scale * rhos[-1] if corrects else 0.0
        return b[begin + 1] / b[begin], [weights[0] - end, *weights[1:]], end

    orders = [min(most, steps - i if options["lower_order_final"] else most, i + 1) for i in range(steps)]
    rows = []
    for i in range(steps):
        corrected = None
        if i > 0 and i - 1 not in options["disable_corrector"]:
            x, weights, end = update(i - 1, orders[i - 1], True)
            corrected = (x, end, *weights)
        x, weights, _ = update(i, orders[i], False)
        rows.append(Row(converted=levels.clip(i) if clean else levels.noise(i), corrected=corrected, following=(x, *weights)))
    return rows


def _rhos(ratios: list[float], hh: float, scale: float, order: int, corrects: bool) -> Array:
    """Weights of the differences: the paper's eq. 12 for UniC; for UniP without the last condition; for few points in closed form."""
    if order == (1 if corrects else 2):
        return np.full(1, 0.5)
    if order == 1:
        return np.zeros(0)
    phi, factorial, powers, wanted = np.expm1(hh) / hh - 1, 1, [], []
    for k in range(1, order + 1):
        powers.append([r ** (k - 1) for r in ratios])
        wanted.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / hh - 1 / factorial
    count = order if corrects else order - 1
    matrix = np.array(powers)[:count, :count]
    if not np.isfinite(matrix).all():
        return np.full(count, np.nan)
    try:
        return np.linalg.solve(matrix, np.array(wanted)[:count])
    except np.linalg.LinAlgError:  # a last level without noise is infinitely far away: no numbers, and the walk is refused
        return np.full(count, np.nan)
