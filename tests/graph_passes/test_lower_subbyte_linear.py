"""Layers in the plugin library's operator compute what the products before them did, and hold the calibration's codes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import corrected_layers
import numpy as np
import onnx_ir as ir
import pytest
import tiny_export
import tolerances

from vditc.calibration import Calibration
from vditc.errors import DialectError, InputError
from vditc.graph_passes.claims import CheckClaims, structure
from vditc.graph_passes.core import PassFacts, run_passes
from vditc.graph_passes.lower_subbyte_linear import LowerSubbyteLinear
from vditc.graph_passes.pipelines import parse_pass
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, lower
from vditc.graph_passes.tolerances import TOLERANCES
from vditc.model_dir import ModelDir
from vditc.pipeline.verify_passes import VerifyPasses, _snapshot
from vditc.plugins.catalogue import operator_of, plugin_nodes
from vditc.plugins.packing import unpack
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.progress import SILENT
from vditc.runtimes.graph_precision import expected_precision
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.target import Target

FEEDS = tiny_export.SHAPES[0]
BEFORE = ["fold-constants", "share-quantization", "convert-compute-type", "fold-token-aware"]


def operators(model: ir.Model) -> dict[str, QLinear]:
    """Layer -> its operator."""
    return {str(n.name).removesuffix("/QLinear"): op for n in plugin_nodes(model) if isinstance(op := operator_of(n), QLinear)}


def those(found: dict[str, QLinear], hold: Callable[[QLinear], bool]) -> set[str]:
    """Layers, without the block's number, for which something holds."""
    return {name.split(".", 2)[2] for name, op in found.items() if hold(op)}


def lowered(tiny: ModelDir, calibrated: Calibration, folder: Path) -> Path:
    """With the plugin library's operators."""
    path, out = tiny_export.export(tiny, calibrated, folder / "model.onnx"), folder / "out" / "l.onnx"
    lower(model=path, target=Target.load("rtx-ada"), out=out, progress=SILENT, plugins=True, observers=[CheckClaims()])
    return out


@pytest.mark.parametrize(("scheme", "bits", "activation"), [("w4a8", 4, 8), ("w3a8", 3, 8)])
@pytest.mark.parametrize("kind", ["clip", "all"])
def test_every_layer_is_handed_over(tiny: ModelDir, tmp_path: Path, scheme: str, bits: int, activation: int, kind: str) -> None:
    calibrated = corrected_layers.of(tiny, scheme, kind)
    path = lowered(tiny, calibrated, tmp_path)
    found = operators(load(path))
    assert found.keys() == calibrated.layers.keys()
    assert {(op.bits, op.activation_bits) for op in found.values()} == {(bits, activation)}
    assert {op.rank for op in found.values()} == ({2} if kind == "all" else {0})
    assert all(op.bias for op in found.values())
    # Per block: gate and residual behind self-attention's output and the feed-forward's second layer, which quantizes what GELU gives.
    assert not those(found, lambda op: op.activation != "none")
    quantizers = [op for n in plugin_nodes(load(path)) if isinstance(op := operator_of(n), QuantizeToken)]
    assert Counter(op.activation for op in quantizers)["gelu_tanh"] == 2 and len(quantizers) == (
        16 if kind == "all" else 13
    )  # q, k, v share one
    assert those(found, lambda op: op.gated) == {"attn1.to_out.0", "ffn.net.2"}
    # Norms of q and k are computed in float32, of which the sums are.
    assert those(found, lambda op: op.output == "fp32") == {f"attn{i}.to_{c}" for i in (1, 2) for c in "qk"}


def test_a_layer_computes_what_it_did(tiny: ModelDir, tmp_path: Path) -> None:
    """With everything behind the product, in float32: sums in another order, and codes of the next layer that flip at a tie."""
    path = tiny_export.export(tiny, corrected_layers.of(tiny, "w3a8", "all"), tmp_path / "model.onnx")
    lower(model=path, target=Target.load("cpu"), out=tmp_path / "l.onnx", progress=SILENT, plugins=True, keep_time_path=True)
    found, want = (OnnxRuntimeModel(p, threads=1)(tiny_export.feeds(0, *FEEDS), 1) for p in (tmp_path / "l.onnx", path))
    assert tolerances.relative_l2(found, want) <= TOLERANCES["rounding", "int8"]
    assert {op.output for op in operators(load(tmp_path / "l.onnx")).values()} == {"fp32"}


def test_packed_weights_are_the_codes(tiny: ModelDir, tmp_path: Path) -> None:
    calibrated = tiny_export.calibration(tiny, tiny_export.SCHEMES["w3a8"])
    path = lowered(tiny, calibrated, tmp_path)
    for node in (n for n in plugin_nodes(load(path)) if n.op_type == "QLinear"):
        op, weight, scale = operator_of(node), node.inputs[2], node.inputs[3]
        assert isinstance(op, QLinear) and weight is not None and scale is not None
        assert weight.const_value is not None and scale.const_value is not None and op.bits == 3
        want = calibrated.layers[str(node.name).removesuffix("/QLinear")].weight.read()
        np.testing.assert_array_equal(unpack(weight.const_value.numpy(), op.n, op.k, op.bits), want.codes)
        np.testing.assert_array_equal(scale.const_value.numpy(), want.scale.reshape(-1))


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-static", "w8a8-tensor", "w8a6"])
def test_layers_of_eight_bits_only_if_they_are_asked_for(tiny: ModelDir, tmp_path: Path, scheme: str) -> None:
    path = tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES[scheme]), tmp_path / "model.onnx")
    for eight in (False, True):
        model = load(path)
        passes = [parse_pass(p) for p in (*BEFORE, f"lower-subbyte-linear{{eight={str(eight).lower()}}}")]
        run_passes(model, passes, Spec.canonical())
        found = operators(model)
        assert {op.bits for op in found.values()} == ({8} if eight else set()) and len(found) == (20 if eight else 0)
        assert {op.activation_bits for op in found.values()} <= {6 if scheme == "w8a6" else 8}


def test_weights_alone_stay(tiny: ModelDir, tmp_path: Path) -> None:
    path = lowered(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES["w4a16"]), tmp_path)
    assert not operators(load(path))


def test_a_second_run_changes_nothing(tiny: ModelDir, tmp_path: Path) -> None:
    path = tiny_export.export(tiny, corrected_layers.of(tiny, "w4a8", "all"), tmp_path / "model.onnx")
    model = load(path)
    twice = ["lower-subbyte-linear", "fold-token-aware", "lower-subbyte-linear"]
    _, facts = run_passes(model, [parse_pass(p) for p in (*BEFORE, *twice)], Spec.canonical())
    assert [f.modified for f in facts[-3:]] == [True, False, False]


def test_the_target_without_functions_has_none(tiny: ModelDir, tmp_path: Path) -> None:
    calibrated = tiny_export.calibration(tiny, tiny_export.SCHEMES["w4a8"])
    path, out = tiny_export.export(tiny, calibrated, tmp_path / "model.onnx"), tmp_path / "l.onnx"
    verifier = VerifyPasses(path)
    lower(model=path, target=Target.load("jetson-orin-jp6"), out=out, progress=SILENT, plugins=True, observers=[verifier])
    assert not load(out).functions and len(operators(load(out))) == 20
    assert sum(v is not None and v.error > 0 for v in verifier.verdicts) == 4  # the time path, float16, two orders of sums


def test_no_engine_is_built_without_the_library(tiny: ModelDir, tmp_path: Path) -> None:
    path = lowered(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES["w4a8"]), tmp_path)
    with pytest.raises(InputError, match=r"found operator vditc.QuantizeToken at node .* and no plugin library; wanted the plugin library"):
        expected_precision(path)


def layer(scale: float = 1.0, axis: int = 1, clip: str = "", rest: str = "y = Mul(p, s)", more: str = "") -> ir.Model:
    """One layer whose input and output have four channels. `more`: inputs and outputs of the graph; `clip`: bounds of the ratio."""
    low, _, top = (clip or "0,1").partition(",")
    inputs, _, outputs = more.partition("=>")
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[batch,4] x{inputs}) => (float[batch,4] y{outputs})
  <float low = {{{low}}}, float top = {{{top}}}, float[1] wide = {{1}}, float one = {{{scale}}},
   float eps = {{0.00000001}}, float high = {{127}}, int64[1] last = {{-1}},
   int4[4,4] w = {{1,2,3,4,5,6,7,-8,1,2,3,4,5,6,7,-8}}, float[4] ws = {{1,2,3,4}}>
{{
  magnitudes = Abs(x)
  greatest = ReduceMax<keepdims=1>(magnitudes, last)
  share = Div(greatest, high)
  s = Max(share, eps)
  ratio = Div(x, s)
  divided = {"Clip(ratio, low, top)" if clip else "Div(x, s)"}
  c = QuantizeLinear<output_dtype=3>(divided, one)
  f = DequantizeLinear(c, one)
  wd = DequantizeLinear<axis={axis}>(w, ws)
  ["l/MatMul"] p = MatMul(f, wd)
  {rest}
}}"""
    return ir.from_onnx_text(text)


def handed_over(model: ir.Model) -> PassFacts:
    return run_passes(model, [parse_pass(p) for p in ("convert-compute-type", "lower-subbyte-linear")], Spec.canonical())[1][-1]


def test_what_the_operator_does_not_take_is_said() -> None:
    assert handed_over(layer()).modified
    cases = {"its input has two scales, 0.5 and": layer(scale=0.5), "its weight has no scale per output channel": layer(axis=0)}
    for said, wrong in cases.items():
        facts = handed_over(wrong)
        assert not facts.modified and said in facts.refusals[0].reason and facts.refusals[0].node == "l/MatMul"


@pytest.mark.parametrize(("clip", "bits"), [("", 8), ("-32,31", 6), ("-8,7", 4), ("0,6", 8), ("0,1", 8)])
def test_a_clip_of_the_models_own_is_no_width(clip: str, bits: int) -> None:
    model = layer(clip=clip)
    assert handed_over(model).modified
    assert [op.activation_bits for op in operators(model).values()] == [bits]


def test_a_product_that_others_read_stays() -> None:
    text = "y = Mul(p, s)\n  z = Relu(p)"
    facts = handed_over(layer(rest=text, more="=>, float[batch,4] z"))
    assert not facts.modified and facts.refusals[0].reason == "its product is read before it is scaled"


@pytest.mark.parametrize(("residual", "gated"), [("batch,4", True), ("4", True), ("frames,batch,4", False)])
def test_a_residual_has_no_more_axes_than_the_layer(residual: str, gated: bool) -> None:
    model = layer(rest="r = Mul(p, s)\n  t = Mul(r, x)\n  y = Add(t, z)", more=f", float[{residual}] z=>")
    model.graph.outputs[0].shape = None
    model.graph.outputs[0].shape = ir.Shape(["frames", "batch", 4] if not gated else ["batch", 4])
    handed_over(model)
    assert [op.gated for op in operators(model).values()] == [gated]


def test_what_is_added_to_every_channel_alike_stays() -> None:
    model = layer(rest="r = Mul(p, s)\n  y = Add(r, wide)")
    handed_over(model)
    assert [op.bias for op in operators(model).values()] == [False]


def test_verifying_leaves_the_graph_as_it_is() -> None:
    model = layer()
    passes = ("convert-compute-type", "lower-subbyte-linear", "raise-opset")
    run_passes(model, [parse_pass(p) for p in passes], Spec.canonical())
    before = structure(model)
    assert _snapshot(model).functions[0].opset_import[0].version == 23 and structure(model) == before
    model.functions.clear()
    assert len(_snapshot(model).functions) == 1 and not model.functions


def broken(model: ir.Model, what: str) -> ir.Model:
    (node,) = plugin_nodes(model)
    match what:
        case "bits":
            node.attributes["bits"] = ir.AttrInt64("bits", 5)
        case "body":
            model.functions.clear()
            model.functions[("vditc", "QLinear", "w3_fp16")] = QLinear(n=1, k=1, bits=3).function()
        case "type":
            node.replace_input_with(1, node.inputs[0])
        case "operator":
            node.op_type = "QLin"
    return model


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("bits", "found bits 5; wanted 8 or 4 or 3; wanted what the plugin library has"),
        ("body", "found function vditc.QLinear.w3_fp16; wanted the bodies of the plugin operators, all or none"),
        ("type", "found scale is int8; wanted float; wanted what"),
        ("operator", "found no function vditc.QLin.w4_fp32"),
    ],
)
def test_the_dialect_knows_the_operators(what: str, said: str) -> None:
    model = layer()
    handed_over(model)
    spec = Spec.lowered("fp16")
    spec.verify(model, where="here")
    with pytest.raises(DialectError, match="rule plugin-operators of the lowered to fp16 dialect") as error:
        spec.verify(broken(model, what), where="here")
    assert said in str(error.value)


def test_a_canonical_graph_has_none() -> None:
    model = layer()
    handed_over(model)
    with pytest.raises(DialectError, match="1 local functions"):
        Spec.canonical().verify(model, where="here")


def test_one_term_instead_of_two_computes_the_same(tiny: ModelDir, tmp_path: Path) -> None:
    """fold-token-aware, with and without its product, in float32 on the CPU's graph."""
    calibrated = corrected_layers.of(tiny, "w4a8", "all")
    path = tiny_export.export(tiny, calibrated, tmp_path / "model.onnx")
    feeds = tiny_export.feeds(0, *FEEDS)
    want = OnnxRuntimeModel(path, threads=1)(feeds, 1)
    assert all(c.correction.alpha is not None for c in calibrated.layers.values())
    for merged in ("true", "false"):
        model = load(path)
        passes = ["fold-constants", "convert-compute-type{to=fp32}", f"fold-token-aware{{rank_term={merged}}}"]
        _, facts = run_passes(model, [parse_pass(p) for p in passes], Spec.canonical())
        assert facts[-1].modified and not facts[-1].refusals
        out = tmp_path / f"{merged}.onnx"
        ir.save(model, out, external_data=f"{out.name}.data")
        products = [n for n in model.graph if str(n.name).endswith("/MatMul_rank")]
        assert len(products) == (20 if merged == "true" else 0)
        assert tolerances.relative_l2(OnnxRuntimeModel(out, threads=1)(feeds, 1), want) <= TOLERANCES["rounding", "int8"]


def test_options_are_written_as_they_are_read() -> None:
    text = "lower-subbyte-linear{eight=true,requantize=false,packed=false}"
    assert str(parse_pass("lower-subbyte-linear{eight=true}")) == text
    assert dataclasses.replace(LowerSubbyteLinear(), eight=True) == parse_pass("lower-subbyte-linear{eight=true}")
