"""Schedules are what diffusers' schedulers do, as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from vditc.errors import InputError
from vditc.pipeline.schedules import COUSINS, ONE_STEP, load_schedule, schedule_of
from vditc.schedule import Schedule

FLOAT32 = 2e-6  # relative: the same float32 operations in another order
PUBLISHED: dict[str, dict[str, Any]] = {  # scheduler_config.json of released pipelines, as far as it differs from the class's defaults
    "wan": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "mochi": {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
    "stretched": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1, "shift": 3.0},
    "cogvideox": {
        "_class_name": "CogVideoXDDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 3.0,
        "timestep_spacing": "trailing",
    },
    "latte": {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "leading"},
    "cosmos": {"_class_name": "EDMEulerScheduler", "sigma_max": 80.0, "sigma_min": 0.002, "sigma_data": 0.5},
    "euler": {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"},
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("steps", [2, 7])
def test_a_trajectory_is_that_of_diffusers(rng: np.random.Generator, name: str, steps: int) -> None:
    config = PUBLISHED[name]
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    theirs.set_timesteps(steps)
    ours = Schedule.from_json(json.loads(json.dumps(schedule_of(config, steps).to_json())))
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6)
    noise = rng.standard_normal((1, 2, 3)).astype(np.float32)
    x, y = noise * np.float32(ours.start), torch.from_numpy(noise) * float(getattr(theirs, "init_noise_sigma", 1.0))
    for index, timestep in enumerate(theirs.timesteps):
        predicted = rng.standard_normal(x.shape).astype(np.float32)
        seen = theirs.scale_model_input(y, timestep) if hasattr(theirs, "scale_model_input") else y
        np.testing.assert_allclose(ours.shown(index, x), seen.numpy(), rtol=0, atol=steps * FLOAT32 * float(seen.abs().max()))
        x = ours.step(predicted, index, x)
        y = theirs.step(torch.from_numpy(predicted), timestep, y).prev_sample
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, y.numpy(), rtol=0, atol=steps * 10 * FLOAT32 * max(1.0, float(y.abs().max())))


@pytest.mark.parametrize("name", COUSINS)
def test_other_schedulers_walk_the_same_noise_levels(name: str) -> None:
    """With the prediction of one clean clip, a one-step walk ends there as well as theirs does."""
    config = {"_class_name": name, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    ours = schedule_of(config, 8)
    assert ours.scheduler == COUSINS[name] and len(ours.timesteps) == 8
    assert (np.diff(ours.timesteps) < 0).all()


def test_flow_matching_with_the_true_velocity_removes_the_noise() -> None:
    schedule = schedule_of(PUBLISHED["wan"], 7)
    clean, noise = np.full(1, 2.0, np.float32), np.full(1, -1.0, np.float32)
    x = noise
    for index in range(7):
        x = schedule.step(noise - clean, index, x)
    np.testing.assert_allclose(x, clean, atol=1e-5)  # 7 float32 additions


def test_ddim_with_the_true_noise_finds_the_clip() -> None:
    config = PUBLISHED["latte"] | {"set_alpha_to_one": True}
    schedule, scheduler = schedule_of(config, 5), diffusers.DDIMScheduler.from_config(config)
    clean, noise, share = 2.0, -1.0, float(scheduler.alphas_cumprod[int(schedule.timesteps[0])])
    x = np.full(1, share**0.5 * clean + (1 - share) ** 0.5 * noise, np.float32)
    for index in range(5):
        x = schedule.step(np.full(1, noise, np.float32), index, x)
    np.testing.assert_allclose(x, clean, atol=1e-3)  # the first levels amplify float32 by 1 / sqrt(share)


@pytest.mark.parametrize("name", PUBLISHED)
def test_signal_and_noise_are_those_of_a_walk_with_true_predictions(name: str) -> None:
    """What a perfect model predicts at a level leads to the next level, for every kind of prediction."""
    schedule, (clean, noise) = schedule_of(PUBLISHED[name], 5), (2.0, -1.0)  # 5 divides 1000: DDIM takes whole strides
    for index in range(4):
        a, b = float(schedule.signal[index]), float(schedule.noise[index])
        predicted = {
            "wan": noise - clean,
            "stretched": noise - clean,
            "mochi": clean - noise,
            "latte": noise,
            "euler": noise,
            "cogvideox": a * noise - b * clean,
        }
        x = a * clean + b * noise
        if name == "cosmos":  # EDM predicts a mixture that depends on the level and on sigma_data
            sigma, data = b, 0.5
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
            predicted[name] = (clean - skip * x) / out
        found = schedule.finished(index, np.full(1, x, np.float32), np.full(1, predicted[name], np.float32))
        np.testing.assert_allclose(found, clean, rtol=2e-3)
        after = schedule.step(np.full(1, predicted[name], np.float32), index, np.full(1, x, np.float32))
        wanted = float(schedule.signal[index + 1]) * clean + float(schedule.noise[index + 1]) * noise
        np.testing.assert_allclose(after, wanted, rtol=1e-3, atol=1e-3)


def test_a_unipc_configuration_of_a_flow_model_says_flow_shift() -> None:
    wan = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    assert schedule_of({**wan, "num_train_timesteps": 1000}, 4).to_json() == schedule_of(PUBLISHED["wan"], 4).to_json()


def test_load_reads_the_model_directory(tiny_dir: Path) -> None:
    schedule = load_schedule(tiny_dir, 3)
    assert schedule.to_json() == schedule_of(PUBLISHED["wan"], 3).to_json()
    np.testing.assert_allclose(Schedule.flow(np.append(schedule.timesteps / 1000, 0)).added, schedule.added, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**PUBLISHED["wan"], "use_dynamic_shifting": True}, "found use_dynamic_shifting = true; wanted false"),
        ({**PUBLISHED["latte"], "clip_sample": True}, "found DDIMScheduler whose step is not linear; wanted clip_sample = false"),
        ({**PUBLISHED["wan"], "stochastic_sampling": True}, "whose step is not linear"),
        ({"_class_name": "LCMScheduler"}, r"found scheduler LCMScheduler; wanted one of CogVideoXDDIM"),
        ({}, "found scheduler None"),
    ],
)
def test_schedules_that_no_table_holds(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        schedule_of(config, 4)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_number_of_steps_that_a_schedule_cannot_have() -> None:
    with pytest.raises(InputError, match="with no times for 1 steps; wanted more steps"):
        schedule_of(PUBLISHED["stretched"], 1)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="found 0 steps; wanted at least 1"):
        schedule_of(PUBLISHED["wan"], 0)


def test_every_known_scheduler_is_one_of_diffusers() -> None:
    assert all(hasattr(diffusers, name) for name in (*ONE_STEP, *COUSINS))
    assert set(COUSINS.values()) <= set(ONE_STEP)
