from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from vditc.errors import InputError
from vditc.schedule import FlowMatchEuler, load_schedule

SAME_FLOAT32 = 1e-6  # two orders of the same float32 operations


def config(**changes: Any) -> dict[str, Any]:
    return {"num_train_timesteps": 1000, "shift": 3.0, **changes}


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("steps", [1, 4, 16, 50])
def test_sigmas_and_timesteps_are_those_of_diffusers(shift: float, steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    ours = FlowMatchEuler.from_config(config(shift=shift), steps)
    assert ours.sigmas.dtype == np.float32 and ours.timesteps.dtype == np.float32
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), atol=SAME_FLOAT32)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=SAME_FLOAT32)


def test_a_trajectory_is_that_of_diffusers(rng: np.random.Generator) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(5)
    ours = FlowMatchEuler.from_config(config(), 5)
    x = rng.standard_normal((1, 2, 3)).astype(np.float32)
    y = torch.from_numpy(x)
    for index in range(5):
        velocity = rng.standard_normal(x.shape).astype(np.float32)
        x = ours.step(velocity, index, x)
        y = theirs.step(torch.from_numpy(velocity), theirs.timesteps[index], y).prev_sample
    np.testing.assert_allclose(x, y.numpy(), atol=5 * SAME_FLOAT32)


def test_euler_with_the_true_velocity_removes_the_noise() -> None:
    schedule = FlowMatchEuler.from_config(config(), 7)
    clean, noise = np.full(1, 2.0, np.float32), np.full(1, -1.0, np.float32)
    x = noise
    for index in range(7):
        x = schedule.step(noise - clean, index, x)
    np.testing.assert_allclose(x, clean, atol=1e-5)  # 7 float32 additions


def test_a_unipc_configuration_says_flow_shift() -> None:
    ours = FlowMatchEuler.from_config({"num_train_timesteps": 1000, "flow_shift": 3.0}, 4)
    np.testing.assert_array_equal(ours.sigmas, FlowMatchEuler.from_config(config(), 4).sigmas)


def test_load_reads_the_model_directory(tiny_dir: Path) -> None:
    np.testing.assert_array_equal(load_schedule(tiny_dir, 3).sigmas, FlowMatchEuler.from_config(config(), 3).sigmas)


@pytest.mark.parametrize("key", ["use_dynamic_shifting", "use_karras_sigmas", "invert_sigmas", "shift_terminal", "stochastic_sampling"])
def test_other_schedules_are_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"found {key} = True; wanted none; use a schedule with a fixed shift"):
        FlowMatchEuler.from_config(config(**{key: True}), 4)


def test_a_scheduler_without_shift_is_refused() -> None:
    with pytest.raises(InputError, match="found keys num_train_timesteps, beta_start; wanted num_train_timesteps, and shift or flow_shift"):
        FlowMatchEuler.from_config({"num_train_timesteps": 1000, "beta_start": 0.1}, 4)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="found 0 steps; wanted at least 1"):
        FlowMatchEuler.from_config(config(), 0)
