"""Our samplers walk as diffusers' do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from diffusers_walks import COGVIDEOX, FLOW, PUBLISHED, SHAPE, UNIPC, Theirs, greatest_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import NOISE_LEVELS, NOISE_LEVELS_RESCALED, SAMPLER, SAMPLER_OF_COSINES, SAMPLER_OF_ORDER_3

from vditc.errors import InputError
from vditc.runtimes.schedulers.pipelines import RULES, Given
from vditc.runtimes.schedulers.registry import BY_DDIM, CLASSES, scheduler_of, solver_config

CONVERSIONS = st.sampled_from([{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}])
BETAS = st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])
SPACING = st.sampled_from(["linspace", "leading", "trailing"])
# The same examples in every run: corners in which float32 loses more than the tolerances are rare, and no reason to fail by chance.
QUICK = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors])


def check(config: dict[str, Any], steps: int, seed: int = 0, *, given_: Given | None = None, **theirs: Any) -> None:
    """Times are equal, levels and latents to their tolerances."""
    them, us = Theirs(config, steps, **theirs), scheduler_of(config, steps, given_)
    edm = "EDM" in config["_class_name"]  # times are logarithms there, of two libraries; so are levels that are spread evenly in them
    spread = any(config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta"))
    np.testing.assert_allclose(us.timesteps, them.timesteps.numpy().astype(np.float32), rtol=1e-6 if spread else 0, atol=1e-6 if edm else 0)
    if hasattr(them.scheduler, "sigmas"):
        rescaled = NOISE_LEVELS_RESCALED if config.get("rescale_betas_zero_snr") else NOISE_LEVELS
        np.testing.assert_allclose(us.sigmas, them.scheduler.sigmas.numpy(), rtol=1e-6 if edm else rescaled)
    assert us.start == pytest.approx(them.start, rel=NOISE_LEVELS)
    rough = config.get("solver_order") == 3 or config.get("rescale_betas_zero_snr") or config.get("beta_schedule") == "squaredcos_cap_v2"
    rough = rough or config.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver") or config.get("predict_x0") is False
    limit = SAMPLER_OF_COSINES if config.get("beta_schedule") == "squaredcos_cap_v2" else SAMPLER_OF_ORDER_3 if rough else SAMPLER
    assert greatest_error(them, us, np.random.default_rng(seed)) <= limit, config


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("steps", [2, 7, 20, 50])
def test_published_configurations(name: str, steps: int) -> None:
    check(PUBLISHED[name], steps)


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize("config", [{**FLOW, "shift": 7.0}, {**FLOW, "invert_sigmas": True, "shift": 2.0}])
def test_euler_steps_of_flows_are_the_same_to_the_last_bit(config: dict[str, Any], steps: int) -> None:
    them, us = Theirs(config, steps), scheduler_of(config, steps)
    assert us.timesteps.tolist() == them.timesteps.tolist() and us.sigmas.tolist() == them.scheduler.sigmas.tolist()
    assert greatest_error(them, us, np.random.default_rng(0)) == 0


@given(st.data())
@QUICK
def test_flow_match_euler(data: st.DataObject) -> None:
    config = {
        **FLOW,
        "shift": data.draw(st.floats(0.5, 15)),
        "shift_terminal": data.draw(st.sampled_from([None, 0.1])),
        **data.draw(CONVERSIONS),
    }
    check({**config, "invert_sigmas": data.draw(st.booleans())}, data.draw(st.integers(2, 40)))


@given(st.data())
@QUICK
def test_unipc(data: st.DataObject) -> None:
    draw = data.draw
    flow = draw(st.booleans())
    shared: dict[str, Any] = {"_class_name": "UniPCMultistepScheduler", "solver_type": draw(st.sampled_from(["bh1", "bh2", "midpoint"]))}
    shared |= {"solver_order": draw(st.integers(1, 3)), "disable_corrector": draw(st.sampled_from([[], [0], [0, 2]]))}
    if flow:
        own: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": draw(st.floats(0.5, 12))}
        own |= {"use_karras_sigmas": draw(st.booleans()), "shift_terminal": draw(st.sampled_from([None, 0.1]))}
    else:
        clean = draw(st.booleans())
        own = {"prediction_type": draw(st.sampled_from(["epsilon", "sample", "v_prediction"])), "predict_x0": clean, **draw(CONVERSIONS)}
        own |= {"beta_schedule": draw(BETAS), "timestep_spacing": draw(SPACING), "rescale_betas_zero_snr": draw(st.booleans()) and clean}
    kind = draw(st.sampled_from(["zero", "sigma_min"])) if own.get("predict_x0", True) else "sigma_min"
    steps = draw(st.integers(1, 30))
    repeats = kind == "sigma_min" and (flow or any(own.get(f"use_{c}_sigmas") for c in ("karras", "exponential", "beta")))
    config = {**shared, **own, "final_sigmas_type": kind}
    try:
        ours = scheduler_of(config, steps)
    except InputError as error:  # two equal levels, or one step without a fall: diffusers comes to no numbers either
        assert "no finite numbers" in str(error) and (repeats or steps == 1)
        return
    assert len(ours.timesteps) == steps
    check(config, steps, draw(st.integers(0, 99)))


@given(st.data())
@QUICK
def test_dpm(data: st.DataObject) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"]))
    noise = kind in ("dpmsolver", "sde-dpmsolver")
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": kind,
        "solver_order": draw(st.integers(1, 2 if kind == "sde-dpmsolver" else 3)),
        "solver_type": draw(st.sampled_from(["midpoint", "heun", "bh1"])),
        "lower_order_final": draw(st.booleans()),
        "euler_at_final": draw(st.booleans()),
        "final_sigmas_type": "sigma_min" if noise else draw(st.sampled_from(["zero", "sigma_min"])),
    }
    if not noise and draw(st.booleans()):
        config |= {
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
            "flow_shift": draw(st.floats(0.5, 12)),
            "final_sigmas_type": "zero",
        }
    else:
        config |= {"prediction_type": draw(st.sampled_from(["epsilon", "sample", "v_prediction"])), "beta_schedule": draw(BETAS)}
        config |= draw(st.sampled_from([{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_lu_lambdas": True}]))
        config |= {"timestep_spacing": draw(st.sampled_from(["linspace", "leading", "trailing"])), "lambda_min_clipped": -5.1}
    steps = draw(st.integers(1, 30))
    try:
        scheduler_of(config, steps)
    except InputError as error:
        # The last of converted levels is the first of the training already, and leading times begin with it: no fall is left.
        assert "no finite numbers" in str(error) and config["final_sigmas_type"] == "sigma_min"
        return
    check(config, steps, draw(st.integers(0, 99)))


@given(st.data())
@QUICK
def test_ddim(data: st.DataObject) -> None:
    draw = data.draw
    name = draw(st.sampled_from(["DDIMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"]))
    config = {"_class_name": name, "clip_sample": False, "beta_schedule": draw(BETAS), "timestep_spacing": draw(SPACING)}
    config |= {"prediction_type": draw(st.sampled_from(["sample", "v_prediction"])), "rescale_betas_zero_snr": draw(st.booleans())}
    config |= {"set_alpha_to_one": draw(st.booleans())} | ({} if name == "DDIMScheduler" else {"snr_shift_scale": draw(st.floats(0.5, 4))})
    check(config, draw(st.integers(1, 40)), draw(st.integers(0, 99)))


@given(st.data())
@QUICK
def test_levels_in_units_of_the_signal(data: st.DataObject) -> None:
    draw = data.draw
    name = draw(st.sampled_from(["EulerDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]))
    config: dict[str, Any] = {"_class_name": name, "prediction_type": draw(st.sampled_from(["epsilon", "v_prediction"]))}
    if name == "EulerDiscreteScheduler":
        config |= {"beta_schedule": draw(BETAS), "timestep_spacing": draw(SPACING), **draw(CONVERSIONS)}
    else:
        config |= {"sigma_schedule": draw(st.sampled_from(["karras", "exponential"])), "sigma_max": draw(st.sampled_from([80.0, 20.0]))}
    if name == "EDMDPMSolverMultistepScheduler":
        config |= {"solver_order": draw(st.integers(1, 3)), "solver_type": draw(st.sampled_from(["midpoint", "heun"]))}
    check(config, draw(st.integers(2, 30)), draw(st.integers(0, 99)))


LTX = {**FLOW, "use_dynamic_shifting": True, "base_image_seq_len": 1024, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}


@pytest.mark.parametrize(("size", "steps"), [((21, 16, 24), 20), ((9, 30, 40), 50)])
def test_ltx_shifts_by_the_size_of_the_clip(size: tuple[int, int, int], steps: int) -> None:
    mu = calculate_shift(math.prod(size), 1024, 4096, 0.95, 2.05)
    check(LTX, steps, given_=Given("LTXPipeline", size), sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)


def test_framepack_cuts_the_shift() -> None:
    size, config = (9, 60, 100), {**FLOW, "use_dynamic_shifting": True}
    mu = calculate_shift(math.prod(size) / 4, 256, 4096, 0.5, 1.15)
    assert mu > math.log(7)
    check(config, 9, given_=Given("HunyuanVideoFramepackPipeline", size, 4), sigmas=np.linspace(1.0, 0.0, 10)[:-1], mu=math.log(7.0))


def test_pipelines_have_their_own_levels() -> None:
    check({**FLOW, "shift": 7.0}, 9, given_=Given("HunyuanVideoPipeline"), sigmas=np.linspace(1.0, 0.0, 10)[:-1])
    check({**FLOW, "invert_sigmas": True}, 10, given_=Given("MochiPipeline"), sigmas=np.array(linear_quadratic_schedule(10, 0.025)))
    check({**FLOW, "use_dynamic_shifting": True}, 8, given_=Given("EasyAnimatePipeline"), mu=1.0)
    assert all(hasattr(diffusers, name) for name in (*RULES, *CLASSES, *BY_DDIM))


@pytest.mark.parametrize("name", ["wan 2.1 480p", "sana video", "cogvideox 5b", "mochi"])
def test_a_second_clip_starts_anew(name: str, rng: np.random.Generator) -> None:
    walk, said = scheduler_of(PUBLISHED[name], 5), rng.standard_normal((5, *SHAPE)).astype(np.float32)
    ends = []
    for _ in range(2):
        x = np.ones(SHAPE, np.float32)
        for i in range(5):
            x = walk.step(said[i], i, x)
        ends.append(x.copy())
    np.testing.assert_array_equal(ends[0], ends[1])


def test_steps_come_in_order() -> None:
    walk, x = scheduler_of(UNIPC, 4), np.ones(SHAPE, np.float32)
    walk.step(x, 0, x)
    with pytest.raises(ValueError, match="step 2 where step 1 was expected: UniPCMultistepScheduler needs every step in order"):
        walk.step(x, 2, x)
    euler = scheduler_of({**FLOW}, 4)
    euler.step(x, 2, x)  # remembers nothing


def test_noise_follows_the_seed_and_the_step() -> None:
    walk = scheduler_of({"_class_name": "CogVideoXDPMScheduler", **COGVIDEOX}, 4)
    first = walk.drawn(1, SHAPE)
    assert (first != walk.drawn(2, SHAPE)).any()
    walk.seed = 5
    assert (first != walk.drawn(1, SHAPE)).any()


def test_large_latents_are_summed_in_blocks(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 3, 7, 100, 101)  # several blocks and a part of one
    said, ends = rng.standard_normal((3, *shape), np.float32), []
    for workers in (1, 2):
        monkeypatch.setattr("vditc.elementwise.cores", lambda workers=workers: workers)
        walk, x = scheduler_of(UNIPC, 3), np.ones(shape, np.float32)
        for i in range(3):
            x = walk.step(said[i], i, x)
        ends.append(x.copy())
    np.testing.assert_array_equal(ends[0], ends[1])
    few = scheduler_of(UNIPC, 3)
    end = np.ones(100, np.float32)
    for i in range(3):
        end = few.step(said[i].reshape(-1)[-100:], i, end)
    np.testing.assert_array_equal(ends[0].reshape(-1)[-100:], end)


@pytest.mark.parametrize(
    ("config", "steps", "words"),
    [
        ({"_class_name": "LCMScheduler"}, 4, "found scheduler LCMScheduler; wanted one of FlowMatchEulerDiscreteScheduler"),
        ({}, 4, "found scheduler None"),
        (UNIPC, 0, "found 0 steps; wanted at least 1"),
        ({**UNIPC, "sparkle": 1}, 4, "found UniPCMultistepScheduler with sparkle; wanted options of"),
        ({**UNIPC, "flow_shift": "3"}, 4, "found flow_shift = '3'; wanted something like 1.0"),
        ({**UNIPC, "solver_order": 4}, 4, "found UniPCMultistepScheduler with solver_order = 4; wanted 1 or 2 or 3"),
        ({**UNIPC, "solver_order": True}, 4, "found solver_order = True"),
        ({**UNIPC, "thresholding": True}, 4, "thresholding = True; wanted False"),
        ({**UNIPC, "solver_p": "x"}, 4, "solver_p = 'x'; wanted None"),
        ({**UNIPC, "use_flow_sigmas": False}, 4, "use_flow_sigmas = False and prediction_type = 'flow_prediction'"),
        ({**UNIPC, "use_exponential_sigmas": True}, 4, "use_exponential_sigmas with use_flow_sigmas"),
        ({**UNIPC, "use_karras_sigmas": True, "use_beta_sigmas": True}, 4, "use_karras_sigmas and use_beta_sigmas; wanted one of them"),
        ({**UNIPC, "lower_order_final": False}, 4, "comes to no finite numbers at 4 steps"),
        ({**FLOW, "stochastic_sampling": True}, 4, "stochastic_sampling = True; wanted False"),
        ({**FLOW, "use_dynamic_shifting": True}, 4, "use_dynamic_shifting = true of no known pipeline; wanted false, or a clip"),
        ({**FLOW, "shift_terminal": 0.1}, 1, "comes to no finite numbers at 1 steps"),
        ({**PUBLISHED["latte"], "clip_sample": True}, 4, "DDIMScheduler with clip_sample = True; wanted False"),
        ({**PUBLISHED["latte"], "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 4, "no finite numbers"),
        (PUBLISHED["latte"], 1001, "found 1001 steps; wanted at most the 1000 of the training"),
        ({**PUBLISHED["latte"], "steps_offset": 1, "num_train_timesteps": 10}, 10, "wanted times of the training"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, 4, "to a level without noise"),
        ({"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"}, 4, "variance_type = 'learned'; wanted None"),
    ],
)
def test_what_cannot_be_walked_is_refused(config: dict[str, Any], steps: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        scheduler_of(config, steps)


def test_what_diffusers_leaves_in_a_file_is_not_read_here_either() -> None:
    check({**PUBLISHED["latte"], "skip_prk_steps": True}, 5)
    check({**PUBLISHED["pixart"], "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": True}, 5)


def test_ltx_without_a_size_is_refused() -> None:
    with pytest.raises(InputError, match="use_dynamic_shifting = true without a clip size"):
        scheduler_of(LTX, 4, Given("LTXPipeline"))


def test_beta_levels_want_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(InputError, match="use_beta_sigmas without the package scipy"):
        scheduler_of({**FLOW, "use_beta_sigmas": True}, 4)


@pytest.mark.parametrize("name", BY_DDIM)
def test_ddim_stands_in_for_schedulers_that_vditc_has_not(name: str) -> None:
    config = {"_class_name": name, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "v_prediction"}
    own = solver_config({**config, "skip_prk_steps": True}, None, "here")
    assert own == {**config, "_class_name": "DDIMScheduler", "clip_sample": False}
    assert len(scheduler_of(config, 8).timesteps) == 8


def test_another_solver_walks_the_same_levels() -> None:
    euler = solver_config(UNIPC, "FlowMatchEulerDiscreteScheduler", "here")
    assert euler == {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}
    back = scheduler_of(solver_config(euler, "UniPCMultistepScheduler", "here"), 6)
    assert back.timesteps.tolist() == scheduler_of(UNIPC, 6).timesteps.tolist()
    dpm = solver_config({"_class_name": "CogVideoXDPMScheduler", **COGVIDEOX}, "CogVideoXDDIMScheduler", "here")
    assert (
        scheduler_of(dpm, 6).timesteps.tolist() == scheduler_of({"_class_name": "CogVideoXDPMScheduler", **COGVIDEOX}, 6).timesteps.tolist()
    )


@pytest.mark.parametrize(
    ("own", "solver", "words"),
    [
        ("wan 2.1 480p", "DDIMScheduler", "DDIMScheduler over the noise levels of UniPCMultistepScheduler"),
        ("latte", "FlowMatchEulerDiscreteScheduler", "over the noise levels of DDIMScheduler"),
        ("cogvideox 2b", "DDIMScheduler", "DDIMScheduler over the noise levels of CogVideoXDDIMScheduler"),
        ("latte", "EDMEulerScheduler", "EDMEulerScheduler over"),
        ("latte", "LCMScheduler", "found --solver LCMScheduler; wanted auto or one of"),
    ],
)
def test_a_solver_of_another_kind_is_refused(own: str, solver: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        solver_config(PUBLISHED[own], solver, "here")


def test_samplers_are_imported_without_torch() -> None:
    code = (
        "import sys, vditc.runtimes.schedulers.registry, vditc.sampling; print({'torch', 'onnx', 'diffusers', 'scipy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "set()"


def test_a_walk_says_what_it_was_made_of() -> None:
    about = scheduler_of(LTX, 4, Given("LTXPipeline", (9, 8, 8))).about
    assert json.loads(json.dumps(about)) == about
    assert (
        about["size"] == [9, 8, 8] and about["steps"] == 4 and about["pipeline"] == "LTXPipeline" and about["class"] == FLOW["_class_name"]
    )
