"""Models of two experts, compiled into one bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from command import vditc
from family_case import cases, save
from sampled_case import FLOW, sampled_case
from tolerances import WALKED, relative_l2
from two_experts import BOUNDARY, FIRST, GUIDANCE, STEPS, save_clips, save_two_experts

from vditc.bundle import MANIFEST, Bundle
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibration import Calibration
from vditc.conditioning import TEXT, Conditioning
from vditc.errors import InputError, VditcError
from vditc.experts import ExpertSwitch, experts_of
from vditc.model_dir import PARTS, ModelDir
from vditc.pipeline import compile as job_module
from vditc.pipeline.compile import compile_bundle, prepare_experts
from vditc.pipeline.denoisers import open_denoiser
from vditc.pipeline.experts import full_precision, joined, own_steps, sample_experts
from vditc.pipeline.job import Job
from vditc.pipeline.report_data import report_bundles
from vditc.pipeline.use import check_bundle, evaluate_bundle, sample_bundle
from vditc.pipeline.walk_plan import RunOptions
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.runtimes.reference import ReferenceModel
from vditc.safetensors_file import read_header
from vditc.schedule import Schedule
from vditc.target import Target

Array = np.ndarray[Any, Any]
LAYER = "blocks.1.ffn.net.0.proj"
SECOND = PARTS[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only; a file of conditionings lies beside it."""
    path = save_two_experts(tmp_path_factory.mktemp("experts"))
    save_clips(path)
    return path


class Walk(NamedTuple):
    """What diffusers did."""

    ran: list[str]  # the part of every forward pass
    latents: Array  # [clips, C, F, H, W]
    ranges: dict[str, list[float]]  # part -> greatest input of LAYER in each of its forward passes


@pytest.fixture(scope="module")
def walk(model: Path) -> Walk:
    """Two clips by diffusers' own pipeline."""
    parts = {p: diffusers.WanTransformer3DModel.from_pretrained(model / p, torch_dtype=torch.float32) for p in PARTS}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(model / "scheduler")
    pipe = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, boundary_ratio=BOUNDARY, **parts)
    pipe.set_progress_bar_config(disable=True)
    ran: list[str] = []
    ranges: dict[str, list[Any]] = {part: [] for part in PARTS}
    for part, module in parts.items():
        module.register_forward_pre_hook(lambda *_, part=part: ran.append(part))
        module.get_submodule(LAYER).register_forward_pre_hook(lambda _, x, part=part: ranges[part].append(float(x[0].abs().max())))
    given = Conditioning.load(model.with_name("conditioning.safetensors"))
    _, frames, height, width = given.latent_shape
    latents = [
        pipe(
            prompt_embeds=torch.from_numpy(given.inputs[TEXT][i : i + 1]),
            negative_prompt_embeds=torch.from_numpy(given.empty[TEXT]),
            latents=torch.from_numpy(given.noise(i)),
            guidance_scale=GUIDANCE[0],
            guidance_scale_2=GUIDANCE[1],
            num_inference_steps=STEPS,
            num_frames=4 * (frames - 1) + 1,
            height=8 * height,
            width=8 * width,
            output_type="latent",
        ).frames
        for i in range(len(given))
    ]
    return Walk(ran, torch.cat(latents).numpy(), ranges)


def make_job(model: Path, out: Path, recipe: str = "w8a8-static", **changes: Any) -> Job:
    chosen = dataclasses.replace(Recipe.load(recipe), gate=Gate())
    conditioning = model.with_name("conditioning.safetensors")
    job = Job(model_dir=model, recipe=chosen, targets=(Target.load("cpu"),), out=out, conditioning=conditioning)
    return dataclasses.replace(job, **changes)


def contents(bundle: Path) -> dict[str, bytes]:
    """Every file but the times."""
    files = {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    return {n: data for n, data in files.items() if n != "report/run.json"}


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """w8a8-static: it samples trajectories and has step tables. Read only."""
    compile_bundle(make_job(model, out := tmp_path_factory.mktemp("bundle") / "out.bundle"), SILENT)
    return Bundle.open(out)


def test_both_experts_are_in_the_bundle(bundle: Bundle) -> None:
    m = bundle.manifest
    assert m.experts == {SECOND: {"path": SECOND, "boundary": BOUNDARY, "first_step": FIRST}}
    second = bundle.experts[SECOND].manifest
    assert [m.model["part"], second.model["part"]] == [*PARTS] and m.model["digest"] != second.model["digest"]
    assert m.sampling["steps"] == len(m.sampling["schedule"]["timesteps"]) == STEPS
    assert second.sampling["schedule"]["timesteps"] == m.sampling["schedule"]["timesteps"][FIRST:]
    assert (m.sampling["guidance_scale"], m.sampling["guidance_scale_2"], second.sampling["guidance_scale"]) == (4.0, 3.0, 3.0)
    for one, count in ((m, FIRST), (second, STEPS - FIRST)):
        tables = [p["figures"]["steps"] for p in one.targets["cpu"]["graph"]["passes"] if "tables" in p["figures"]]
        assert tables == [count]
    assert {f"{SECOND}/{name}" for name in (*second.files, MANIFEST)} <= set(m.files)
    # Of the clips that both sample together; each with its own layers.
    assert m.quality is not None and second.quality is not None
    first, other = dict(m.quality), dict(second.quality)
    assert first.pop("layer_error") != other.pop("layer_error") and first == other
    assert len(first["step_error"]) == STEPS and 0 < max(first["step_error"]) < 0.2


def test_who_walks_which_step_is_as_in_diffusers(model: Path, bundle: Bundle, walk: Walk, tmp_path: Path) -> None:
    """Who runs, what the calibration saw of each, and where clips end: in full precision, and as a bundle of the recipe fp16."""
    assert walk.ran == 2 * ([PARTS[0]] * 2 * FIRST + [SECOND] * 2 * (STEPS - FIRST))  # two clips, two branches
    assert [expert.steps for expert in experts_of(bundle)] == [range(FIRST), range(FIRST, STEPS)]
    for one in experts_of(bundle):
        calibration = Calibration.load(one.bundle.file("calibration.safetensors"))
        assert calibration.guidance_scale == one.guidance_scale and len(calibration.timesteps) == len(one.steps)
        passes = np.array(walk.ranges[one.bundle.manifest.model["part"]]).reshape(2, len(one.steps), 2)
        seen = calibration.statistics["layers"][LAYER]["absmax_per_step"]
        np.testing.assert_allclose(seen, passes.max((0, 2)), rtol=WALKED)
    plans = prepare_experts(job := make_job(model, tmp_path / "float.bundle", "fp16", clips=1))
    full = sample_experts([full_precision(plan.verified, "cpu") for plan in plans], tmp_path, SILENT, "sample")
    assert relative_l2(joined(full).latents[:, -1], walk.latents) < WALKED
    sample_bundle(compile_bundle(job, SILENT), out := tmp_path / "out.safetensors", "", job.conditioning, None, "cpu", SILENT)
    latents = read_header(out)[0]["latents"].read()
    assert relative_l2(latents, walk.latents) < WALKED
    assert relative_l2(latents[::-1], walk.latents) > 0.1  # they are two clips


def test_scales_of_guidance(bundle: Bundle) -> None:
    def scales(*given: float | None, of: Bundle = bundle) -> list[float]:
        return [expert.guidance_scale for expert in experts_of(of, *given)]

    assert scales() == [4.0, 3.0] and scales(5.0) == [5.0, 3.0] and scales(None, 2.0) == [4.0, 2.0]
    sampling = {n: v for n, v in bundle.manifest.sampling.items() if n != "guidance_scale_2"}
    follows = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, sampling=sampling))
    assert scales(5.0, of=follows) == [5.0, 5.0] and scales(5.0, 1.0, of=follows) == [5.0, 1.0]


def test_one_model_at_a_time(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a job that samples, calibrates and compares: no full-precision model or graph is loaded before the one before has gone."""
    there: list[weakref.ref[Any]] = []
    made: list[str] = []

    def counted(kind: type[Any], plain: Callable[..., None]) -> Callable[..., None]:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            gc.collect()
            assert [type(known).__name__ for one in there if (known := one()) is not None] == []
            there.append(weakref.ref(self))
            made.append(kind.__name__)
            plain(self, *args, **kwargs)

        return init

    for kind in (ReferenceModel, FullPrecision, OnnxRuntimeModel):
        monkeypatch.setattr(kind, "__init__", counted(kind, kind.__init__))
    compiled = compile_bundle(make_job(model, tmp_path / "out.bundle", clips=1), SILENT)
    assert {name: made.count(name) for name in set(made)} == {
        "FullPrecision": 2,  # the calibrations
        "ReferenceModel": 4,  # sampling and errors of layers
        "OnnxRuntimeModel": 6,  # sampling, and the error of lowering
    }
    made.clear()
    sample_bundle(compiled, tmp_path / "out.safetensors", "", model.with_name("conditioning.safetensors"), None, "cpu", SILENT)
    assert made == ["OnnxRuntimeModel"] * 2  # two clips, and each expert is loaded once
    prompts = ("a 7 moving left",)
    found = evaluate_bundle(compiled, model, (), 2, 7, prompts, "reference", tmp_path / "work", "cpu", SILENT)
    assert len(found["step_error"]) == STEPS and 0 < found["step_error"][-1] < 0.2
    assert made[2:] == ["ReferenceModel"] * 4


class Killed(BaseException):
    """Stands for a signal: nothing but a test catches it."""


@pytest.mark.parametrize(
    ("stage", "call"),
    [
        pytest.param("export_model", 1, marks=pytest.mark.slow),
        ("calibrate", 2),
        ("verify_clips", 1),
        pytest.param("export_model", 2, marks=pytest.mark.slow),
        pytest.param("write_manifest", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_job_resumes_to_the_same_bytes(
    model: Path, bundle: Bundle, stage: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(job_module, stage), []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(stage)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    job = make_job(model, tmp_path / "out.bundle")
    with monkeypatch.context() as patch:
        patch.setattr(job_module, stage, killed)
        with pytest.raises(Killed):
            compile_bundle(job, SILENT)
    assert not job.out.exists()

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append("again")
        return real(*args, **kwargs)

    monkeypatch.setattr(job_module, stage, noted)
    compile_bundle(dataclasses.replace(job, resume=True), SILENT)
    assert contents(job.out) == contents(bundle.path)
    # What was done is not done again.
    left = {("export_model", 1): 2, ("calibrate", 2): 1, ("verify_clips", 1): 1, ("export_model", 2): 1, ("write_manifest", 2): 2}
    assert calls.count("again") == left[stage, call]


@pytest.mark.slow
def test_one_expert_alone(model: Path, bundle: Bundle, tmp_path: Path) -> None:
    """As a model of one transformer: it walks all steps, with its own scale of guidance."""
    alone = compile_bundle(make_job(model, tmp_path / "out.bundle", part=SECOND, clips=1), SILENT).manifest
    assert (
        alone.model["part"] == SECOND
        and alone.experts == {}
        and "experts" not in json.loads((tmp_path / "out.bundle" / MANIFEST).read_text())
    )
    assert alone.model["digest"] == bundle.experts[SECOND].manifest.model["digest"]
    assert len(alone.sampling["schedule"]["timesteps"]) == STEPS and alone.sampling["guidance_scale"] == GUIDANCE[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan-i2v", "wan-vace"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Constant channels behind the latents, and control blocks: whatever diffusers' pipeline, it switches alike."""
    path, conditioning = sampled_case(family, FLOW, 4.0, tmp_path)
    case = next(case for case in cases() if case.name == family)
    save(case, tmp_path / "second", seed=1).transformer.rename(path / SECOND)
    index = {"_class_name": "Pipeline", **{p: ["diffusers", case.config["_class_name"]] for p in PARTS}, "boundary_ratio": 0.9}
    (path / "model_index.json").write_text(json.dumps(index))
    made = compile_bundle(make_job(path, tmp_path / "out.bundle", conditioning=conditioning), SILENT)
    assert made.manifest.quality is not None and 0 < made.manifest.quality["step_error"][-1] < 0.2
    sample_bundle(made, out := tmp_path / "out.safetensors", "", conditioning, None, "cpu", SILENT)
    assert np.isfinite(read_header(out)[0]["latents"].read()).all()


@pytest.mark.slow
def test_recipes_of_their_own(model: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(Recipe.load("w4a16"), gate=Gate())
    made = compile_bundle(make_job(model, tmp_path / "out.bundle", "w8a8", recipe_2=other, clips=1), SILENT)
    second = made.experts[SECOND].manifest
    assert [made.manifest.recipe["name"], second.recipe["name"]] == ["w8a8", "w4a16"] and second.mean_bits < made.manifest.mean_bits


def test_checked_inspected_and_reported(bundle: Bundle, tmp_path: Path) -> None:
    found = check_bundle(bundle)
    assert found["layers"] == 2 * len(bundle.manifest.layers) and found["files"] == len(bundle.manifest.files)
    run = vditc("inspect", str(bundle.path))
    assert run.code == 0 and "transformer, steps 0 to 1, then transformer_2" in run.stdout and "transformer_2, steps 2 to 4" in run.stdout
    report_bundles([bundle], tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert "from step 2 on, guidance 3" in text and "w8a8-static, transformer_2" in text
    # The second expert's graph is not that of the calibration beside it.
    wrong = Path(shutil.copytree(bundle.path, tmp_path / "wrong.bundle"))
    for name in ("calibration.safetensors",):
        shutil.copyfile(wrong / name, wrong / SECOND / name)
    with pytest.raises(InputError, match="calibration"):
        Bundle.open(wrong)
    with pytest.raises(VditcError):
        check_bundle(Bundle(wrong, bundle.manifest))


def test_second_expert_is_no_bundle_to_sample_with(bundle: Bundle, model: Path, tmp_path: Path) -> None:
    second = Bundle.open(bundle.path / SECOND)
    out, conditioning = tmp_path / "out.safetensors", model.with_name("conditioning.safetensors")
    with pytest.raises(
        InputError, match=r"transformer_2, which goes on with clips .* wanted the bundle of the whole model; use .*/out\.bundle$"
    ):
        sample_bundle(second, out, "", conditioning, None, "cpu", SILENT)
    one = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, experts={}))
    with pytest.raises(InputError, match=r"found --guidance-2; wanted a bundle of two experts"):
        sample_bundle(one, out, "", conditioning, None, "cpu", SILENT, RunOptions(guidance_2=2.0))
    with pytest.raises(InputError, match=r"found --lora-2; wanted a bundle of two experts"):
        evaluate_bundle(one, model, (), 1, 0, (), "reference", tmp_path, "cpu", SILENT, ("x",))


def test_wrong_steps(bundle: Bundle, model: Path) -> None:
    feeds = {"hidden_states": np.zeros((1, 4, 2, 8, 8), np.float32), "encoder_hidden_states": np.zeros((1, 8, 16), np.float32)}
    with open_denoiser(bundle, "onnxruntime") as denoise, pytest.raises(InputError, match="found step 5; wanted 0 to 4"):
        denoise(feeds, STEPS)
    first, second = (OnnxRuntimeModel(one.bundle.path / one.bundle.manifest.targets["cpu"]["lowered"]) for one in experts_of(bundle))
    with pytest.raises(
        InputError, match=r"cpu\.onnx, transformer of two experts, which has steps 0 to 1 of the model: found step 2; wanted 0 to 1;"
    ):
        first(feeds, FIRST)
    with pytest.raises(
        InputError, match=r", transformer_2 of two experts, which has steps 2 to 4 of the model: found step 3; wanted 0 to 2;"
    ):
        second(feeds, 3)
    with pytest.raises(InputError, match=r"found timestep 1000 at step 0; wanted 751\.121, step 0 of 3"):
        second({**feeds, "timestep": np.array([1000.0], np.float32)}, 0)


def test_a_switch_closes_one_expert_before_it_opens_the_other() -> None:
    happened: list[Any] = []

    def expert(name: str) -> Any:
        @contextlib.contextmanager
        def opened() -> Any:
            happened.append(f"open {name}")
            yield lambda feeds, step: happened.append((name, step))
            happened.append(f"close {name}")

        return opened

    switch = ExpertSwitch([(range(2), expert("a")), (range(2, 4), expert("b"))])
    for step in (0, 1, 2, 3, 1):
        switch({}, step)
    switch.close()
    assert happened == [*("open a", ("a", 0), ("a", 1), "close a", "open b", ("b", 0), ("b", 1), "close b", "open a", ("a", 1), "close a")]
    with pytest.raises(InputError, match="found step 4; wanted 0 to 3"):
        switch({}, 4)


def test_a_switch_tells_the_times_of_the_expert_of_the_step() -> None:
    class Timed:
        context_bytes = 7

        def __call__(self, feeds: Any, step: int) -> Any:
            raise AssertionError

        def layer_seconds(self, feeds: Any, step: int, runs: int) -> dict[str, float]:
            return {f"step {step}": float(runs)}

    untimed: Any = lambda feeds, step: None  # noqa: E731
    switch = ExpertSwitch(
        [(range(2), lambda: contextlib.nullcontext(untimed)), (range(2, 4), lambda: contextlib.nullcontext[Any](Timed()))]
    )
    assert (switch.layer_seconds({}, 1, 5), switch.context_bytes) == (None, None)
    assert (switch.layer_seconds({}, 3, 5), switch.context_bytes) == ({"step 1": 5.0}, 7)


@pytest.mark.parametrize(
    ("times", "ratio", "first"),
    [
        ([1000.0, 875.0, 874.9], 0.875, 2),
        ([1000.0, 900.3590698242188, 1.0], 900.3590698242188 / 1000, 2),
        ([999, 874], 0.875, 1),
    ],
)
def test_the_boundary_belongs_to_the_first_expert(model: Path, times: list[float], ratio: float, first: int) -> None:
    """As diffusers compares: a step at the boundary's timestep itself is of high noise."""
    schedule = Schedule.flow(np.array([*times, 0.0]) / 1000)
    schedule = dataclasses.replace(schedule, timesteps=np.array(times, np.float32))
    source = dataclasses.replace(ModelDir.open(model, PARTS[0], hash_now=False), boundary_ratio=ratio)
    assert own_steps(source, schedule) == (range(first), range(first, len(times)))
    boundary = ratio * 1000
    assert [bool(t >= boundary) for t in torch.tensor(times)] == [i < first for i in range(len(times))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"index": {"boundary_ratio": None}}, r"found no boundary_ratio; .* or compile one transformer: --part transformer or --part"),
        ({"job": {"steps": 1}}, r"found 1 steps from timestep 1000 to 1000, none of them of transformer_2; wanted steps of both experts"),
        ({"index": {"boundary_ratio": 0.001}}, "none of them of transformer_2"),
        ({"job": {"part": SECOND, "guidance_scale_2": 2.0, "loras_2": ("x",)}}, "found --guidance-2, --lora-2 for one transformer"),
    ],
)
def test_what_is_no_model_of_two_experts(model: Path, change: dict[str, Any], words: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    index = json.loads((copy / "model_index.json").read_text()) | change.get("index", {})
    (copy / "model_index.json").write_text(json.dumps(index))
    job = make_job(model, tmp_path / "out.bundle", model_dir=copy, **change.get("job", {}))
    with pytest.raises(InputError, match=words):
        compile_bundle(job, SILENT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
