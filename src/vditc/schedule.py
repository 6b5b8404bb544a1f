"""Flow-matching Euler sampling in numpy: the steps that diffusers' FlowMatchEulerDiscreteScheduler takes, without PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError

Array = npt.NDArray[Any]

_UNKNOWN = (  # settings of diffusers' schedulers that change the trajectory in ways not followed here
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)


class Scheduler(Protocol):
    """What the sampling loop needs. One object serves one trajectory at a time; `step` is called with index 0, 1, …"""

    @property
    def timesteps(self) -> npt.NDArray[np.float32]:
        """What the denoiser is told at each step, [steps]."""
        ...

    def step(self, velocity: Array, index: int, latents: Array) -> Array:
        """Latents after step `index`."""
        ...


@dataclasses.dataclass(frozen=True)
class FlowMatchEuler:
    """x(i+1) = x(i) + (sigma(i+1) - sigma(i)) * velocity; sigmas fall from 1 to 0."""

    sigmas: npt.NDArray[np.float32]  # [steps + 1]
    timesteps: npt.NDArray[np.float32]  # [steps], sigma * 1000

    def step(self, velocity: Array, index: int, latents: Array) -> Array:
        """Latents after step `index`, float32."""
        delta = self.sigmas[index + 1] - self.sigmas[index]
        return np.asarray(latents + delta * velocity, np.float32)

    @classmethod
    def from_config(cls, config: dict[str, Any], steps: int) -> FlowMatchEuler:
        """The schedule of a diffusers scheduler_config.json (fixed shift) for a number of steps; InputError for any other schedule."""

        def bad(found: str, wanted: str, fix: str) -> InputError:
            return InputError(found=found, wanted=wanted, where="scheduler_config.json", fix=fix)

        for key in _UNKNOWN:
            if config.get(key):
                raise bad(f"{key} = {config[key]}", "none", "use a schedule with a fixed shift")
        if steps < 1:
            raise InputError(found=f"{steps} steps", wanted="at least 1", where="sampling", fix="raise the number of steps")
        # Wan's own configuration is one of UniPC, which says flow_shift where the Euler scheduler says shift.
        found = config.get("shift", config.get("flow_shift"))
        if found is None or "num_train_timesteps" not in config:
            raise bad(f"keys {', '.join(config)}", "num_train_timesteps, and shift or flow_shift", "use a flow-matching scheduler")
        train, shift = int(config["num_train_timesteps"]), float(found)

        def shifted(sigmas: Array) -> Array:
            return shift * sigmas / (1 + (shift - 1) * sigmas)

        base = shifted(np.linspace(1, train, train, dtype=np.float32)[::-1] / np.float32(train)).astype(np.float32)
        levels = np.linspace(float(base[0]) * train, float(base[-1]) * train, steps) / train
        sigmas = shifted(levels).astype(np.float32)
        return cls(np.append(sigmas, np.float32(0)).astype(np.float32), (sigmas * train).astype(np.float32))


def load_schedule(model_dir: Path, steps: int) -> FlowMatchEuler:
    """The Euler schedule of a model directory."""
    config: dict[str, Any] = json.loads((model_dir / "scheduler" / "scheduler_config.json").read_text())
    return FlowMatchEuler.from_config(config, steps)
