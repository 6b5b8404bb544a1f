"""The stochastic DPM-Solver++ (2M) of CogVideoX (Yang et al., arXiv 2408.06072): diffusers' CogVideoXDPMScheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vditc.runtimes.schedulers.cogvideox_ddim import CHOICES, DEFAULTS, shifted_shares
from vditc.runtimes.schedulers.ddim import visited
from vditc.runtimes.schedulers.options import Options
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.walk import Row, Walk


def build(config: Mapping[str, Any], steps: int, given: Given, where: str) -> Walk:
    """The walk of a configuration; InputError for what it does not say, or what vditc does not compute."""
    options = Options(config, DEFAULTS, CHOICES, where)
    times, levels = visited(options, shares := shifted_shares(options), steps)
    rows = []
    with np.errstate(all="ignore"):  # a first level without signal, or a last one without noise
        for i in range(steps):
            to_come, now = levels.after_alpha[i] ** 2, levels.alpha[i] ** 2
            half_snr = _half_snr(now)
            h = _half_snr(to_come) - half_snr
            x, m = np.sqrt((1 - to_come) / (1 - now)) * np.exp(-h), -np.expm1(-2 * h) * np.sqrt(to_come)
            weights = [m]
            if i > 0 and times[i] >= options["num_train_timesteps"] // steps:
                half = h / (2 * (half_snr - _half_snr(float(shares[times[i - 1]]))))
                weights = [m * (1 + half), -m * half]
            rows.append(Row(converted=levels.clip(i), following=(x, *weights), noise=np.sqrt((1 - to_come) * -np.expm1(-2 * h))))
    sigmas = np.append(levels.sigma, levels.after_sigma[-1])
    return Walk(sigmas=sigmas, levels=levels, rows=rows, where=where, about=given.about(config, steps))


def _half_snr(share: float) -> float:
    """log(signal / noise)."""
    return float(np.log(np.sqrt(share / np.float64(1 - share))))
