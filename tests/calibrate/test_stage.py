"""The calibrate stage on the tiny model: statistics, resumption, determinism and refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_model import sampled_and_rest, save_tiny_model
from watcher import Watcher

from vditc.adapter import ModelAdapter
from vditc.calibrate.methods.rtn import RoundToNearest
from vditc.calibrate.stage import calibrate, check_layer, uncalibrated
from vditc.calibration import Calibration
from vditc.conditioning import TEXT, Conditioning
from vditc.errors import InputError, VditcError
from vditc.export.adapters.registry import adapter_for
from vditc.export.adapters.wan import Wan
from vditc.model_dir import ModelDir
from vditc.numerics import EPS, Granularity, QType
from vditc.pipeline.schedules import load_schedule
from vditc.recipe import Recipe
from vditc.sampling import Feeds, sample
from vditc.scheme import QuantSpec, Scheme
from vditc.toml_data import Table

STEPS = 3
CLIPS = 2
GUIDANCE = 2.0


class CannotRun(Wan):
    """An adapter whose model must not be touched."""

    def load(self, source: ModelDir, memory: int | None = None) -> Any:
        raise AssertionError("the model was loaded")


@pytest.fixture
def run(tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path) -> Callable[..., Calibration]:
    """Calibrate the tiny model into tmp_path / out; keywords replace the defaults."""

    def call(out: str = "out", **changes: Any) -> Calibration:
        source: ModelDir = changes.get("source", tiny)
        arguments: dict[str, Any] = {
            "source": source,
            "adapter": adapter_for(source),
            "recipe": Recipe.load("w8a8-static"),
            "conditioning": tiny_conditioning,
            "scheduler": load_schedule(source.path, STEPS),
            "guidance_scale": GUIDANCE,
            "out": tmp_path / out,
            "work": tmp_path / "work",
            "progress": Watcher(),
        }
        sampled, rest = sampled_and_rest(arguments | changes)
        found = calibrate(sampled, **rest)
        assert found is not None
        return found

    return call


def recipe(*rules: dict[str, Any], method: str = "rtn") -> Recipe:
    data = {"schema": 1, "name": "test", "description": "", "method": method, "rules": [*rules, {"match": ["*"], "keep": "the rest"}]}
    return Recipe.parse(Table(data, "test"), digest=repr(data))


INT8 = {"qtype": "int8", "granularity": "per_channel"}
STATIC = {"qtype": "int8", "granularity": "per_tensor", "per_step": True}


def test_static_tables_are_what_an_independent_hook_saw(
    run: Callable[..., Calibration], tiny: ModelDir, tiny_conditioning: Conditioning
) -> None:
    calibration = run()
    adapter = adapter_for(tiny)
    model = adapter.load(tiny)
    seen: dict[str, npt.NDArray[np.float32]] = {name: np.zeros(STEPS, np.float32) for name in calibration.layers}
    now = 0

    def hook(name: str) -> Callable[..., None]:
        def watch(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name][now] = max(seen[name][now], np.abs(inputs[0].numpy()).max())

        return watch

    def denoise(feeds: Feeds, step: int) -> Any:
        nonlocal now
        now = step
        with torch.inference_mode():
            return adapter.forward(model, {n: torch.tensor(a) for n, a in feeds.items()}).numpy()

    for name in seen:
        model.get_submodule(name).register_forward_pre_hook(hook(name))
    for clip in range(CLIPS):
        sample(denoise, load_schedule(tiny.path, STEPS), tiny_conditioning.clips([clip], adapter.inputs(tiny)), GUIDANCE)

    assert len(seen) == 20  # 2 blocks x (2 attentions x 4 + 2)
    for name, absmax in seen.items():
        table = calibration.layers[name].activation_scale
        np.testing.assert_array_equal(table, np.maximum(absmax / np.float32(127), np.float32(EPS)), err_msg=name)
    ranges = calibration.statistics["layers"]["blocks.1.ffn.net.2"]["absmax_per_step"]
    np.testing.assert_allclose(ranges, seen["blocks.1.ffn.net.2"], rtol=5e-6)  # they are rounded to six digits
    assert len(set(ranges)) == STEPS  # the steps do differ, or the test would not tell them apart


def test_file_holds_what_was_returned(run: Callable[..., Calibration], tiny: ModelDir, tmp_path: Path) -> None:
    calibration, back = run(), Calibration.load(tmp_path / "out")
    assert (back.model_digest, back.recipe, back.method) == (tiny.digest, "w8a8-static", "rtn")
    assert back.statistics == calibration.statistics and back.kept == calibration.kept
    assert back.kept["proj_out"].reason.startswith("small") and back.kept["proj_out"].shape == (16, 128)
    assert back.schedule is not None and back.schedule.to_json() == load_schedule(tiny.path, STEPS).to_json()
    assert len(back.timesteps) == STEPS and back.timesteps[0] == 1000.0
    for name, layer in calibration.layers.items():
        stored = tiny.weights[f"{name}.weight"].read().astype(np.float32)
        np.testing.assert_array_equal(back.layers[name].weight.read().codes, layer.weight.read().codes)
        assert np.abs(back.layers[name].weight.read().dequantize() - stored).max() <= layer.weight.read().scale.max() / 2 * 1.001


def test_same_inputs_same_bytes(run: Callable[..., Calibration], tmp_path: Path) -> None:
    run("one", work=tmp_path / "work1")
    run("two", work=tmp_path / "work2")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_blocks_that_are_read_when_they_run_give_the_same_bytes(run: Callable[..., Calibration], tmp_path: Path) -> None:
    gptq = Recipe.load("w4a8-gptq")
    run("whole", recipe=gptq, work=tmp_path / "work1")
    given: list[int | None] = []

    class Asked(Wan):
        def load(self, source: ModelDir, memory: int | None = None) -> Any:
            given.append(memory)
            model = super().load(source, memory)
            assert model.get_submodule("blocks.1.ffn.net.2").weight.numel() == 0  # it is not there before the block runs
            return model

    run("streamed", recipe=gptq, work=tmp_path / "work2", memory=1, adapter=Asked())
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "streamed").read_bytes() and given == [1]


@pytest.mark.parametrize("name", ["w4a16", "fp16"])
def test_recipes_without_quantized_activations_never_run_the_model(run: Callable[..., Calibration], name: str) -> None:
    watcher = Watcher()
    calibration = run(recipe=Recipe.load(name), adapter=CannotRun(), progress=watcher)
    assert watcher.notes == [f"recipe {name} needs no calibration data: no clip is sampled"]
    assert len(calibration.layers) == (0 if name == "fp16" else 20) and calibration.statistics == {}


def test_dynamic_activations_are_observed_but_get_no_scale(run: Callable[..., Calibration]) -> None:
    calibration = run(recipe=Recipe.load("w8a8"))
    assert len(calibration.statistics["layers"]) == 20
    assert all(len(seen["absmax_per_step"]) == STEPS and seen["channel_spread"] >= 1 for seen in calibration.statistics["layers"].values())
    assert all(layer.activation_scale is None for layer in calibration.layers.values())


def test_only_layers_with_quantized_activations_are_observed(run: Callable[..., Calibration]) -> None:
    mixed = recipe({"match": ["ffn.in"], "weight": INT8, "activation": STATIC}, {"match": ["ffn.out"], "weight": INT8})
    calibration = run(recipe=mixed)
    assert sorted(calibration.statistics["layers"]) == ["blocks.0.ffn.net.0.proj", "blocks.1.ffn.net.0.proj"]
    assert len(calibration.layers) == 4 and len(calibration.kept) == 23


def test_both_guidance_branches_are_seen(run: Callable[..., Calibration], tiny_conditioning: Conditioning) -> None:
    c = dataclasses.replace(tiny_conditioning, empty={TEXT: tiny_conditioning.empty[TEXT] + 100})  # the empty prompt has the greatest input

    def text_range(guidance: float) -> float:
        only = recipe({"match": ["text_embed.in"], "weight": INT8, "activation": STATIC})
        seen = run(recipe=only, conditioning=c, guidance_scale=guidance).statistics["layers"]
        return float(seen["condition_embedder.text_embedder.linear_1"]["absmax_per_step"][0])

    assert text_range(2.0) == pytest.approx(np.abs(c.empty[TEXT]).max(), rel=5e-6)  # reported with six digits
    assert text_range(1.0) == pytest.approx(np.abs(c.inputs[TEXT]).max(), rel=5e-6)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"match": ["ffn.out"], "weight": {"qtype": "int4", "granularity": "per_group", "group_size": 96}},
            r"recipe test, layer blocks\.0\.ffn\.net\.2 \(role ffn\.out\): .*found 256 input channels; wanted a multiple of group_size 96",
        ),
        ({"match": ["patch_embed"], "weight": INT8}, r"layer patch_embedding \(role patch_embed\): .*\[128, 4, 1, 2, 2\]; wanted a linear"),
        (
            {"match": ["head"], "weight": {"qtype": "fp4_e2m1", "granularity": "per_channel"}},
            r"found fp4_e2m1 per_channel; wanted per_group with group_size 16: the blocks of NVFP4",
        ),
        ({"match": ["fnn.out"], "weight": INT8}, r"rule 1 .* decides no layer"),
    ],
    ids=["group", "convolution", "fp4", "role"],
)
def test_bad_rules_name_the_layer_before_any_work(
    run: Callable[..., Calibration], tmp_path: Path, rule: dict[str, Any], message: str
) -> None:
    good = {"match": ["self_attn.*"], "weight": INT8, "activation": STATIC}
    with pytest.raises(InputError, match=message):
        run(recipe=recipe(rule, good), adapter=CannotRun())
    assert list(tmp_path.iterdir()) == []


def test_four_bit_codes_must_fill_their_bytes() -> None:
    scheme = Scheme(weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL))
    with pytest.raises(InputError, match=r"layer x: found 3 x 5 weights in int4; wanted an even number"):
        check_layer(RoundToNearest(), scheme, (3, 5), "layer x")


def test_unknown_method_lists_the_known_ones(run: Callable[..., Calibration]) -> None:
    with pytest.raises(InputError, match=r"recipe test: found method 'magic'; wanted one of .*rtn"):
        run(recipe=recipe({"match": ["head"], "weight": INT8}, method="magic"))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 2, 8, 8), r"hidden_states \[2, 3, 2, 8, 8\]; wanted \[batch, 4"), (None, r"encoder_hidden_states \[2, 8, 5\]")],
)
def test_clips_that_do_not_fit_the_model(
    run: Callable[..., Calibration], tiny_conditioning: Conditioning, shape: tuple[int, int, int, int] | None, message: str
) -> None:
    c = tiny_conditioning
    narrow = dataclasses.replace(c, inputs={TEXT: c.inputs[TEXT][..., :5]}, empty={TEXT: c.empty[TEXT][..., :5]})
    with pytest.raises(InputError, match=message):
        run(conditioning=dataclasses.replace(c, latent_shape=shape) if shape else narrow, adapter=CannotRun())


def test_no_prompt(run: Callable[..., Calibration], tiny_conditioning: Conditioning) -> None:
    nothing = dataclasses.replace(tiny_conditioning, prompts=(), inputs={TEXT: tiny_conditioning.inputs[TEXT][:0]}, seeds=())
    with pytest.raises(InputError, match=r"found no prompt"):
        run(conditioning=nothing)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x"])
def test_unknown_device(run: Callable[..., Calibration], device: str) -> None:
    with pytest.raises(InputError, match=rf"--device: found device '{device}'; wanted auto, cpu or cuda"):
        run(device=device)


def test_auto_device_runs_anywhere(run: Callable[..., Calibration]) -> None:
    assert run(device="auto").statistics["clips"] == CLIPS


def test_weights_that_are_not_finite_are_named(run: Callable[..., Calibration], tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "broken")
    layer = "blocks.1.attn2.to_k"
    entry = ModelDir.open(folder).weights[f"{layer}.weight"]
    with entry.path.open("r+b") as f:
        f.seek(entry.offset)
        f.write(np.array([np.inf], np.float16).tobytes())
    source = ModelDir.open(folder)
    adapter: ModelAdapter = CannotRun()
    with pytest.raises(InputError, match=rf"layer {layer}: found weights that are not finite"):
        run(source=source, adapter=adapter, recipe=Recipe.load("w4a16"))
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("name", ["w4a8-rtn", "w4a16", "w8a8", "fp16"])
def test_without_data_the_codes_are_the_same(run: Callable[..., Calibration], tiny: ModelDir, name: str) -> None:
    direct = uncalibrated(source=tiny, adapter=CannotRun(), recipe=Recipe.load(name))()
    wanted = run(recipe=Recipe.load(name))
    assert direct.kept == wanted.kept and direct.layers.keys() == wanted.layers.keys() and direct.mean_bits == wanted.mean_bits
    assert (direct.model_digest, direct.recipe_digest, direct.digest) == (wanted.model_digest, wanted.recipe_digest, None)
    for layer, other in wanted.layers.items():
        found, known = (q.weight.stored() for q in (direct.layers[layer], other))
        assert (found.codes.tobytes(), found.scale.tobytes()) == (known.codes.tobytes(), known.scale.tobytes())


def test_a_recipe_that_needs_data_is_refused_without_it(tiny: ModelDir) -> None:
    with pytest.raises(
        InputError, match=r"found 20 layers that need calibration data, first .*run `vditc calibrate .* --recipe w8a8-static"
    ):
        uncalibrated(source=tiny, adapter=CannotRun(), recipe=Recipe.load("w8a8-static"))


def test_latents_that_are_not_finite_name_clip_and_step(run: Callable[..., Calibration], tiny_conditioning: Conditioning) -> None:
    """No layer that is watched reads what the first one makes of this text."""
    c = dataclasses.replace(tiny_conditioning, inputs={TEXT: tiny_conditioning.inputs[TEXT] * np.float32(1e37)})
    only = recipe({"match": ["text_embed.in"], "weight": INT8, "activation": STATIC})
    with pytest.raises(InputError, match=r"clip 0 \('a 7 moving left'\), step 0: found latents that are not finite"):
        run(conditioning=c, recipe=only)


def test_a_layer_that_never_runs_is_named(run: Callable[..., Calibration], monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe plans it, but the model goes round it."""

    class Detour(Wan):
        def load(self, source: ModelDir, memory: int | None = None) -> Any:
            model = super().load(source, memory)
            second = model.get_submodule("blocks.1.ffn")
            second.forward = lambda x: x
            return model

    named = r"found no input of 2 of 20 layers: blocks\.1\.ffn\.net\.0\.proj, blocks\.1\.ffn\.net\.2; .*rule with keep"
    with pytest.raises(VditcError, match=named):
        run(adapter=Detour())


def test_a_layer_that_a_method_forgets_is_named(run: Callable[..., Calibration], monkeypatch: pytest.MonkeyPatch) -> None:
    quantize = RoundToNearest.quantize

    def forgetful(self: RoundToNearest, weights: Any, statistics: Any, schemes: Any, head: Any) -> Any:
        done = quantize(self, weights, statistics, schemes, head)
        return {layer: q for layer, q in done.items() if layer != "blocks.1.attn1.to_k"}

    monkeypatch.setattr(RoundToNearest, "quantize", forgetful)
    with pytest.raises(VditcError, match=r"method rtn: found no codes of blocks\.1\.attn1\.to_k; wanted every layer"):
        run()
