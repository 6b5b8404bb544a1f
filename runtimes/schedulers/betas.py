"""Noise levels of models that were trained with betas, and the times of a number of steps; float32 where diffusers computes in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.runtimes.schedulers.options import Options

Array = npt.NDArray[Any]
BETAS: dict[str, Any] = {  # options that all schedulers with betas share, with DDPM's defaults
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("linspace", "leading", "trailing")
CONVERSIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
TERMINAL = np.float32(2**-24)  # share of the signal that stands for none, where its logarithm is asked for


def linspace(first: float, last: float, count: int, kind: type[np.floating[Any]] = np.float32) -> Array:
    """PyTorch's: from both ends to the middle, in `kind`; its float32 products are not rounded before they are added."""
    a, b = kind(first), kind(last)
    step = (b - a) / kind(max(count - 1, 1))
    index = np.arange(count)
    low, high = np.float64(a) + np.float64(step) * index, np.float64(b) - np.float64(step) * (count - 1 - index)
    return np.where(index < count // 2, low, high).astype(kind)


def betas_of(options: Options, precise: bool = False) -> Array:
    """Variances that each training step adds, [training steps]. `precise`: diffusers computes `scaled_linear` in float64."""
    count, schedule = options["num_train_timesteps"], options["beta_schedule"]
    if options["trained_betas"] is not None:
        return np.array(options["trained_betas"], np.float32)
    first, last = options["beta_start"], options["beta_end"]
    if schedule == "linear":
        return linspace(first, last, count)
    if schedule == "scaled_linear":
        return np.asarray(linspace(first**0.5, last**0.5, count, np.float64 if precise else np.float32) ** 2)

    def left(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - left((i + 1) / count) / left(i / count), 0.999) for i in range(count)], np.float32)


def signal_shares(options: Options, precise: bool = False, *, rescale: bool = False, terminal: bool = False) -> Array:
    """The signal's share of the variance at each training step (alphas_cumprod), [training steps].

    `rescale`: betas are changed until the last share is 0 (Lin et al., arXiv 2305.08891, algorithm 1); `terminal`: or next to it.
    """
    betas = betas_of(options, precise)
    if rescale:
        root = np.sqrt(_products(1 - betas))
        first, last = root[0].copy(), root[-1].copy()
        root = (root - last) * (first / (first - last))
        shares = root**2
        alphas = np.concatenate([shares[:1], shares[1:] / shares[:-1]])
        betas = 1 - alphas
    found = _products(1 - betas)
    if rescale and terminal:
        found[-1] = TERMINAL
    return found


def _products(alphas: Array) -> Array:
    """Running products, summed up in float64 as PyTorch does."""
    return np.cumprod(alphas.astype(np.float64)).astype(alphas.dtype)


def sigma_table(shares: Array) -> Array:
    """Noise for one unit of signal at each training step."""
    return np.asarray(np.sqrt((1 - shares) / shares))


def spaced(options: Options, steps: int, *, ends: int, last: int | None = None) -> npt.NDArray[np.int64]:
    """Training steps that a walk visits, falling (Lin et al., arXiv 2305.08891, table 2).

    `ends`: 1 where linspace and leading leave out the last of steps + 1 points. `last`: training steps that may be visited.
    """
    trained = options["num_train_timesteps"]
    last = trained if last is None else last
    if steps > trained:
        raise options.bad(f"{steps} steps", f"at most the {trained} of the training", "lower --steps")
    match options["timestep_spacing"]:
        case "linspace":
            times = np.linspace(0, last - 1, steps + ends).round()[::-1][:steps]
        case "leading":
            times = (np.arange(0, steps + ends) * (last // (steps + ends)))[::-1][:steps] + options["steps_offset"]
        case _:
            times = np.arange(last, 0, -trained / steps).round()[:steps] - 1
    found = times.astype(np.int64)
    if len(found) != steps or found.min() < 0 or found.max() >= trained:
        raise options.bad(
            f"{steps} steps with timestep_spacing = {options['timestep_spacing']!r}", "times of the training", "change the number of steps"
        )
    return found


def times_of(sigmas: Array, log_table: Array) -> Array:
    """Training steps, with fractions, of noise levels: between the neighbours of their logarithm."""
    found = []
    for sigma in sigmas:
        log_sigma = np.log(np.maximum(sigma, 1e-10))
        low = int(np.clip(np.cumsum(log_sigma - log_table >= 0).argmax(), None, len(log_table) - 2))
        share = np.clip((log_table[low] - log_sigma) / (log_table[low] - log_table[low + 1]), 0, 1)
        found.append((1 - share) * low + share * (low + 1))
    return np.array(found)


def converted(kind: str, levels: Array, steps: int, low: float | None, high: float | None, options: Options) -> Array:
    """Noise levels between the last and the first of `levels` (falling), unless `low` and `high` say others; float64 [steps].

    Karras: Karras et al., arXiv 2206.00364, eq. 5 with rho = 7. Beta: Lee et al., arXiv 2407.12173, alpha = beta = 0.6.
    """
    low = float(levels[-1]) if low is None else low
    high = float(levels[0]) if high is None else high
    if kind == "use_karras_sigmas":
        ramp, small, large = np.linspace(0, 1, steps), low ** (1 / 7.0), high ** (1 / 7.0)
        return np.asarray((large + ramp * (small - large)) ** 7.0)
    if kind == "use_exponential_sigmas":
        return np.exp(np.linspace(math.log(high), math.log(low), steps))
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise InputError(
            found="use_beta_sigmas without the package scipy", wanted="scipy", where=options.where, fix="pip install scipy"
        ) from error
    return np.array([low + beta.ppf(share, 0.6, 0.6) * (high - low) for share in 1 - np.linspace(0, 1, steps)])


def with_end(sigmas: Array, end: float) -> npt.NDArray[np.float32]:
    """[steps + 1] float32."""
    return np.concatenate([sigmas, [end]]).astype(np.float32)


def preserving(sigmas: Sequence[float] | Array) -> tuple[Array, Array]:
    """Signal and noise of latents of variance one, for noise levels in units of the signal; float64."""
    sigma = np.asarray(sigmas, np.float64)
    signal = 1 / np.sqrt(sigma**2 + 1)
    return signal, sigma * signal
