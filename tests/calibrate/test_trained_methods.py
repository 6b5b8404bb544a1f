"""Q-VDiT and QVGen: what they learn lowers the error, is what the reference computes, and survives a kill."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchrun
from tiny_model import tiny_sampled
from watcher import Watcher

from vditc.calibrate import training
from vditc.calibrate.dataset import sample_dataset
from vditc.calibrate.methods.qvdit import EstimatedLinear, QVDiT
from vditc.calibrate.methods.qvgen import BranchedLinear
from vditc.calibrate.methods.registry import method_for
from vditc.calibrate.rank_decay import RankDecay
from vditc.calibrate.ranks import Ranks
from vditc.calibrate.stage import calibrate, uncalibrated
from vditc.calibrate.student import results
from vditc.calibrate.training import Now
from vditc.calibration import Calibration, LayerCalibration
from vditc.conditioning import Conditioning
from vditc.correction import FrameOrder
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.export.stage import export_model
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.pipeline.schedules import load_schedule
from vditc.progress import SILENT
from vditc.recipe import Recipe, Rule, builtin_recipes
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.runtimes.reference import QuantizedLinear, ReferenceModel
from vditc.sampling import sample
from vditc.scheme import QuantSpec, Scheme, quantize_weight
from vditc.transform import OutputTransform, Transform

F32 = np.float32
STEPS, GUIDANCE = 3, 2.0
SHORT: dict[str, dict[str, Any]] = {
    "qvdit": {"iterations": 12, "batch_size": 4, "rate": 2e-3, "scale_rate": 1e-3, "gamma": 1.0},
    "qvgen": {"iterations": 25, "batch_size": 4, "rate": 3e-4, "scale_rate": 1e-4, "clip_rate": 5e-2, "rank": 4, "tail": 0.2},
}


def scheme(weight: QType, activation: QType, symmetric: bool = False) -> Scheme:
    return Scheme(
        weight=QuantSpec(qtype=weight, granularity=Granularity.PER_CHANNEL, symmetric=symmetric),
        activation=QuantSpec(qtype=activation, granularity=Granularity.PER_TOKEN, dynamic=True),
    )


W3A6, W4A4, W3A3 = scheme(QType.INT3, QType.INT6), scheme(QType.INT4, QType.INT4), scheme(QType.INT3, QType.INT3)


def recipe(method: str, chosen: Scheme, **settings: Any) -> Recipe:
    rules = (Rule(match=("self_attn.*", "cross_attn.*", "ffn.*"), scheme=chosen), Rule(match=("*",), keep="in this test"))
    settings = SHORT[method] | settings
    return dataclasses.replace(
        Recipe.load("w8a8"), name="test", method=method, rules=rules, settings=settings, digest=f"{method} {settings}"
    )


Run = Callable[..., Calibration]


@pytest.fixture
def run(tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path) -> Run:
    def calibrated(own: Recipe, work: str = "work", progress: Any = SILENT) -> Calibration:
        found = calibrate(
            tiny_sampled(tiny, tiny_conditioning, steps=STEPS, guidance_scale=GUIDANCE),
            recipe=own,
            out=tmp_path / f"{work}.safetensors",
            work=tmp_path / work,
            progress=progress,
        )
        assert found is not None
        return found

    return calibrated


def output_error(tiny: ModelDir, conditioning: Conditioning, known: Calibration) -> float:
    """Mean squared error on the full-precision model's trajectories, which start from other noise than those that were learnt from."""
    adapter, schedule = adapter_for(tiny), load_schedule(tiny.path, STEPS)
    exact, ours, errors = ReferenceModel(adapter, tiny, None), ReferenceModel(adapter, tiny, known), []

    def denoise(feeds: Any, step: int) -> Any:
        said = exact(feeds, step)
        errors.append(float(np.square(ours(feeds, step) - said).mean()))
        return said

    others = dataclasses.replace(conditioning, seeds=(105, 106))
    sample(denoise, schedule, others.clips([0, 1], adapter.inputs(tiny)), GUIDANCE)
    return float(np.mean(errors))


@pytest.mark.parametrize(("method", "chosen"), [("qvdit", W3A6), ("qvgen", W3A3)])
def test_what_is_learnt_lowers_the_error_of_the_output(
    tiny: ModelDir, tiny_conditioning: Conditioning, run: Run, method: str, chosen: Scheme
) -> None:
    known = run(recipe(method, chosen))
    frozen = {"scale_rate": 0.0} if method == "qvdit" else {"clip_rate": 0.0, "rank": 0}
    still = run(recipe(method, chosen, iterations=1, rate=0.0, **frozen), "still")
    assert output_error(tiny, tiny_conditioning, known) < 0.8 * output_error(tiny, tiny_conditioning, still)
    history = known.statistics["training"]["loss"]
    assert history[-1][0] == SHORT[method]["iterations"] and np.isfinite([value for _, value in history]).all()
    layer = known.layers["blocks.0.ffn.net.2"]
    if method == "qvgen":
        assert layer.activation_clip is not None and layer.activation_clip.shape == (STEPS,)
        assert layer.correction.tensors() == {}, "nothing of the branch is left"
        zero = layer.weight.read().zero_point
        assert zero is not None and (zero != np.rint(zero)).any(), "zero points are real numbers"
    else:
        assert set(layer.correction.tensors()) == {"compensation.alpha", "compensation.beta", "compensation.frames"}


def test_every_part_of_the_estimator_can_be_left_out(run: Run) -> None:
    def parts(**settings: Any) -> tuple[set[str], int | None]:
        known = run(recipe("qvdit", W3A6, iterations=1, **settings), f"{settings}")
        return {name for layer in known.layers.values() for name in layer.correction.tensors()}, known.latent_frames

    assert parts(estimator=False, frame_factors=False) == (set(), None)
    assert parts(frame_factors=False) == ({"compensation.alpha", "compensation.beta"}, None)
    assert parts(inner_rank=0, gamma=0.0)[1] == 2


def test_text_layers_have_an_estimate_but_no_frames(run: Run) -> None:
    layers = run(recipe("qvdit", W3A6, iterations=1)).layers
    assert layers["blocks.0.attn2.to_k"].correction.frames is None and layers["blocks.0.attn2.to_k"].correction.alpha is not None
    assert layers["blocks.0.attn2.to_q"].correction.order is FrameOrder.FRAMES_FIRST


def test_clips_of_another_length_are_refused(tiny: ModelDir, run: Run, tmp_path: Path) -> None:
    """By the graph and by the reference: their frames would get each other's factors."""
    known, out = run(recipe("qvdit", W3A6, iterations=1)), tmp_path / "model.onnx"
    export_model(source=tiny, adapter=adapter_for(tiny), calibration=known, out=out, progress=SILENT)
    rng = np.random.default_rng(0)

    def feeds(frames: int) -> dict[str, Any]:
        text = rng.standard_normal((1, 5, 16), np.float32)
        return {
            "hidden_states": rng.standard_normal((1, 4, frames, 8, 8), np.float32),
            "timestep": np.ones(1, F32),
            "encoder_hidden_states": text,
        }

    OnnxRuntimeModel(out, threads=1)(feeds(2), 0)
    with pytest.raises(InputError, match=r"hidden_states"):
        OnnxRuntimeModel(out, threads=1)(feeds(4), 0)
    with pytest.raises(InputError, match=r"hidden_states"):
        OnnxRuntimeModel(out, threads=1)(feeds(1), 0)
    with pytest.raises(InputError, match=r"clips of 4 latent frames; wanted 2"):
        ReferenceModel(adapter_for(tiny), tiny, known)(feeds(4), 0)


def made(kind: str, order: FrameOrder | None = None) -> tuple[Any, LayerCalibration, torch.nn.Linear]:
    """A layer that was trained a little, by noise."""
    random = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(32, 16)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    chosen = W3A6 if kind == "qvdit" else W4A4
    balance = Transform(balance=np.linspace(0.5, 2, 32, dtype=F32), rotation=32) if kind == "qvdit" else Transform()
    output = OutputTransform(balance=np.linspace(0.8, 1.2, 8, dtype=F32), rotation=4, start=4)  # as of a v
    weight = quantize_weight(balance.weight(output.weight(linear.weight.detach().numpy())), chosen.weight)
    start = LayerCalibration(role="self_attn.v", scheme=chosen, weight=weight, transform=balance, output=output)
    now = Now(steps=torch.tensor([2, 0]))
    module: Any
    if kind == "qvdit":
        module = EstimatedLinear(start, linear.weight, linear.bias, now)
        module.free(QVDiT(inner_rank=4), 3, order, random)
    else:
        module = BranchedLinear(start, linear.weight, linear.bias, now)
        decay = RankDecay(4, 10)
        module.free(decay, 3)
        module.fade(decay, 10)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.02)
    done = LayerCalibration(role="self_attn.v", scheme=chosen, **results({"v": module}, Ranks())["v"]._asdict())
    return module, done, linear


@pytest.mark.parametrize("shape", [(2, 6, 32), (6, 2, 32), (2, 3, 2, 32)])
@pytest.mark.parametrize("order", [None, *FrameOrder])
def test_the_reference_computes_what_was_learnt_by_qvdit(shape: tuple[int, ...], order: FrameOrder | None) -> None:
    module, done, linear = made("qvdit", order)
    reference = QuantizedLinear(done, linear.bias)
    reference.clips = 2
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        np.testing.assert_allclose(reference(x).numpy(), module(x).numpy(), rtol=0, atol=3e-5)  # sums of 32 products in another order
        assert float((reference(x) - linear(x)).abs().max()) > 1e-2
        alone = QuantizedLinear(done, linear.bias, alone=True)
        alone.clips = 2
        assert torch.dist(alone(x), linear(x)) < torch.dist(reference(x), linear(x)) / 2


def test_the_reference_computes_what_was_learnt_by_qvgen() -> None:
    """Two clips at two steps: each has the clip of its own step."""
    module, done, linear = made("qvgen")
    x = torch.randn((2, 6, 32), generator=torch.Generator().manual_seed(2))
    reference = QuantizedLinear(done, linear.bias)
    for row, step in enumerate((2, 0)):
        reference.step = step
        with torch.no_grad():
            np.testing.assert_allclose(reference(x)[row].numpy(), module(x)[row].numpy(), rtol=0, atol=3e-5)


def test_first_factors_of_frames_by_hand() -> None:
    """eta = softmax(1 - cos), here of ln 1 and ln 3: 1/4 and 3/4; omega = 1/10 and 9/10; the third frame is empty."""
    module, _, _ = made("qvdit", FrameOrder.FRAMES_FIRST)
    module.seen = torch.tensor([[0.0, 4 * math.log(3), -1e9], [1.0, 9.0, 0.0]], dtype=torch.float64)
    module.set_factors()
    np.testing.assert_allclose(module.frames.detach().numpy(), [0.25 / 0.1, 0.75 / 0.9, 0], rtol=1e-6)


def test_frames_are_watched_apart() -> None:
    """Only the frame whose tokens have an outlier loses direction by its rounding."""
    for order, pick in ((FrameOrder.FRAMES_FIRST, (slice(None), slice(2, 4))), (FrameOrder.TOKENS_FIRST, (slice(None), slice(1, None, 3)))):
        module, _, _ = made("qvdit", order)
        module.seen = torch.zeros(2, 3, dtype=torch.float64)
        x = torch.full((2, 6, 32), 0.5)  # every token is a code times its scale
        x[pick] = torch.linspace(0, 1, 32) ** 2
        module.quantized_input(x)
        distance, size = module.seen.tolist()
        assert distance[1] > 1e-5 > max(distance[0], distance[2]) and size[0] == size[2] == 4 * 32 * 0.5
        assert size[1] == pytest.approx(4 * float((torch.linspace(0, 1, 32) ** 2).sum()))


class Killer(Watcher):
    """Kills the run at the n-th part of one task."""

    def __init__(self, task: str, at: int) -> None:
        super().__init__()
        self.name, self.at = task, at

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        with super().task(title, total, done) as advance:

            def and_kill() -> None:
                advance()
                if title == self.name and self.advanced[title] == self.at:
                    self.kill()

            yield and_kill


@pytest.mark.parametrize(
    ("method", "task", "at"),
    [("qvdit", "train", 9), ("qvgen", "train", 17), ("qvgen", "sample clips", 4), ("qvdit", "record trajectories", 4)],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    run: Run, monkeypatch: pytest.MonkeyPatch, method: str, task: str, at: int
) -> None:
    own = recipe(method, W3A6 if method == "qvdit" else W4A4)
    wanted = run(own, "whole").digest
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(own, "killed", Killer(task, at))
    watch = Watcher()
    assert run(own, "killed", watch).digest == wanted
    assert task != "train" or any("goes on from there" in note for note in watch.notes)


def test_qvgen_learns_from_a_folder_of_clips(tiny: ModelDir, tiny_conditioning: Conditioning, run: Run, tmp_path: Path) -> None:
    def folder(name: str, seeds: tuple[int, int]) -> str:
        sample_dataset(
            tiny_sampled(tiny, dataclasses.replace(tiny_conditioning, seeds=seeds), steps=STEPS, guidance_scale=GUIDANCE),
            out=tmp_path / name,
            progress=SILENT,
        )
        return str(tmp_path / name)

    own = run(recipe("qvgen", W4A4), "own")
    first, second = (run(recipe("qvgen", W4A4, dataset=folder(n, s)), n) for n, s in (("same", (5, 6)), ("other", (7, 8))))
    name = "blocks.0.ffn.net.2"
    codes = [known.layers[name].weight.read().codes for known in (own, first, second)]
    assert np.array_equal(codes[0], codes[1]) and not np.array_equal(codes[0], codes[2])
    with pytest.raises(InputError, match=r"nothing: found no index.json"):
        run(recipe("qvgen", W4A4, dataset=str(tmp_path / "nothing")), "none")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("qvdit", {"iterations": 0}, "found iterations = 0"),
        ("qvdit", {"alpha": 1.5}, "alpha = 1.5; wanted 0 to 1"),
        ("qvdit", {"precision": "fp8"}, "one of no, bf16"),
        ("qvdit", {"estimator": False}, "frame_factors without estimator"),
        ("qvgen", {"rank": -1}, "found rank = -1"),
        ("qvgen", {"iterations": 6}, "6 iterations, 10% of them at the end; wanted one for each of 6 stages"),
        ("qvgen", {"tail": 1.5}, "tail = 1.5; wanted 0 to 1"),
        ("qvgen", {"precision": "fp8"}, "one of no, bf16"),
    ],
)
def test_settings_that_mean_nothing(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        method_for(method, settings, "here")


@pytest.mark.parametrize("method", ["qvdit", "qvgen"])
def test_what_they_cannot_do(method: str, tiny: ModelDir) -> None:
    own = method_for(method, {}, "here")
    static = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True)
    with pytest.raises(InputError, match="wanted dynamic activations"):
        own.check(dataclasses.replace(W4A4, activation=static))
    with pytest.raises(InputError, match=r"activation float; wanted dynamic activations with method"):
        own.check(Scheme(weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL)))
    with pytest.raises(InputError, match="per_channel weights"):
        own.check(dataclasses.replace(W4A4, weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_TENSOR)))
    with pytest.raises(InputError, match="need calibration data"):
        uncalibrated(source=tiny, adapter=adapter_for(tiny), recipe=recipe(method, W4A4))


@pytest.mark.parametrize("method", ["qvdit", "qvgen"])
def test_two_ranks_train_what_one_does(tiny_dir: Path, tmp_path: Path, method: str) -> None:
    """They add gradients up in another order: a few codes at a tie may differ. What one of two alone had learnt would differ a lot."""
    settings = "".join(f"{key} = {value}\n" for key, value in {**SHORT[method], "iterations": 4}.items())
    text = builtin_recipes()["w4a6"].read_text()
    head, rest = text.split("[settings]")[0], text.split("[calibration]")[1]
    text = f"{head.replace('qvdit', method)}[settings]\n{settings}\n[calibration]{rest}"
    (tmp_path / "r.toml").write_text(text.replace("prompts = 8", "prompts = 2"))
    (tmp_path / "prompts.txt").write_text("a 7 moving left\na 2 moving up\n")
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.safetensors"
        options = ["--recipe", str(tmp_path / "r.toml"), "--steps", "2", "--prompts", str(tmp_path / "prompts.txt"), "-o", str(out)]
        done = torchrun.run(ranks, "calibrate", str(tiny_dir), *options)
        assert done.code == 0, done.stderr
        found.append(Calibration.load(out))
    one, two = (known.layers for known in found)
    # AdamW's first steps are signs of gradients: those that are nearly zero go either way.
    assert min(np.mean(one[n].weight.read().codes == two[n].weight.read().codes) for n in one) > 0.97
    losses = [[loss for _, loss in known.statistics["training"]["loss"]] for known in found]
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-3)  # with the same weights, up to the order of sums
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.25)  # they fall and rise by a factor of 50


@pytest.mark.parametrize("method", ["qvdit", "qvgen"])
def test_what_another_run_left_is_not_taken_up(tiny: ModelDir, run: Run, tmp_path: Path, method: str) -> None:
    """Another recipe in the same folder learns anew; and nothing is left when a calibration is written."""
    own = recipe(method, W4A4, iterations=8)
    other = dataclasses.replace(own, calibration_prompts=1, digest="other")
    wanted = run(other, "fresh").digest
    with pytest.raises(KeyboardInterrupt):
        run(own, "used", Killer("train", 8))
    assert run(other, "used").digest == wanted
    assert not [p.name for p in (tmp_path / "used").iterdir()]
