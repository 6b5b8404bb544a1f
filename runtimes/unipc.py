"""UniPC sampling (Zhao et al., arXiv 2302.04867) of flow models, by diffusers' UniPCMultistepScheduler, which Wan's own pipeline uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import UniPCMultistepScheduler

from vditc.errors import InputError


class UniPC:
    """A `vditc.schedule.Scheduler` of order 2 with flow sigmas. Index 0 starts a new trajectory.

    Timesteps are whole numbers, as diffusers gives them to the model.
    """

    def __init__(self, model_dir: Path, steps: int) -> None:
        config: dict[str, Any] = json.loads((model_dir / "scheduler" / "scheduler_config.json").read_text())
        if config.get("use_dynamic_shifting"):
            raise InputError(
                found="use_dynamic_shifting = true",
                wanted="false",
                where=str(model_dir / "scheduler" / "scheduler_config.json"),
                fix="use a schedule with a fixed shift",
            )
        self._steps = steps
        # A UniPC configuration says flow_shift, a flow-matching Euler configuration says shift.
        self._solver = UniPCMultistepScheduler(
            num_train_timesteps=int(config["num_train_timesteps"]),
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=float(config["flow_shift"] if "flow_shift" in config else config["shift"]),
        )
        self._solver.set_timesteps(steps)
        self.timesteps: npt.NDArray[np.float32] = self._solver.timesteps.numpy().astype(np.float32)

    @property
    def start(self) -> float:
        """Latents start as plain noise."""
        return 1.0

    def shown(self, index: int, latents: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Latents as they are."""
        return latents

    def step(self, velocity: npt.NDArray[Any], index: int, latents: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Latents after step `index`, float32; ValueError when steps are left out or repeated."""
        if index == 0:
            self._solver.set_timesteps(self._steps)
        elif index != self._solver.step_index:
            raise ValueError(f"UniPC step {index} after step {self._solver.step_index}: a multistep solver needs every step in order")
        flow, sample = torch.from_numpy(np.asarray(velocity, np.float32)), torch.from_numpy(np.asarray(latents, np.float32))
        result = self._solver.step(flow, self._solver.timesteps[index], sample, return_dict=False)[0]
        return np.asarray(result.numpy(), np.float32)
