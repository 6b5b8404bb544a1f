"""Reads diffusers' schedulers into tables: whatever a scheduler does in one step, it does linearly, so that three numbers a step say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vditc.checkpoint import read_json
from vditc.errors import InputError
from vditc.schedule import Schedule

# Schedulers whose step depends on nothing but the latents and the prediction.
ONE_STEP = (
    "FlowMatchEulerDiscreteScheduler",
    "DDIMScheduler",
    "CogVideoXDDIMScheduler",
    "EDMEulerScheduler",
    "EulerDiscreteScheduler",
)
# Schedulers that remember earlier steps or add noise -> the one above that walks the same noise levels. Calibration and the comparison
# with the full-precision model want the same trajectory twice, not the fastest.
COUSINS = {
    "CogVideoXDPMScheduler": "CogVideoXDDIMScheduler",
    "DDPMScheduler": "DDIMScheduler",
    "DEISMultistepScheduler": "DDIMScheduler",
    "DPMSolverMultistepScheduler": "DDIMScheduler",
    "DPMSolverSinglestepScheduler": "DDIMScheduler",
    "EDMDPMSolverMultistepScheduler": "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler": "DDIMScheduler",
    "PNDMScheduler": "DDIMScheduler",
    "UniPCMultistepScheduler": "DDIMScheduler",
}
LINEAR = 1e-4  # relative: float32 arithmetic inside the scheduler


def load_schedule(model_dir: Path, steps: int) -> Schedule:
    """The schedule of a model directory for a number of steps.

    InputError for a scheduler that is unknown, is not linear (clipped or thresholded samples), or wants to know the clip's size.
    """
    file = model_dir / "scheduler" / "scheduler_config.json"
    return schedule_of(read_json(file), steps, str(file))


def schedule_of(config: dict[str, Any], steps: int, where: str = "scheduler_config.json") -> Schedule:
    """The same of a configuration, `_class_name` included."""
    if steps < 1:
        raise InputError(found=f"{steps} steps", wanted="at least 1", where="sampling", fix="raise the number of steps")
    import torch

    scheduler = _scheduler(config, where)
    scheduler.set_timesteps(steps)
    if not torch.isfinite(scheduler.timesteps).all():
        raise InputError(
            found=f"{type(scheduler).__name__} with no times for {steps} steps", wanted="more steps", where=where, fix="raise --steps"
        )
    state, prediction = (torch.tensor(values, dtype=torch.float32) for values in ((1.0, 0.0, 2.0), (0.0, 1.0, 3.0)))
    rows = []
    for index, timestep in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(state, timestep) if hasattr(scheduler, "scale_model_input") else state
        after = scheduler.step(prediction, timestep, state, return_dict=False)[0]
        kept, added, both = (float(x) for x in after)
        if abs(both - 2 * kept - 3 * added) > LINEAR * (abs(2 * kept) + abs(3 * added)):
            raise InputError(
                found=f"{type(scheduler).__name__} whose step is not linear",
                wanted="clip_sample = false, thresholding = false",
                where=where,
                fix="correct the scheduler's configuration",
            )
        rows.append((float(timestep), float(seen[0]), kept, added, *_levels(scheduler, index)))
    table = np.array(rows, np.float32).T
    return Schedule(
        scheduler=type(scheduler).__name__,
        timesteps=table[0],
        seen=table[1],
        kept=table[2],
        added=table[3],
        signal=table[4],
        noise=table[5],
        start=float(scheduler.init_noise_sigma) if hasattr(scheduler, "init_noise_sigma") else 1.0,
    )


def _levels(scheduler: Any, index: int) -> tuple[float, float]:
    """Signal and noise in the latents at a step: a flow mixes, a variance-preserving schedule has sqrt(a), sqrt(1 - a), others add."""
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        sigma = float(scheduler.sigmas[index])
        return (sigma, 1 - sigma) if scheduler.config.invert_sigmas else (1 - sigma, sigma)
    if type(scheduler).__name__ in ("DDIMScheduler", "CogVideoXDDIMScheduler"):
        share = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
        return share**0.5, (1 - share) ** 0.5
    return 1.0, float(scheduler.sigmas[index])


def _scheduler(config: dict[str, Any], where: str) -> Any:
    """The diffusers scheduler that walks the configuration's noise levels step by step."""
    import diffusers

    name = config.get("_class_name")
    flow = config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas")
    if config.get("use_dynamic_shifting"):
        raise InputError(
            found="use_dynamic_shifting = true",
            wanted="false: a schedule that does not depend on the clip's size",
            where=where,
            fix="write the shift of your clip's size into the configuration, and use_dynamic_shifting = false",
        )
    if flow and name != "FlowMatchEulerDiscreteScheduler":
        # Wan's own configuration is one of UniPC, which says flow_shift where the Euler scheduler says shift.
        shift = config.get("flow_shift", config.get("shift", 1.0))
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(config["num_train_timesteps"]), shift=float(shift))
    if name in ONE_STEP:
        return getattr(diffusers, name).from_config(config)
    if name in COUSINS:
        # What these do not say of themselves: their samples are neither clipped nor thresholded.
        return getattr(diffusers, COUSINS[name]).from_config({**config, "clip_sample": False, "thresholding": False})
    raise InputError(
        found=f"scheduler {name}",
        wanted=f"one of {', '.join(sorted([*ONE_STEP, *COUSINS]))}",
        where=where,
        fix="save the pipeline with one of these schedulers",
    )
