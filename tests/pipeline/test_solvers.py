"""A model whose scheduler is a solver of several steps, from compile to run; and what `vditc run` may ask of the walk."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import vditc
from diffusers_walks import UNIPC
from tiny_model import SAMPLING, tiny_clips

from vditc.adapter import InputSpec
from vditc.bundle import Bundle
from vditc.calibration import Calibration
from vditc.errors import InputError
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.guidance_passes import guidance_passes
from vditc.pipeline.job import Job
from vditc.pipeline.schedules import Solver, WalkOptions, bundle_scheduler
from vditc.pipeline.use import evaluate_bundle, sample_bundle
from vditc.pipeline.walk_plan import RunOptions, step_cache, with_embedded_guidance
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.safetensors_file import read_header
from vditc.sampling import sample
from vditc.step_cache import StepCache
from vditc.target import Target

STEPS = 6
PROMPT = "a 7 moving left"


@pytest.fixture(scope="module")
def model_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with Wan's own scheduler."""
    folder = tmp_path_factory.mktemp("unipc") / "model"
    shutil.copytree(tiny_dir, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(UNIPC))
    (folder / "sampling.json").write_text(json.dumps({**SAMPLING, "steps": STEPS}))
    return folder


@pytest.fixture(scope="module")
def bundle(model_dir: Path) -> Bundle:
    """Its bundle: the portable graph has no tables, the lowered one those of the time path."""
    recipe = dataclasses.replace(Recipe.load("w8a8"), gate=Gate())
    out = model_dir.with_name("tiny.bundle")
    return compile_bundle(
        Job(model_dir=model_dir, recipe=recipe, targets=(Target.load("cpu"),), out=out, prompts=(PROMPT,), clips=2), SILENT
    )


def run(bundle: Bundle, out: Path, backend: str = "onnxruntime", **options: Any) -> np.ndarray:
    sample_bundle(bundle, out, PROMPT, None, 3, backend, SILENT, RunOptions(**options))
    return np.array(read_header(out)[0]["latents"].read())


def test_the_bundle_says_which_solver_walks(bundle: Bundle) -> None:
    sampling = bundle.manifest.sampling
    assert sampling["solver"]["class"] == "UniPCMultistepScheduler" and sampling["solver"]["config"]["flow_shift"] == 3.0
    walk = Solver.of_config(UNIPC).walk(STEPS)
    times = walk.timesteps.tolist()
    assert sampling["schedule"]["timesteps"] == times and times[0] == 999.0  # of UniPC, not of Euler's method
    assert Calibration.load(bundle.file("calibration.safetensors")).timesteps == tuple(times)
    assert bundle.manifest.quality is not None and len(bundle.manifest.quality["step_error"]) == STEPS


def test_run_walks_with_the_solver(bundle: Bundle, model_dir: Path, tmp_path: Path) -> None:
    found = run(bundle, tmp_path / "a.safetensors")
    clip = dataclasses.replace(tiny_clips(model_dir), prompts=(PROMPT,), seeds=(3,))
    one = dataclasses.replace(clip, inputs={n: a[:1] for n, a in clip.inputs.items()})
    model = OnnxRuntimeModel(bundle.file("model.onnx"))
    specs = tuple(
        InputSpec(i["name"], i["dtype"], tuple(i["dims"]), "timestep" if i["name"] == "timestep" else "normal")
        for i in bundle.manifest.inputs
    )
    wanted = sample(model, Solver.of_config(UNIPC).walk(STEPS), one.clips([0], specs), SAMPLING["guidance_scale"])  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, wanted)
    euler = run(bundle, tmp_path / "b.safetensors", walk=WalkOptions(solver="FlowMatchEulerDiscreteScheduler"))
    assert 0 < np.abs(euler - found).max() < np.abs(found).max()
    two = run(bundle, tmp_path / "c.safetensors", passes="two")
    np.testing.assert_allclose(two, found, rtol=0, atol=0.05 * np.abs(found).max())  # sums of another batch: codes flip by one


def test_any_number_of_steps_where_there_is_no_table(bundle: Bundle, tmp_path: Path) -> None:
    assert run(bundle, tmp_path / "a.safetensors", walk=WalkOptions(steps=3, shift=5.0)).shape == (1, 4, 2, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 3}, "found 3 steps; wanted the 6 steps of the graph's tables"),
        ({"shift": 5.0}, r"found timestep 961 at step 1; wanted 937, which the graph's tables were made for"),
        ({"solver": "FlowMatchEulerDiscreteScheduler"}, "found timestep 1000 at step 0; wanted 999"),
        ({"solver": "DDIMScheduler"}, "found DDIMScheduler over the noise levels of UniPCMultistepScheduler"),
    ],
)
def test_a_schedule_that_the_table_does_not_hold(bundle: Bundle, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(bundle, tmp_path / "a.safetensors", "cpu", walk=WalkOptions(**options))
    assert not (tmp_path / "a.safetensors").exists()


def test_the_guides_commands(bundle: Bundle, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/sampling.md: ONNX Runtime walks as it is told to, its graph has no tables."""
    page = (Path(__file__).resolve().parents[2] / "docs/sampling.md").read_text()
    lines = [shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert [words[:2] for words in lines] == [["vditc", "run"], ["vditc", "run"], ["vditc", "eval"]]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(PROMPT)
    for words in lines:
        told = {"wan.bundle": str(bundle.path), "MODEL_DIR": str(model_dir), "...": PROMPT}
        extra = ["--count", "1"] if words[1] == "eval" else []
        done = vditc(*[told.get(word, word) for word in words[1:]], *extra)
        assert done.code == 0, done.stderr
        assert words[1] == "eval" or (tmp_path / "clip.mp4").stat().st_size > 0
        (tmp_path / "clip.mp4").unlink(missing_ok=True)


def with_sampling(bundle: Bundle, **changes: Any) -> Bundle:
    sampling = {k: v for k, v in {**bundle.manifest.sampling, **changes}.items() if v is not None}
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, sampling=sampling))


def test_a_bundle_without_a_solver_walks_its_table(bundle: Bundle) -> None:
    old, size = with_sampling(bundle, solver=None), (2, 8, 8)
    assert bundle_scheduler(old, "cpu", size).timesteps.tolist() == bundle.manifest.sampling["schedule"]["timesteps"]
    with pytest.raises(InputError, match=r"found --steps 4 --shift 2\.0 for a bundle without a solver"):
        bundle_scheduler(old, None, size, WalkOptions(steps=4, shift=2.0))


def test_the_step_cache_is_of_the_quantized_model(bundle: Bundle, model_dir: Path, tmp_path: Path) -> None:
    about = bundle.manifest.sampling["step_cache"]
    assert list(about["coefficients"]) == ["prompted", "unprompted"] and about["thresholds"]
    whole = run(bundle, tmp_path / "a.safetensors")
    assert (run(bundle, tmp_path / "b.safetensors", step_cache="1e-9") == whole).all()  # leaves out nothing
    assert (run(bundle, tmp_path / "c.safetensors", step_cache="1e9") != whole).any()
    found = evaluate_bundle(bundle, model_dir, (), 1, 7, (PROMPT,), "onnxruntime", tmp_path / "work", "cpu", SILENT, cached="1e9")
    assert found["step_cache"]["skipped"] == pytest.approx((STEPS - 2) / STEPS)
    assert found["step_cache"]["without"]["psnr_db"] < 100 and set(found["step_cache"]) == {
        "threshold",
        "skipped",
        "full_precision",
        "without",
    }


def test_a_step_cache_that_is_not_there_or_not_for_this(bundle: Bundle, tmp_path: Path) -> None:
    walk = bundle_scheduler(bundle, None, (2, 8, 8))
    with pytest.raises(InputError, match="found no step cache; wanted a polynomial that was fitted at compile"):
        step_cache(with_sampling(bundle, step_cache=None), "0.1", 2.0, walk)
    with pytest.raises(InputError, match="found --step-cache on 4 steps of another schedule; wanted the 6 steps"):
        step_cache(bundle, "0.1", 2.0, bundle_scheduler(bundle, None, (2, 8, 8), WalkOptions(steps=4)))
    cache = StepCache.from_json(bundle.manifest.sampling["step_cache"])
    alone = dataclasses.replace(cache, coefficients={"prompted": cache.coefficients["prompted"]})
    with pytest.raises(InputError, match="found --step-cache at guidance 2; wanted guidance 1"):
        step_cache(with_sampling(bundle, step_cache=alone.to_json()), "0.1", 2.0, walk)
    with pytest.raises(InputError, match="found --step-cache lots"):
        run(bundle, tmp_path / "a.safetensors", step_cache="lots")


@pytest.mark.parametrize(
    ("batch", "asked", "wanted"),
    [([1, 2, 2], None, "batched"), ([1, 2, 2], "two", "two"), ([1, 1, 1], None, "two"), ([2, 2, 4], None, "batched")],
)
def test_passes_follow_the_profile(bundle: Bundle, batch: list[int], asked: Any, wanted: str) -> None:
    narrow = Bundle(bundle.path, dataclasses.replace(bundle.manifest, profile={**bundle.manifest.profile, "batch": batch}))
    assert guidance_passes(narrow, "cpu", asked) == wanted
    assert guidance_passes(narrow, "onnxruntime", asked) == (asked or "batched")


@pytest.mark.parametrize(
    ("batch", "asked", "words"),
    [
        ([1, 1, 1], "batched", "found --guidance-passes batched with an engine for 1 to 1 clips at once; wanted two"),
        ([2, 2, 2], "two", "found --guidance-passes two with an engine for 2 to 2 clips at once; wanted batched"),
        ([4, 4, 4], None, "found --guidance-passes auto with an engine for 4 to 4 clips at once; wanted an engine for one clip or two"),
    ],
)
def test_passes_that_the_engine_does_not_take(bundle: Bundle, batch: list[int], asked: Any, words: str) -> None:
    narrow = Bundle(bundle.path, dataclasses.replace(bundle.manifest, profile={**bundle.manifest.profile, "batch": batch}))
    with pytest.raises(InputError, match=words):
        guidance_passes(narrow, "cpu", asked)


def test_a_guidance_scale_that_the_model_is_told(tiny_dir: Path) -> None:
    given, specs = tiny_clips(tiny_dir), (InputSpec("hidden_states", "float32", ("batch", 4, "frames", "height", "width")),)
    with pytest.raises(InputError, match="found --embedded-guidance 7; wanted a model with an input `guidance`"):
        with_embedded_guidance(given, specs, 7.0)
    told = with_embedded_guidance(given, (*specs, InputSpec("guidance", "float32", ("batch",), 6000.0)), 7.0)
    assert told.inputs["guidance"].tolist() == [7000.0, 7000.0] and with_embedded_guidance(given, specs, None) is given


def test_the_command_line_asks_for_another_walk(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "clip.safetensors"
    words = ["run", str(bundle.path), "--prompt", PROMPT, "-o", str(out)]
    assert vditc(*words, "--steps", "3", "--shift", "5", "--guidance-passes", "two", "--solver", "auto").code == 0 and out.exists()
    cached = vditc(*words, "--force", "--step-cache", "1e9")
    assert cached.code == 0 and "the step cache left out 4 of 6 runs of the model" in cached.stdout + cached.stderr
    for more, said in ((["--backend", "cpu", "--steps", "3"], "found 3 steps"), (["--step-cache", "x"], "found --step-cache x")):
        refused = vditc(*words, "--force", *more)
        assert refused.code == 2 and said in refused.stderr
    assert vditc(*words, "--force", "--guidance-passes", "three").code == 2
