"""Schedulers of libvditc: the stored walks of diffusers, and those of the Python package on random options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ctypes import byref, c_double, c_uint64
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_library import Library, LibraryError, pointer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scheduler_goldens import STEPS, packed
from tolerances import SAMPLER

from vditc.errors import InputError
from vditc.runtimes.schedulers.pipelines import RULES, Given
from vditc.runtimes.schedulers.registry import BY_DDIM, CLASSES, scheduler_of, solver_config
from vditc.runtimes.schedulers.walk import Walk
from vditc.safetensors_file import read_header

FILE = Path(__file__).parents[1] / "runtimes" / "data" / "schedulers.safetensors"
ENTRIES, METADATA = read_header(FILE)
WALKS: dict[str, dict[str, Any]] = json.loads(METADATA["vditc"])
QUICK = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
# Levels by powers, exponentials and logarithms: numpy's and the C library's may be a unit of float32 apart.
SPREAD = 3e-7


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def levels(library: Library, walk: Any) -> tuple[float, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Start, timesteps, sigmas, rows."""
    steps, start = c_uint64(), c_double()
    library("schedule_steps", walk, byref(steps))
    times, sigmas = np.empty(steps.value, np.float32), np.empty(steps.value + 1, np.float32)
    library("schedule_levels", walk, byref(start), pointer(times), pointer(sigmas))
    rows = np.empty((steps.value, 15))
    library("schedule_rows", walk, pointer(rows), c_uint64(rows.nbytes), None)
    return start.value, times, sigmas, rows


def config_text(config: Mapping[str, Any]) -> str:
    return json.dumps({name: str(v) if v in (float("inf"), -float("inf")) else v for name, v in config.items()})


@pytest.mark.parametrize("name", WALKS)
def test_golden_walks(library: Library, name: str) -> None:
    about = WALKS[name]
    times, sigmas, rows, noise, said, latents = (
        np.array(ENTRIES[f"{name}/{what}"].read()) for what in ("timesteps", "sigmas", "rows", "noise", "predictions", "latents")
    )
    with library.schedule(config_text({"_class_name": about["class"], **about["config"]}), STEPS) as walk:
        start, our_times, our_sigmas, our_rows = levels(library, walk)
        assert start == pytest.approx(about["start"], rel=1e-12)
        np.testing.assert_allclose(our_times, times, rtol=SPREAD if "cosmos" in name else 0)
        np.testing.assert_allclose(our_sigmas, sigmas, rtol=SPREAD)
        np.testing.assert_allclose(our_rows, rows, rtol=2e-6 if "cosmos" in name else 1e-9, atol=1e-12)
        for given_noise in (True, False):  # what a solver adds is what it draws by itself
            x = np.array(latents[0])
            for i in range(STEPS):
                shown = np.empty_like(x)
                library("schedule_shown", walk, c_uint64(i), pointer(x), pointer(shown), c_uint64(x.size))
                np.testing.assert_array_equal(shown, x * np.float32(our_rows[i, 0]))
                added = pointer(noise[i]) if given_noise else None
                library("schedule_step", walk, c_uint64(i), pointer(said[i]), pointer(x), added, pointer(x), c_uint64(x.size))  # in place
                error = np.abs(x - latents[i + 1]).max() / max(1.0, np.abs(latents[i + 1]).max())
                assert error <= SAMPLER, (name, i)
                if about["class"].startswith("FlowMatch") and "cosmos" not in name:
                    np.testing.assert_array_equal(x, latents[i + 1])  # diffusers' own bits


def same_walk(library: Library, config: Mapping[str, Any], steps: int, given_: Given | None = None, spread: float = SPREAD) -> None:
    """Both refuse a configuration, or their tables agree, and a walk along equal ones comes to the same bits."""
    given_ = given_ or Given()
    options: dict[str, Any] = {"patch": given_.patch, "size": given_.size, "pipeline": given_.pipeline and given_.pipeline.encode()}
    try:
        ours = scheduler_of(config, steps, given_)
        assert isinstance(ours, Walk)
    except InputError as error:
        with pytest.raises(LibraryError) as caught, library.schedule(config_text(config), steps, **options):
            pass
        assert caught.value.message.split(": ", 1)[1][:24] == str(error).split(": ", 1)[1][:24]
        return
    with library.schedule(config_text(config), steps, **options) as walk:
        start, times, sigmas, rows = levels(library, walk)
        assert start == pytest.approx(ours.start, rel=1e-12)
        np.testing.assert_allclose(times, ours.timesteps, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(sigmas, ours.sigmas, rtol=spread, atol=1e-7)
        wanted = np.array([packed(row) for row in ours.rows])
        exact = np.array_equal(sigmas, ours.sigmas)
        if exact:
            np.testing.assert_allclose(rows, wanted, rtol=1e-7, atol=1e-9)
        random, x = np.random.default_rng(1), np.random.default_rng(0).standard_normal((2, 3, 5), np.float32)
        y = x.copy()
        for i in range(steps):
            said = random.standard_normal(x.shape, np.float32)
            x = np.array(ours.step(said, i, x))
            library("schedule_step", walk, c_uint64(i), pointer(said), pointer(y), None, pointer(y), c_uint64(y.size))
            if np.array_equal(rows.astype(np.float32), wanted.astype(np.float32)):
                np.testing.assert_array_equal(x, y)
            elif exact:
                assert np.abs(x - y).max() <= 1e-5 * max(1.0, float(np.abs(x).max())), i
            else:
                y = x.copy()  # levels that are a unit apart lead elsewhere; the tables were compared


EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
UNIPC = {"_class_name": "UniPCMultistepScheduler"}
KARRAS = st.sampled_from([{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}])
BETAS = st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])
SPACING = st.sampled_from(["linspace", "leading", "trailing"])
FINAL = st.sampled_from(["zero", "sigma_min"])


@given(st.data())
@QUICK
def test_solvers_of_flows(library: Library, data: st.DataObject) -> None:
    draw = data.draw
    config: dict[str, Any]
    match draw(st.sampled_from(["euler", "unipc", "dpm"])):
        case "euler":
            config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": draw(st.floats(0.5, 15)), **draw(KARRAS)}
            config |= {"shift_terminal": draw(st.sampled_from([None, 0.1])), "invert_sigmas": draw(st.booleans())}
        case "unipc":
            config = {
                "_class_name": "UniPCMultistepScheduler",
                "flow_shift": draw(st.floats(0.5, 12)),
                "solver_order": draw(st.integers(1, 3)),
            }
            config |= {"solver_type": draw(st.sampled_from(["bh1", "bh2"])), "use_karras_sigmas": draw(st.booleans())}
            config |= {"disable_corrector": draw(st.sampled_from([[], [0], [0, 2]])), "final_sigmas_type": draw(FINAL)}
        case _:
            config = {
                "_class_name": "DPMSolverMultistepScheduler",
                "flow_shift": draw(st.floats(0.5, 12)),
                "solver_order": draw(st.integers(1, 3)),
            }
            config |= {"algorithm_type": draw(st.sampled_from(["dpmsolver++", "sde-dpmsolver++"])), "euler_at_final": draw(st.booleans())}
            config |= {"solver_type": draw(st.sampled_from(["midpoint", "heun"]))}
    if config["_class_name"] != "FlowMatchEulerDiscreteScheduler":
        config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "lower_order_final": draw(st.booleans())}
        config |= {"solver_order": draw(st.integers(1, 3))}
    same_walk(library, config, draw(st.integers(1, 30)), spread=2e-6)


@given(st.data())
@QUICK
def test_solvers_of_betas(library: Library, data: st.DataObject) -> None:
    draw = data.draw
    names = ("UniPCMultistep", "DPMSolverMultistep", "DDIM", "CogVideoXDDIM", "CogVideoXDPM", "EulerDiscrete")
    name = draw(st.sampled_from([f"{n}Scheduler" for n in names]))
    kinds = ["epsilon", "sample", "v_prediction"]
    config: dict[str, Any] = {"_class_name": name, "beta_schedule": draw(BETAS), "prediction_type": draw(st.sampled_from(kinds))}
    config |= {"timestep_spacing": draw(SPACING), "rescale_betas_zero_snr": draw(st.booleans()), "steps_offset": draw(st.integers(0, 1))}
    if "Multistep" in name:
        config |= {"solver_order": draw(st.integers(1, 3)), "final_sigmas_type": draw(FINAL), "lower_order_final": draw(st.booleans())}
        config |= draw(KARRAS)
    if name == "UniPCMultistepScheduler":
        config |= {"predict_x0": draw(st.booleans()), "solver_type": draw(st.sampled_from(["bh1", "bh2", "midpoint"]))}
    elif name == "DPMSolverMultistepScheduler":
        config |= {"algorithm_type": draw(st.sampled_from(["dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"]))}
        config |= {"solver_type": draw(st.sampled_from(["midpoint", "heun", "bh1"])), "euler_at_final": draw(st.booleans())}
        config |= {"lambda_min_clipped": draw(st.sampled_from([-float("inf"), -5.1]))}
        config |= draw(st.sampled_from([{}, {"use_lu_lambdas": True}]))
    elif name == "EulerDiscreteScheduler":
        config |= {"final_sigmas_type": draw(FINAL), **draw(KARRAS)}
    else:
        config |= {"clip_sample": draw(st.booleans()) if "Cog" in name else False, "set_alpha_to_one": draw(st.booleans())}
        config |= {"snr_shift_scale": draw(st.floats(0.5, 4))} if "Cog" in name else {}
    same_walk(library, config, draw(st.integers(1, 40)), spread=2e-6)


@given(st.data())
@QUICK
def test_edm(library: Library, data: st.DataObject) -> None:
    draw = data.draw
    config: dict[str, Any] = {"_class_name": draw(st.sampled_from(["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]))}
    config |= {"prediction_type": draw(st.sampled_from(["epsilon", "v_prediction"])), "final_sigmas_type": draw(FINAL)}
    config |= {"sigma_schedule": draw(st.sampled_from(["karras", "exponential"])), "sigma_max": draw(st.sampled_from([80.0, 20.0]))}
    if "DPM" in config["_class_name"]:
        config |= {"solver_order": draw(st.integers(1, 3)), "algorithm_type": draw(st.sampled_from(["dpmsolver++", "sde-dpmsolver++"]))}
    same_walk(library, config, draw(st.integers(1, 30)), spread=2e-6)


@pytest.mark.parametrize("pipeline", [*RULES, "WanPipeline", None])
def test_what_pipelines_hand_over(library: Library, pipeline: str | None) -> None:
    configs: tuple[dict[str, Any], ...] = (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
        {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "shift": 7.0,
            "shift_terminal": 0.1,
            "invert_sigmas": pipeline == "MochiPipeline",
        },
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    )
    for config in configs:
        for size in ((9, 30, 40), None):
            same_walk(library, config, 7, Given(pipeline, size, 4))


@given(st.sampled_from([*CLASSES, *BY_DDIM]), st.sampled_from([*CLASSES, "NoScheduler"]), st.booleans())
@QUICK
def test_other_solvers_over_the_same_levels(library: Library, own: str, solver: str, flow: bool) -> None:
    config: dict[str, Any] = {"_class_name": own, "num_train_timesteps": 500}
    assume("EDM" not in own or not flow)
    if flow and own in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler"):
        config |= {"use_flow_sigmas": True, "flow_shift": 4.0, "prediction_type": "flow_prediction"}
    if own == "FlowMatchEulerDiscreteScheduler":
        config |= {"shift": 5.0}
    if own == "DDIMScheduler":
        config |= {"clip_sample": False}
    try:
        chosen = solver_config(config, solver, "here")
    except InputError as error:
        with pytest.raises(LibraryError, match="solver") as caught, library.schedule(config_text(config), 5, solver=solver.encode()):
            pass
        assert error.found.removeprefix("--") in caught.value.message
        return
    theirs = scheduler_of(chosen, 5)
    with library.schedule(config_text(config), 5, solver=solver.encode()) as walk:
        _, times, sigmas, _ = levels(library, walk)
        np.testing.assert_allclose(times, theirs.timesteps, rtol=1e-6)
        np.testing.assert_allclose(sigmas, theirs.sigmas, rtol=SPREAD)


def test_shift_of_a_flow(library: Library) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}
    theirs = scheduler_of({**config, "shift": 6.0, "use_dynamic_shifting": False}, 9)
    with library.schedule(json.dumps(config), 9, shift=6.0) as walk:
        np.testing.assert_array_equal(levels(library, walk)[1], theirs.timesteps)
    betas, words = '{"_class_name": "DDIMScheduler", "clip_sample": false}', r"shift 6 of DDIMScheduler; wanted a shift above 0"
    with pytest.raises(LibraryError, match=words), library.schedule(betas, 9, shift=6.0):
        pass
    with pytest.raises(LibraryError, match=r"VDITC_ERROR_ARGUMENT: .*shift -1"), library.schedule(json.dumps(config), 9, shift=-1.0):
        pass


@pytest.mark.parametrize(
    ("config", "steps", "words"),
    [
        ({"_class_name": "HeunDiscreteScheduler"}, 4, r"UNSUPPORTED: .*scheduler HeunDiscreteScheduler; wanted one of FlowMatch"),
        ({"_class_name": "DDIMScheduler"}, 4, r"INPUT: .*clip_sample = true; wanted false"),
        ({**EULER, "sift": 3}, 4, r"with sift; wanted options of num_train_timesteps"),
        ({**EULER, "shift": "3"}, 4, r"shift = '3'; wanted something like 1"),
        (EULER, 0, r"ARGUMENT: .*0 steps; wanted 1 to"),
        (UNIPC, 1001, r"1001 steps; wanted at most the 1000 of the training"),
        ({**UNIPC, "num_train_timesteps": 10**12}, 4, r"INPUT: .*num_train_timesteps = 1000000000000; wanted 2 to"),
        ({**UNIPC, "trained_betas": [0.1, 0.2]}, 2, r"2 trained_betas; wanted num_train_timesteps = 1000"),
        ({**EULER, "use_dynamic_shifting": True}, 4, r"of no known pipeline; wanted false, or a clip"),
        ([1], 4, r"scheduler None"),
    ],
)  # fmt: skip
def test_what_is_refused(library: Library, config: Any, steps: int, words: str) -> None:
    with pytest.raises(LibraryError, match=words), library.schedule(json.dumps(config), steps):
        pass


def test_steps_come_in_order(library: Library) -> None:
    wan = WALKS["wan-2.1-480p"]
    x = np.zeros(8, np.float32)
    with library.schedule(config_text({"_class_name": wan["class"], **wan["config"]}), 4) as walk:

        def step(index: int) -> None:
            library("schedule_step", walk, c_uint64(index), pointer(x), pointer(x), None, pointer(x), c_uint64(x.size))

        step(0)
        with pytest.raises(LibraryError, match=r"ARGUMENT: schedule: found step 2; wanted step 1: UniPC"):
            step(2)
        step(1)
        step(0)  # anew
        with pytest.raises(LibraryError, match=r"step 4; wanted 0 to 3"):
            step(4)
        with pytest.raises(LibraryError, match=r"SHORT_BUFFER: rows: found 8 bytes; wanted 480 bytes"):
            library("schedule_rows", walk, pointer(x), c_uint64(8), None)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_noise_is_numpys(library: Library, seed: int) -> None:
    """Long enough for the ziggurat's tail, which one number in some thousands falls into."""
    made = np.empty(200_001, np.float32)
    library("noise", c_uint64(seed), pointer(made), c_uint64(made.size))
    np.testing.assert_array_equal(made, np.random.default_rng(seed).standard_normal(made.size, np.float32))
    assert np.abs(made).max() > 3.7
