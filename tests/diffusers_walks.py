"""Walks of diffusers' schedulers, step by step beside ours, and scheduler_config.json of released pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers.schedulers import scheduling_dpm_cogvideox

from vditc.runtimes.schedulers.walk import Walk

SHAPE = (1, 2, 2, 2, 3)
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
COGVIDEOX: dict[str, Any] = {
    **SCALED,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
UNIPC: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.33.0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
# scheduler_config.json of released pipelines, as far as it says how they walk
PUBLISHED: dict[str, dict[str, Any]] = {
    "wan 2.1 480p": UNIPC,
    "wan 2.1 720p": {**UNIPC, "flow_shift": 5.0},
    "wan 2.2 a14b": {**UNIPC, "flow_shift": 12.0},
    "hunyuanvideo": {**FLOW, "shift": 7.0},
    "mochi": {**FLOW, "invert_sigmas": True},
    "stretched": {**FLOW, "shift_terminal": 0.1, "shift": 3.0},
    "cosmos 2": {**FLOW, "use_karras_sigmas": True},
    "cogvideox 2b": {"_class_name": "CogVideoXDDIMScheduler", **COGVIDEOX, "snr_shift_scale": 3.0},
    "cogvideox 5b": {"_class_name": "CogVideoXDPMScheduler", **COGVIDEOX},
    "latte": {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "leading"},
    "easyanimate": {
        "_class_name": "DDIMScheduler",
        **SCALED,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    },
    "sana video": {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "flow_shift": 8.0,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "use_flow_sigmas": True,
    },
    "pixart": {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "lambda_min_clipped": -float("inf")},
    "cosmos 1": {"_class_name": "EDMEulerScheduler", "sigma_max": 80.0, "sigma_min": 0.0002, "sigma_data": 0.5},
    "cosmos 1 dpm": {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0, "sigma_min": 0.002, "sigma_data": 0.5},
    "euler": {"_class_name": "EulerDiscreteScheduler", **SCALED},
}


class Theirs:
    """diffusers' scheduler of a configuration, at work."""

    def __init__(self, config: Mapping[str, Any], steps: int, **given: Any) -> None:
        """`given`: what a pipeline hands to set_timesteps beside the number of steps."""
        self.scheduler = getattr(diffusers, config["_class_name"]).from_config(dict(config))
        self.scheduler.set_timesteps(**({"num_inference_steps": steps} if "sigmas" not in given else {}), **given)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # as pipelines do; else the first of two equal times is left out
        self.cogvideox = config["_class_name"] == "CogVideoXDPMScheduler"
        self.noisy = "sde" in str(config.get("algorithm_type"))
        self.timesteps: torch.Tensor = self.scheduler.timesteps
        self.start = float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        self._old: torch.Tensor | None = None

    def shown(self, index: int, latents: torch.Tensor) -> npt.NDArray[np.float32]:
        """What the model sees."""
        scaled = (
            self.scheduler.scale_model_input(latents, self.timesteps[index]) if hasattr(self.scheduler, "scale_model_input") else latents
        )
        return np.asarray(scaled.numpy(), np.float32)

    def step(self, prediction: npt.NDArray[np.float32], index: int, latents: torch.Tensor, noise: npt.NDArray[np.float32]) -> torch.Tensor:
        """Latents after a step, with that noise where the solver adds some."""
        said, time = torch.from_numpy(prediction), self.timesteps[index]
        if self.cogvideox:
            back = self.timesteps[index - 1] if index else None
            with mock.patch.object(scheduling_dpm_cogvideox, "randn_tensor", lambda *_, **__: torch.from_numpy(noise)):
                after, self._old = self.scheduler.step(said, self._old, time, back, latents)
            return torch.Tensor(after).float()
        more = {"variance_noise": torch.from_numpy(noise)} if self.noisy else {}
        return torch.Tensor(self.scheduler.step(said, time, latents, **more).prev_sample)


def greatest_error(theirs: Theirs, ours: Walk, random: np.random.Generator) -> float:
    """Of latents and of what the model is shown, after any step with random predictions, in units of the greatest number."""
    noise = random.standard_normal(SHAPE).astype(np.float32)
    x, y, worst, greatest = noise * np.float32(ours.start), torch.from_numpy(noise) * theirs.start, 0.0, 1.0
    for index in range(len(theirs.timesteps)):
        said, seen = random.standard_normal(SHAPE).astype(np.float32), theirs.shown(index, y)
        worst = max(worst, float(np.abs(ours.shown(index, x) - seen).max()) / float(np.abs(seen).max()))
        y = theirs.step(said, index, y, ours.drawn(index, SHAPE))
        x = ours.step(said, index, x)
        greatest = max(greatest, float(y.abs().max()))  # so far: what was rounded once stays
        worst = max(worst, float(np.abs(x - y.numpy()).max()) / greatest)
    return worst
