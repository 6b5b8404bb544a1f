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


class Scheduler(Protocol):
    """What the sampling loop needs. One object serves one trajectory at a time; `step` is called with index 0, 1, …"""

    timesteps: npt.NDArray[np.float32]  # [steps]

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
        """The schedule of a diffusers scheduler_config.json (fixed shift) for a number of steps."""
        for key in ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas"):
            if config.get(key):
                raise InputError(
                    found=f"{key} = true", wanted="false", where="scheduler_config.json", fix="use a schedule with a fixed shift"
                )
        train, shift = int(config["num_train_timesteps"]), float(config["shift"])

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
