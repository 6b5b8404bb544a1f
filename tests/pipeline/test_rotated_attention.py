"""Rotations behind attention that v makes: from calibration to the graph, which has nothing of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from sampled_case import FLOW, sampled_case
from tiny_export import SHAPES, feeds, traced
from tiny_model import tiny_sampled
from tolerances import relative_l2

from vditc.calibrate.stage import calibrate, uncalibrated
from vditc.calibration import Calibration
from vditc.cli.inspect_calibration import calibration_facts
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.export.adapters.wan import Wan
from vditc.export.stage import check_calibration, insert_weights
from vditc.export.write import write_model
from vditc.model_dir import ModelDir
from vditc.pipeline.opened import OpenedModel
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.runtimes.reference import ReferenceModel, layer_errors
from vditc.scheme import quantize_weight
from vditc.toml_data import Table

F32 = np.float32
BEHIND = {f"blocks.{i}.{a}.to_out.0": f"blocks.{i}.{a}.to_v" for i in range(2) for a in ("attn1", "attn2")}


def recipe(
    method: str = "viditq", bits: str = "int8", *, keep: tuple[str, ...] = (), weight_only: tuple[str, ...] = (), **settings: Any
) -> Recipe:
    kept: list[dict[str, Any]] = [{"match": ["*"], "layers": list(keep), "keep": "a test"}] if keep else []
    activation = {"qtype": "int8", "granularity": "per_token", "dynamic": True}
    weight = {"qtype": bits, "granularity": "per_channel", "symmetric": False}
    kept += [{"match": ["*"], "layers": list(weight_only), "weight": {**weight, "symmetric": True}}] if weight_only else []
    rules = [*kept, {"match": ["*_attn.*", "*ffn.*"], "weight": weight, "activation": activation}, {"match": ["*"], "keep": "the rest"}]
    data = {"schema": 1, "name": "test", "description": "", "method": method, "settings": settings, "rules": rules}
    return Recipe.parse(Table(data, "test"), digest=repr(data))


@pytest.fixture(scope="module")
def run(tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Calibration]:
    def call(chosen: Recipe, **changes: Any) -> Calibration:
        folder = tmp_path_factory.mktemp("run")
        done = calibrate(
            tiny_sampled(tiny, tiny_conditioning), recipe=chosen, out=folder / "c", work=folder / "w", progress=SILENT, **changes
        )
        assert done is not None
        return done

    return call


@pytest.fixture(scope="module")
def eight(run: Callable[..., Calibration]) -> Calibration:
    return run(recipe())


def test_v_has_the_codes_of_what_is_read_behind_attention(eight: Calibration, tiny: ModelDir) -> None:
    assert eight.statistics["attention_output"] == {"made_by_v": {out: [v] for out, v in BEHIND.items()}, "explicit": {}}
    for name, layer in eight.layers.items():
        assert layer.transform.made_by == ((BEHIND[name],) if name in BEHIND else ())
        assert (layer.output is not None) == (name in BEHIND.values())
        assert layer.transform.rotation == (64 if name in BEHIND else 256 if name.endswith("net.2") else 128)
    for out, v in BEHIND.items():
        wanted, own = eight.layers[out].transform, eight.layers[v]
        assert wanted.balance is not None and own.output is not None and np.abs(wanted.balance).std() > 0.05
        stored = np.asarray(tiny.weights[f"{v}.weight"].read(), F32)
        mixed = wanted.input(stored.T).T  # rows of W are what v's channels are made with
        np.testing.assert_array_equal(mixed, own.output.weight(stored))
        codes = quantize_weight(own.transform.weight(mixed), own.scheme.weight).codes
        np.testing.assert_array_equal(own.weight.read().codes, codes)


def test_the_model_stays_what_it_was(eight: Calibration, tiny: ModelDir) -> None:
    inputs = feeds(0, *SHAPES[0])
    exact = ReferenceModel(Wan(), tiny, None)(inputs, 0)
    assert 1e-4 < relative_l2(ReferenceModel(Wan(), tiny, eight)(inputs, 0), exact) < 0.02
    errors = layer_errors(Wan(), tiny, eight, [(inputs, 0)])  # each layer by itself, in the full-precision model
    assert max(errors.values()) < 0.02 and errors.keys() == eight.layers.keys()
    # v without what takes it back, or the layer behind it without what it expects, would be something else.
    half = dataclasses.replace(eight, layers={n: c for n, c in eight.layers.items() if n not in BEHIND})
    with pytest.raises(InputError, match=r"found layer blocks\.0\.attn1\.to_v, whose output is not transformed as the layers behind"):
        ReferenceModel(Wan(), tiny, half)


def test_the_graph_has_no_rotation_behind_attention(eight: Calibration, tiny: ModelDir, tmp_path: Path) -> None:
    graph = traced(tiny)
    entries = insert_weights(graph, tiny, eight)["initialisers"]
    write_model(graph, tmp_path / "model.onnx", lambda: None)
    stored = ir.load(tmp_path / "model.onnx").graph
    rotated = {str(n.name).rsplit("/", 1)[0] for n in stored if "/Reshape_rotation_in" in str(n.name)}
    assert rotated.isdisjoint(BEHIND) and len(rotated) == 2 * 5  # q, k and v together; q; k and v; and the feed-forward's two
    for v in BEHIND.values():
        bias, output = np.asarray(tiny.weights[f"{v}.bias"].read(), F32), eight.layers[v].output
        assert output is not None and f"{v}.bias" not in stored.initializers
        np.testing.assert_array_equal(stored.initializers[f"{v}.bias.transformed"].const_value.numpy(), output.bias(bias))  # type: ignore[union-attr]
        entry = entries[f"{v}.bias.transformed"]
        assert (entry["sources"], entry["transform"], entry["after"]) == ([f"{v}.bias"], "bias float32 of W", str(output))
        assert entries[f"{v}.weight"]["after"] == f"{output}; {eight.layers[v].transform}"
    for seed, shape in enumerate(SHAPES[:2]):
        inputs = feeds(seed, *shape)
        wanted = ReferenceModel(Wan(), tiny, eight)(inputs, 1)
        assert relative_l2(OnnxRuntimeModel(tmp_path / "model.onnx", threads=1)(inputs, 1), wanted) <= 1.5e-3  # a code may flip at a tie


def test_a_calibration_that_does_not_hang_together_is_refused(eight: Calibration, tiny: ModelDir) -> None:
    v = "blocks.1.attn2.to_v"
    layers = {**eight.layers, v: dataclasses.replace(eight.layers[v], output=None)}
    with pytest.raises(InputError, match=r"found layer blocks\.1\.attn2\.to_v, whose output is not transformed"):
        check_calibration(tiny, Wan(), dataclasses.replace(eight, layers=layers))


def test_what_is_not_done_is_told(run: Callable[..., Calibration], tmp_path: Path) -> None:
    known = run(recipe(keep=("*.attn1.to_v",)))
    said = known.statistics["attention_output"]
    assert said["explicit"] == {f"blocks.{i}.attn1.to_out.0": f"blocks.{i}.attn1.to_v is not quantized" for i in range(2)}
    assert sorted(said["made_by_v"]) == [f"blocks.{i}.attn2.to_out.0" for i in range(2)]
    assert known.layers["blocks.0.attn1.to_out.0"].transform.rotation == 128
    known.save(tmp_path / "c")
    facts = calibration_facts(tmp_path / "c")["attention_output"]
    assert facts == {"made_by_v": 2, "explicit": {"blocks.0.attn1.to_v is not quantized": 1, "blocks.1.attn1.to_v is not quantized": 1}}


@pytest.mark.parametrize("method", ["quarot", "viditq"])
def test_weights_alone_behind_attention_need_no_statistics(run: Callable[..., Calibration], method: str) -> None:
    known = run(recipe(method, weight_only=("*.to_out.0",)))
    said = known.statistics["attention_output"]
    assert known.layers.keys() >= BEHIND.keys() and known.statistics["layers"].keys().isdisjoint(BEHIND)
    if method == "quarot":  # its signs are drawn
        assert said == {"made_by_v": {out: [v] for out, v in BEHIND.items()}, "explicit": {}}
    else:
        assert said == {"made_by_v": {}, "explicit": dict.fromkeys(BEHIND, "its input is not rotated")}
    known.check_outputs()


def test_the_whole_width_if_the_recipe_says_so(run: Callable[..., Calibration], eight: Calibration) -> None:
    known = run(recipe(rotate_attention_output="width"))
    assert "attention_output" not in known.statistics
    assert all(c.output is None and not c.transform.made_by for c in known.layers.values())
    assert {known.layers[out].transform.rotation for out in BEHIND} == {128}


@pytest.mark.parametrize("method", ["quarot", "viditq"])
def test_a_model_that_does_not_run_has_explicit_rotations(tiny: ModelDir, method: str) -> None:
    if method == "quarot":
        known = uncalibrated(source=tiny, adapter=Wan(), recipe=recipe(method))()
        assert {c.transform.rotation for c in known.layers.values()} == {128, 256} and all(c.output is None for c in known.layers.values())
        return
    with pytest.raises(InputError, match="need calibration data"):
        uncalibrated(source=tiny, adapter=Wan(), recipe=recipe(method))


@pytest.mark.parametrize("unseen", ["to_out.0", "to_add_out"])
def test_streams_of_which_one_is_quantized_in_weights_only_stay_apart(tmp_path: Path, unseen: str) -> None:
    path, conditioning = sampled_case("hunyuan-video", FLOW, 1.0, tmp_path)
    sampled = OpenedModel.open(path).sampled(Conditioning.load(conditioning))
    chosen = recipe(weight_only=(f"transformer_blocks.*.attn.{unseen}",))
    known = calibrate(sampled, recipe=chosen, out=tmp_path / "c", work=tmp_path / "w", progress=SILENT)
    assert known is not None
    said = known.statistics["attention_output"]["explicit"]
    for block in (f"transformer_blocks.{i}.attn" for i in range(2)):
        for out in ("to_out.0", "to_add_out"):
            assert said[f"{block}.{out}"] == f"{block}.{unseen} is quantized in weights only, other streams that attend with it are not"
            assert not known.layers[f"{block}.{out}"].transform.made_by
    known.check_outputs()


def test_two_streams_have_one_balance(tmp_path: Path) -> None:
    """HunyuanVideo: video and text attend together, and their v are rotated alike; a text refiner by itself."""
    path, conditioning = sampled_case("hunyuan-video", FLOW, 1.0, tmp_path)
    opened = OpenedModel.open(path)
    sampled = opened.sampled(Conditioning.load(conditioning))
    known = calibrate(sampled, recipe=recipe(), out=tmp_path / "c", work=tmp_path / "w", progress=SILENT)
    assert known is not None and not known.statistics["attention_output"]["explicit"]
    for block in (f"transformer_blocks.{i}.attn" for i in range(2)):
        first, second = (known.layers[f"{block}.{out}"].transform for out in ("to_out.0", "to_add_out"))
        assert first.made_by == second.made_by == (f"{block}.add_v_proj", f"{block}.to_v") and first.rotation == second.rotation == 16
        np.testing.assert_array_equal(first.balance, second.balance)
    assert known.layers["single_transformer_blocks.0.proj_mlp"].transform.input_key() == (
        known.layers["single_transformer_blocks.0.attn.to_q"].transform.input_key()
    )
    clip = sampled.clip(0)
    inputs = clip.feeds(sampled.scheduler, 0, clip.start(sampled.scheduler), guided=False)
    exact, ours = (ReferenceModel(opened.adapter, opened.source, c)(inputs, 0) for c in (None, known))
    assert 1e-4 < relative_l2(ours, exact) < 0.03
