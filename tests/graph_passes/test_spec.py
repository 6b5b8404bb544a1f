"""Every rule of the dialect accepts the hand-built graph and refuses one change of it, by name, node and wish."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from attention_graph import TEXT_FORM, attention_model

from vditc.errors import DialectError
from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.spec import Spec

PER_STEP = TEXT_FORM.replace("  s = Max(ratio, floor)\n", "  s = Gather(frequencies, step)\n").replace(
    "float[batch] timestep)", "float[batch] timestep, int64[1] step)"
)


def lowered() -> ir.Model:
    model = attention_model()
    ConvertComputeType(to="fp16")(model)
    return model


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for n in model.graph if n.name == name)


@pytest.mark.parametrize("text", [TEXT_FORM, PER_STEP])
def test_the_hand_built_graph_is_canonical(text: str) -> None:
    Spec.canonical().verify(attention_model(text), where="test")


def test_a_graph_may_name_its_own_axes() -> None:
    model = attention_model(TEXT_FORM.replace("text_tokens", "image_tokens"))
    with pytest.raises(DialectError, match="found axis image_tokens"):
        Spec.canonical().verify(model, where="test")
    model.metadata_props["vditc"] = '{"axes": {"image_tokens": {}}}'
    Spec.canonical().verify(model, where="test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "modulated = MatMul(wave, table_f)",
            "modulated = MatMul(wave, table)",
            "stored-weights-are-cast .*found MatMul reads table, float16",
        ),
        ('"" : 21', '"" : 22', "standard-opset .*found opset 22, IR version 10; wanted opset 21"),
        ("v = MatMul(x, v_w)", "v = custom.MatMul(x, v_w)", "standard-domain .*found operator custom.MatMul"),
        ("norm = LayerNormalization<axis=-1>(", "norm = RMSNormalization<axis=-1>(", "standard-domain .*found operator RMSNormalization"),
        ("q_small = Mul(q_heads, softmax_scale)", "q_small = ScatterND(q_heads, heads, q_heads)", "no-scatter .*found ScatterND"),
        ("wave = Sin(angle)", "wide = Cast<to=11>(angle)\n  w = Sin(wide)\n  wave = Cast<to=1>(w)", "no-double .*found wide is double"),
        ("float[batch,text_tokens,64] hidden", "float[batch,tokens,64] hidden", "named-axes .*node hidden_states: found axis tokens"),
        ("=> (float[batch,text_tokens,64]", "=> (float[batch,N,64]", "named-axes .*node velocity: found axis N"),
        ("float[batch,text_tokens,64] hidden", "float16[batch,text_tokens,64] hidden", "float32-border .*hidden_states: found float16"),
        ("<output_dtype=3>(divided, one)", "(divided, one, zero)", "symmetric-codes .*node q/QuantizeLinear: found zero point zero"),
        ("(q_codes, q_scale)", "(q_codes, bias)", "float32-scales .*node q/weight: found scale of float16 under the MatMul q/MatMul"),
        (
            "divided = Div(x, s)",
            "x16 = Cast<to=10>(x)\n  s16 = Cast<to=10>(s)\n  divided = Div(x16, s16)",
            "float32-scales .*reads float16",
        ),
        ("(v_codes, v_scale)", "(v_codes, s)", "constant-weights .*node v/weight: found a scale computed by the graph"),
        (
            '["q/weight"] q_w = DequantizeLinear<axis=1>(q_codes,',
            'c8 = Abs(q_codes)\n  ["q/weight"] q_w = DequantizeLinear<axis=1>(c8,',
            "constant-weights .*node q/weight: found codes computed by the graph",
        ),
        ("<output_dtype=3>(divided, one)", "<output_dtype=3>(divided, s)", "quantize-by-division .*scale that is no constant scalar"),
        ("k = Mul(k_product, s)", "k = Mul(k_product, one)", "quantize-by-division .*node k/MatMul: found no Mul by s after the MatMul"),
        ("Add(flat, hidden_states)", "Add(flat, v_w16)", "one-type-per-node .*found Add of float and float16"),
    ],
)
def test_a_broken_rule_is_named(old: str, new: str, message: str) -> None:
    assert TEXT_FORM.count(old) == 1
    with pytest.raises(DialectError, match=f"^test: rule {message}"):
        Spec.canonical().verify(attention_model(TEXT_FORM.replace(old, new)), where="test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("int64[1] step", "int64[batch] step", "step-gathers-tables .*node input step: found INT64"),
        ("angle = Mul(freq, frequencies)", "now = Cast<to=1>(step)\n  angle = Mul(freq, now)", "step-gathers-tables .*found Cast of step"),
    ],
)
def test_step_only_selects(old: str, new: str, message: str) -> None:
    assert PER_STEP.count(old) == 1
    with pytest.raises(DialectError, match=f"^test: rule {message}"):
        Spec.canonical().verify(attention_model(PER_STEP.replace(old, new)), where="test")


def test_a_lowered_graph_computes_in_one_type() -> None:
    Spec.lowered("fp16").verify(lowered(), where="test")
    with pytest.raises(DialectError, match=r"rule computes-in-one-type of the lowered to fp16 dialect.*found .* in float; wanted float16"):
        Spec.lowered("fp16").verify(attention_model(), where="test")
    with pytest.raises(DialectError, match="wanted bfloat16"):
        Spec.lowered("bf16").verify(lowered(), where="test")


def test_a_float32_softmax_inside_float16_attention_is_refused() -> None:
    model = lowered()
    softmax = node(model, "softmax")
    scores = softmax.inputs[0]
    assert scores is not None
    wide, narrow = (
        ir.node("Cast", [v], {"to": int(t)}) for v, t in ((scores, ir.DataType.FLOAT), (softmax.outputs[0], ir.DataType.FLOAT16))
    )
    for use in list(softmax.outputs[0].uses()):
        if use.node is not narrow:
            use.node.replace_input_with(use.idx, narrow.outputs[0])
    softmax.replace_input_with(0, wide.outputs[0])
    model.graph.insert_before(softmax, wide)
    model.graph.insert_after(softmax, narrow)
    with pytest.raises(DialectError, match="node softmax: found Softmax computes in float; wanted float16"):
        Spec.lowered("fp16").verify(model, where="test")


def test_float16_scales_of_codes_are_refused_when_lowered() -> None:
    model = lowered()
    for value in model.graph.initializers.values():
        if value.name in ("one", "q_scale", "k_scale") and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype("float16"), name=value.name)
    with pytest.raises(DialectError, match="rule float32-scales"):
        Spec.lowered("fp16").verify(model, where="test")
