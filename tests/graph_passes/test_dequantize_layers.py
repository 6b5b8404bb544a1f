"""Layers in floating point: the values that their codes stand for, in every scheme, and the graph computes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_export
import tolerances

from vditc.errors import InputError
from vditc.graph_passes.core import PassFacts, run_passes
from vditc.graph_passes.dequantize_layers import DequantizeLayers, Names
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import save
from vditc.graph_passes.tolerances import activation_codes, tolerance
from vditc.model_dir import ModelDir
from vditc.runtimes.onnxruntime import OnnxRuntimeModel

SCHEMES = {**tiny_export.SCHEMES, **tiny_export.FLOATS}
QUANTIZED = [name for name, scheme in SCHEMES.items() if scheme is not None]
RUN = ("w8a8-static", "w4a16", "fp8", "nvfp4")  # the forms that differ in more than the types of their codes


def rewritten(path: Path, out: Path, layers: list[str], *, weights: bool = True) -> PassFacts:
    model = ir.load(path)
    facts = run_passes(model, (DequantizeLayers(layers=Names.of(layers), weights=weights),), Spec.canonical())[1][0]
    save(model, out)
    return facts


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_scheme_becomes_the_values_of_its_codes(tiny: ModelDir, tmp_path: Path, name: str) -> None:
    calibration = tiny_export.calibration(tiny, SCHEMES[name])
    path = tiny_export.export(tiny, calibration, tmp_path / "model.onnx")
    facts = rewritten(path, tmp_path / "out" / "float.onnx", list(calibration.layers))
    assert facts.modified and not facts.refusals
    made = ir.load(tmp_path / "out" / "float.onnx")
    assert activation_codes(made.graph) is None
    assert not {n.op_type for n in made.graph} & {"QuantizeLinear", "DequantizeLinear"}
    assert not [n.name for n in made.graph if "_nvfp4" in str(n.name)]
    for layer, calibrated in calibration.layers.items():
        found = made.graph.initializers[f"{layer}.weight.fp32"].const_value
        assert found is not None and np.array_equal(found.numpy(), calibrated.weight.read().dequantize().T), layer
    if name not in RUN:
        return
    feeds = tiny_export.feeds_at(path, 1, 0, *tiny_export.SHAPES[0])
    want, got = (OnnxRuntimeModel(p)(feeds, 1) for p in (path, tmp_path / "out" / "float.onnx"))
    allowed = tolerance("dequantized", "fp32", activation_codes(ir.load(path).graph))
    assert allowed is not None and tolerances.relative_l2(got, want) <= allowed


def test_weights_may_stay_codes(tiny: ModelDir, tmp_path: Path) -> None:
    path = tiny_export.export(tiny, tiny_export.calibration(tiny, SCHEMES["w8a8"]), tmp_path / "model.onnx")
    some = ["blocks.0.attn1.to_q", "blocks.1.ffn.net.2"]
    rewritten(path, tmp_path / "out" / "some.onnx", some, weights=False)
    nodes = {str(n.name): n for n in ir.load(tmp_path / "out" / "some.onnx").graph}
    for layer in some:
        weight = nodes[f"{layer}/MatMul"].inputs[1]
        assert weight is not None and weight.producer() is nodes[f"{layer}.weight/DequantizeLinear"]
        assert f"{layer}/Mul" not in nodes
    assert "blocks.0.attn1.to_k/Mul" in nodes and "blocks.0.attn1.to_q/QuantizeLinear" in nodes  # k still reads what q is named for


def test_what_cannot_be_done_is_said(tiny: ModelDir, tmp_path: Path) -> None:
    path = tiny_export.export(tiny, tiny_export.calibration(tiny, SCHEMES["nvfp4"]), tmp_path / "model.onnx")
    facts = rewritten(path, tmp_path / "out" / "same.onnx", ["blocks.0.attn1.to_q"], weights=False)
    assert not facts.modified
    assert [r.reason for r in facts.refusals] == ["its codes are NVFP4, which are no weight of a float product"]
    with pytest.raises(InputError, match=r"found layer 'blocks\.9'; wanted a layer with a quantized weight"):
        rewritten(path, tmp_path / "none.onnx", ["blocks.9"])
    with pytest.raises(InputError, match="found store=int8"):
        DequantizeLayers(store="int8")
