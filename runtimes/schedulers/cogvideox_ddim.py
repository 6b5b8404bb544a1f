"""DDIM of CogVideoX (Yang et al., arXiv 2408.06072): a shifted signal-to-noise ratio, then a last level without signal.

diffusers' CogVideoXDDIMScheduler, also that of ConsisID and EasyAnimate's older models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.runtimes.schedulers.betas import BETAS, SCHEDULES, SPACINGS, signal_shares
from vditc.runtimes.schedulers.ddim import ddim_walk
from vditc.runtimes.schedulers.options import Options
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.walk import Walk

Array = npt.NDArray[Any]
DEFAULTS: dict[str, Any] = {
    **BETAS,
    "beta_start": 0.00085,
    "beta_end": 0.0120,
    "beta_schedule": "scaled_linear",
    "clip_sample": True,  # read by nobody in diffusers either: these samples are never clipped
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 3.0,
}
CHOICES = {
    "beta_schedule": SCHEDULES,
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": SPACINGS,
}


def build(config: Mapping[str, Any], steps: int, given: Given, where: str) -> Walk:
    """The walk of a configuration; InputError for what it does not say, or what vditc does not compute."""
    options = Options(config, DEFAULTS, CHOICES, where)
    return ddim_walk(options, shifted_shares(options), steps, where, given.about(config, steps))


def shifted_shares(options: Options) -> Array:
    """The signal's share of the variance at each training step, [training steps]."""
    shares, scale = signal_shares(options, True), options["snr_shift_scale"]
    shares = shares / (scale + (1 - scale) * shares)
    if options["rescale_betas_zero_snr"]:
        root = np.sqrt(shares)
        shares = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return np.asarray(shares)
