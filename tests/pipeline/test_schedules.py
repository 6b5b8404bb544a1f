"""Schedules are what diffusers' schedulers do, as tables."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers_walks import PUBLISHED

from vditc.errors import InputError
from vditc.pipeline.schedules import Solver, load_schedule, patch_of, schedule_of
from vditc.schedule import Schedule

FLOAT32 = 2e-6  # relative: the same float32 operations in another order
WAN = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
ONE_STEP = ("hunyuanvideo", "stretched", "mochi", "latte", "euler", "cogvideox 2b", "cosmos 1")  # whose own walk the table is


@pytest.mark.parametrize("name", ONE_STEP)
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_has_the_times_and_levels_of_the_solver(name: str) -> None:
    walk = Solver.of_config(PUBLISHED[name]).walk(8)
    table = walk.schedule
    assert table.timesteps.tolist() == walk.timesteps.tolist() and table.scheduler == PUBLISHED[name]["_class_name"]
    if name == "mochi":  # its levels rise
        np.testing.assert_allclose(table.signal, walk.sigmas[:-1], rtol=1e-6)
    else:
        per_signal = table.signal if name == "pixart" else 1.0
        np.testing.assert_allclose(table.noise / per_signal, walk.sigmas[:-1], rtol=1e-6)


def test_flow_matching_with_the_true_velocity_removes_the_noise() -> None:
    schedule = schedule_of(WAN, 7)
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
    """What a perfect model predicts at a level leads to the next one, for every kind of prediction, on levels of all solvers."""
    config = PUBLISHED[name]
    schedule, (clean, noise) = schedule_of(config, 5), (2.0, -1.0)  # 5 divides 1000: DDIM takes whole strides
    kind = config.get("prediction_type", "flow_prediction" if config["_class_name"].startswith("Flow") else "epsilon")
    for index in range(4):
        a, b = float(schedule.signal[index]), float(schedule.noise[index])
        x = a * clean + b * noise
        said = {"flow_prediction": noise - clean, "epsilon": noise, "v_prediction": a * noise - b * clean}[kind]
        if name == "mochi":
            said = clean - noise
        elif name.startswith("cosmos 1"):  # EDM predicts a mixture that depends on the level and on sigma_data
            sigma, data = b, 0.5
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
            said = (clean - skip * x) / out
        found = schedule.finished(index, np.full(1, x, np.float32), np.full(1, said, np.float32))
        np.testing.assert_allclose(found, clean, rtol=2e-3)
        after = schedule.step(np.full(1, said, np.float32), index, np.full(1, x, np.float32))
        wanted = float(schedule.signal[index + 1]) * clean + float(schedule.noise[index + 1]) * noise
        np.testing.assert_allclose(after, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["wan 2.1 480p", "sana video", "pixart", "cosmos 1 dpm", "cogvideox 5b"])
def test_solvers_with_true_predictions_find_the_clip(name: str) -> None:
    """As their table does: calibration walks the same levels."""
    config = PUBLISHED[name]
    walk, (clean, noise) = Solver.of_config(config).walk(12), (0.5, -1.0)
    table = walk.schedule
    x = np.full(1, table.signal[0] * clean + table.noise[0] * noise, np.float32)
    for index in range(12):
        a, b = float(table.signal[index]), float(table.noise[index])
        eps = (float(x[0]) - a * clean) / b  # of these latents, for solvers that add noise of their own
        said = {"flow_prediction": eps - clean, "epsilon": eps, "v_prediction": a * eps - b * clean}[
            config.get("prediction_type", "epsilon")
        ]
        if name == "cosmos 1 dpm":
            skip, out = 0.25 / (b**2 + 0.25), b * 0.5 / (b**2 + 0.25) ** 0.5
            said = (clean - skip * float(x[0])) / out
        x = walk.step(np.full(1, said, np.float32), index, x)
    np.testing.assert_allclose(x, clean, rtol=2e-3)


def test_load_reads_the_model_directory(tiny_dir: Path) -> None:
    schedule = load_schedule(tiny_dir, 3)
    assert schedule.to_json() == schedule_of(WAN, 3).to_json()
    np.testing.assert_allclose(Schedule.flow(np.append(schedule.timesteps / 1000, 0)).added, schedule.added, atol=1e-6)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="found 0 steps; wanted at least 1"):
        schedule_of(WAN, 0)


def test_patches_of_families() -> None:
    assert patch_of({"patch_size": [1, 2, 2]}) == 4 and patch_of({"patch_size": 2, "patch_size_t": 1}) == 4
    assert patch_of({"patch_size": 2, "patch_size_t": 2}) == 8 and patch_of({}) == 1


def test_a_shift_of_ones_own() -> None:
    wan = Solver.of_config(PUBLISHED["wan 2.1 480p"])
    assert wan.shifted(5.0).walk(4).timesteps.tolist() == Solver.of_config(PUBLISHED["wan 2.1 720p"]).walk(4).timesteps.tolist()
    for bad, solver in ((0.0, wan), (float("nan"), wan), (3.0, Solver.of_config(PUBLISHED["latte"]))):
        with pytest.raises(InputError, match=r"found --shift .* wanted a shift above 0, of a solver of flows"):
            solver.shifted(bad)


def test_a_dynamic_shift_follows_the_clip(tmp_path: Path) -> None:
    ltx = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05}
    solver = Solver.of_config(ltx, pipeline="LTXPipeline")
    small, large = (solver.walk(4, size).timesteps for size in ((2, 8, 8), (21, 16, 24)))
    assert (small[1:] < large[1:]).all()
    assert solver.shifted(3.0).walk(4).about["config"]["use_dynamic_shifting"] is False


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_solver_is_stored_as_plain_data(name: str) -> None:
    solver = Solver.of_config(PUBLISHED[name], pipeline="WanPipeline", patch=4)
    back = Solver.of_json(json.loads(json.dumps(solver.to_json())), "here")
    assert back.to_json() == solver.to_json() and back.walk(5).about == solver.walk(5).about


def test_a_stand_in_is_named() -> None:
    about = Solver.of_config({"_class_name": "PNDMScheduler", "beta_schedule": "linear", "skip_prk_steps": True}).to_json()
    assert about["class"] == "DDIMScheduler" and about["in_place_of"] == "PNDMScheduler"
    assert Solver.of_json(about, "here").to_json() == about
