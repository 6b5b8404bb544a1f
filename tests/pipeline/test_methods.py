"""Every method from a model directory to a graph: what it calibrates is what ONNX Runtime runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from tiny_export import SHAPES, feeds
from tiny_model import save_tiny_model, tiny_sampled
from tolerances import LOWERED, relative_l2

from vditc.calibrate.methods.registry import methods
from vditc.calibrate.stage import calibrate
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.export.adapters.registry import adapter_for
from vditc.export.check import check_codes
from vditc.export.stage import export_model
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.progress import SILENT
from vditc.recipe import Recipe, Rule
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.runtimes.reference import ReferenceModel
from vditc.scheme import QuantSpec, Scheme
from vditc.target import Target

W4A8 = Scheme(
    weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
)
FLIPS = 1.5e-3  # see tests/export/test_stage.py


# Trained for a moment: what is learnt must be in the graph, good or not.
SETTINGS = {
    "qvdit": {"iterations": 3, "batch_size": 2, "rate": 0.01, "scale_rate": 1e-3},
    "qvgen": {"iterations": 8, "batch_size": 2, "rate": 1e-3, "rank": 4},
}


def recipe(method: str) -> Recipe:
    rules = (Rule(match=("self_attn.*", "cross_attn.*", "ffn.*"), scheme=W4A8), Rule(match=("*",), keep="in this test"))
    settings = SETTINGS.get(method, {})
    return dataclasses.replace(Recipe.load("w8a8"), name="test", method=method, rules=rules, digest=method, settings=settings)


def calibrated(tiny: ModelDir, conditioning: Conditioning, method: str, out: Path) -> Calibration:
    found = calibrate(
        tiny_sampled(tiny, conditioning, steps=2),
        recipe=recipe(method),
        out=out,
        work=out.parent / "work",
        progress=SILENT,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("method", sorted(methods()))
def test_what_is_calibrated_is_what_the_graph_computes(
    tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path, method: str
) -> None:
    known = calibrated(tiny, tiny_conditioning, method, tmp_path / "c")
    adapter, out = adapter_for(tiny), tmp_path / "model.onnx"
    export_model(source=tiny, adapter=adapter, calibration=known, out=out, progress=SILENT)
    onnx.checker.check_model(str(out), full_check=True)
    check_codes(out, known)
    inputs = feeds(0, *SHAPES[0])
    inputs["timestep"][:] = known.timesteps[0]
    want = ReferenceModel(adapter, tiny, known)(inputs, 0)
    assert relative_l2(OnnxRuntimeModel(out, threads=1)(inputs, 0), want) <= FLIPS
    lowered = lower(model=out, target=Target.load("cpu"), out=tmp_path / "lowered.onnx", progress=SILENT).files[0]
    assert relative_l2(OnnxRuntimeModel(lowered, threads=1)(inputs, 0), want) <= max(FLIPS, LOWERED["fp32", "int8 folded"])
    exact = ReferenceModel(adapter, tiny, None)(inputs, 0)
    assert relative_l2(want, exact) < 0.5  # four bits of random weights; a transform on one side alone would give 1 and more
    assert calibrated(tiny, tiny_conditioning, method, tmp_path / "again").digest == known.digest


@pytest.mark.parametrize("method", ["smoothquant", "awq", "svdquant", "viditq"])
def test_layers_of_a_block_that_read_one_tensor_share_its_balance(
    tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path, method: str
) -> None:
    layers = calibrated(tiny, tiny_conditioning, method, tmp_path / "c").layers

    def key(layer: str) -> bytes:
        return layers[layer].transform.input_key()

    for block in ("blocks.0", "blocks.1"):
        assert key(f"{block}.attn1.to_q") == key(f"{block}.attn1.to_k") == key(f"{block}.attn1.to_v")
        assert key(f"{block}.attn2.to_k") == key(f"{block}.attn2.to_v")  # both read the text
        assert len({key(f"{block}.{name}") for name in ("attn1.to_q", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "ffn.net.2")}) == 5
    assert key("blocks.0.attn2.to_k") != key("blocks.1.attn2.to_k"), "one balance for all blocks would cost memory and quality"


def test_a_deeper_model_takes_as_many_groups(tiny_conditioning: Conditioning, tmp_path: Path) -> None:
    deep = ModelDir.open(save_tiny_model(tmp_path / "deep", layers=4))
    known = calibrated(deep, tiny_conditioning, "smoothquant", tmp_path / "c")
    assert len({layer.transform.input_key() for layer in known.layers.values()}) == 4 * 7
