"""Euler steps of flow matching (Lipman et al., arXiv 2210.02747), with shifted noise levels (Esser et al., arXiv 2403.03206, eq. 23).

diffusers' FlowMatchEulerDiscreteScheduler: the scheduler of HunyuanVideo, LTX-Video, Mochi, EasyAnimate and others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.runtimes.schedulers.betas import CONVERSIONS, converted
from vditc.runtimes.schedulers.options import Options
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.walk import Levels, Row, Walk

Array = npt.NDArray[Any]
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    **dict.fromkeys(CONVERSIONS, False),
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
}
CHOICES = {"time_shift_type": ("exponential", "linear"), "stochastic_sampling": (False,)}


def build(config: Mapping[str, Any], steps: int, given: Given, where: str) -> Walk:
    """The walk of a configuration; InputError for what it does not say, or what vditc does not compute."""
    options = Options(config, DEFAULTS, CHOICES, where)
    conversion, trained, shift = options.one_of(*CONVERSIONS), options["num_train_timesteps"], options["shift"]
    sigmas = given.spacing(steps)
    if sigmas is None:
        fixed = 1.0 if options["use_dynamic_shifting"] else shift
        high, low = shifted(np.array([trained, 1], np.float32) / np.float32(trained), fixed).tolist()
        sigmas = np.linspace(high * trained, low * trained, steps) / trained
    sigmas = dynamic(sigmas, given.mu(options), options) if options["use_dynamic_shifting"] else shifted(sigmas, shift)
    if options["shift_terminal"]:
        sigmas = stretched(sigmas, options["shift_terminal"])
    if conversion:
        sigmas = converted(conversion, sigmas, steps, None, None, options)
    sigmas = np.asarray(sigmas, np.float32)
    if options["invert_sigmas"]:
        sigmas = np.float32(1) - sigmas
    timesteps = sigmas * np.float32(trained)
    sigmas = np.append(sigmas, np.float32(options["invert_sigmas"]))
    noise = 1 - sigmas.astype(np.float64) if options["invert_sigmas"] else sigmas.astype(np.float64)
    levels = Levels.along(timesteps, 1 - noise, noise, "flow_inverted" if options["invert_sigmas"] else "flow_prediction")
    rows = [Row(following=(1.0, float(b - a))) for a, b in pairwise(sigmas)]
    return Walk(sigmas=sigmas, levels=levels, rows=rows, where=where, about=given.about(config, steps))


def shifted(sigmas: Any, shift: float) -> Any:
    """More steps at high noise for a shift above 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def dynamic(sigmas: Array, mu: float, options: Options) -> Array:
    """The same with a shift that depends on the clip's size, exp(mu) or mu."""
    shift = math.exp(mu) if options["time_shift_type"] == "exponential" else mu
    return np.asarray(shift / (shift + (1 / sigmas - 1) ** 1.0))


def stretched(sigmas: Array, terminal: float) -> Array:
    """Stretched until the last level is `terminal` (LTX-Video)."""
    with np.errstate(all="ignore"):  # one step: there is nothing to stretch, and the walk is refused
        return np.asarray(1 - (1 - sigmas) / ((1 - sigmas)[-1] / (1 - terminal)))
