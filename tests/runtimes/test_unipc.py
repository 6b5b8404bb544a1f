from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from vditc.adapter import InputSpec
from vditc.errors import InputError
from vditc.runtimes.unipc import UniPC
from vditc.sampling import Clips, Feeds, sample

SPECS = (
    InputSpec("latents", "float32", ("batch", 1, "frames", "height", "width")),
    InputSpec("timestep", "float32", ("batch",), "timestep"),
)


def velocity(latents: npt.NDArray[Any], timestep: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Depends on everything that the loop hands over."""
    return np.asarray(np.sin(latents) + timestep[:, None, None, None, None] / 1000, np.float32)


def denoise(feeds: Feeds, step: int) -> npt.NDArray[np.float32]:
    return velocity(feeds["latents"], feeds["timestep"])


def clips(latents: npt.NDArray[np.float32]) -> Clips:
    return Clips(specs=SPECS, noise=latents, prompted={}, unprompted={})


@pytest.fixture
def latents(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return rng.standard_normal((2, 1, 2, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_trajectory_is_that_of_diffusers(tiny_dir: Path, latents: npt.NDArray[np.float32], steps: int) -> None:
    theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    theirs.set_timesteps(steps)
    want = torch.from_numpy(latents)
    for timestep in theirs.timesteps:
        flow = velocity(want.numpy(), np.full(2, float(timestep), np.float32))
        want = theirs.step(torch.from_numpy(flow), timestep, want).prev_sample
    got = sample(denoise, UniPC(tiny_dir, steps), clips(latents), 1.0)
    np.testing.assert_array_equal(got, want.numpy())


def test_a_second_trajectory_starts_anew(tiny_dir: Path, latents: npt.NDArray[np.float32]) -> None:
    scheduler = UniPC(tiny_dir, 4)
    first, second = (sample(denoise, scheduler, clips(latents), 1.0) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_steps_come_in_order(tiny_dir: Path, latents: npt.NDArray[np.float32]) -> None:
    scheduler = UniPC(tiny_dir, 4)
    scheduler.step(latents, 0, latents)
    with pytest.raises(ValueError, match="UniPC step 2 after step 1: a multistep solver needs every step in order"):
        scheduler.step(latents, 2, latents)


def test_wans_own_configuration(tmp_path: Path) -> None:
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0).save_pretrained(tmp_path / "scheduler")
    theirs = UniPCMultistepScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    theirs.set_timesteps(6)
    assert UniPC(tmp_path, 6).timesteps.tolist() == theirs.timesteps.tolist()


def test_dynamic_shifting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    config = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"scheduler_config\.json: found use_dynamic_shifting = true; wanted false"):
        UniPC(tmp_path, 4)
