"""A quantized time path, from the model directory to ONNX Runtime, and what the file says of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_export import SHAPES, feeds
from tiny_model import tiny_sampled
from tolerances import relative_l2

from vditc.calibrate.stage import calibrate
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.export.adapters.registry import adapter_for
from vditc.export.stage import export_model
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.progress import SILENT
from vditc.recipe import Recipe, Rule
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.runtimes.reference import ReferenceModel
from vditc.scheme import QuantSpec, Scheme

STATIC = Scheme(
    weight=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True),
)
TIME = {f"condition_embedder.{name}" for name in ("time_embedder.linear_1", "time_embedder.linear_2", "time_proj")}
FLIPS = 1.5e-3  # see tests/export/test_stage.py


def calibrated(tiny: ModelDir, conditioning: Conditioning, temporal: str, out: Path) -> Calibration:
    quantized = ("self_attn.*", "cross_attn.*", "ffn.*", *(("time_embed.*", "modulation") if temporal != "float" else ()))
    rules = (Rule(match=quantized, scheme=STATIC), Rule(match=("*",), keep="in this test"))
    recipe = dataclasses.replace(Recipe.load("w8a8-qvd"), rules=rules, settings={"temporal": temporal}, digest=temporal)
    found = calibrate(
        tiny_sampled(tiny, conditioning, steps=3),
        recipe=recipe,
        out=out,
        work=out.parent / "work",
        progress=SILENT,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("temporal", ["float", "uniform", "discriminable"])
def test_the_graph_computes_what_was_calibrated(tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path, temporal: str) -> None:
    known = calibrated(tiny, tiny_conditioning, temporal, tmp_path / "c")
    assert (set(known.layers) >= TIME) == (temporal != "float")
    told = known.statistics["temporal_features"]
    assert set(told) == TIME and all(row["temporal"] == temporal and row["float"] == 1 for row in told.values())
    if temporal == "discriminable":
        for name, row in told.items():
            assert (known.layers[name].transform.shift is None) == (row["discriminable"]["name"] == "uniform")
    assert all(layer.transform.shift is not None for name, layer in known.layers.items() if name not in TIME)
    adapter, out = adapter_for(tiny), tmp_path / "model.onnx"
    export_model(source=tiny, adapter=adapter, calibration=known, out=out, progress=SILENT)
    graph, reference = OnnxRuntimeModel(out, threads=1), ReferenceModel(adapter, tiny, known)
    exact = ReferenceModel(adapter, tiny, None)
    inputs = feeds(0, *SHAPES[0])
    for step in range(3):
        inputs["timestep"][:] = known.timesteps[step]
        want = reference(inputs, step)
        assert relative_l2(graph(inputs, step), want) <= FLIPS
        assert 1e-4 < relative_l2(want, exact(inputs, step)) < 0.1
