"""Every rule of the dialect accepts the hand-built graph and refuses one change of it, by name, node and wish."""

from __future__ import annotations

import pytest
from attention_graph import TEXT_FORM, attention_model

from vditc.errors import DialectError
from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.spec import Spec

STATIC = ("  s = Max(ratio, floor)\n", "  s = Gather(frequencies, step)\n")
STEP = ("float[batch] timestep)", "float[batch] timestep, int64[1] step)")


def test_the_graph_is_canonical() -> None:
    Spec.canonical().verify(attention_model(), where="test")
    Spec.canonical().verify(attention_model(TEXT_FORM.replace(*STATIC).replace(*STEP)), where="test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"" : 21', '"" : 22', "rule standard-opset .*found opset 22, IR version 10; wanted opset 21"),
        ("v = MatMul(x, v_w)", "v = custom.MatMul(x, v_w)", "rule standard-domain .*found operator custom.MatMul"),
        ("q_small = Mul(q_heads, softmax_scale)", "q_small = ScatterND(q_heads, heads, softmax_scale)", "rule no-scatter .*ScatterND"),
        ("table_f = Cast<to=1>(table)", "table_d = Cast<to=11>(table)\n  table_f = Cast<to=1>(table_d)", "rule no-double .*table_d is double"),
        ("modulated = MatMul(wave, table_f)", "modulated = MatMul(wave, table)", "rule one-type-per-node .*MatMul of float and float16"),
        ("QuantizeLinear<output_dtype=3>(divided, one)", "QuantizeLinear(divided, one, zero)", "rule symmetric-codes .*zero point zero"),
        ("(q_codes, q_scale)", "(q_codes, bias)", r"rule one-type-per-node .*MatMul of float and float16"),
        ("(v_codes, v_scale)", "(v_codes, s)", "rule constant-weights .*node v/weight: found a scale computed by the graph"),
        ("(q_codes, q_scale)", "(sign, q_scale)", "rule constant-weights .*node q/weight: found codes computed by the graph"),
        (
            "<axis=1>(k_codes, k_scale)",
            "<axis=0, block_size=32>(k_codes, k_blocks)",
            "rule no-blocks-under-quantized-activations .*node k/MatMul: found quantized activation times weight with block_size 32",
        ),
        ("(divided, one)", "(divided, s)", "rule quantize-by-division .*no constant scalar"),
        ("k = Mul(k_product, s)", "k = Mul(k_product, one)", "rule quantize-by-division .*node k/MatMul: found no Mul by s after the MatMul"),
        ("batch,text_tokens,64] hidden", "batch,tokens,64] hidden", "rule named-axes .*hidden_states: found axis tokens"),
        ("=> (float[batch,text_tokens,64]", "=> (float[batch,N,64]", "rule named-axes .*velocity: found axis N"),
    ],
)
def test_a_broken_rule_is_named(old: str, new: str, message: str) -> None:
    assert old in TEXT_FORM
    text = TEXT_FORM.replace(old, new).replace("] : 21", "]")
    text = text.replace("sign, q_scale", "sign8, q_scale").replace(
        '["q/weight"]', '["sign"] sign8 = Cast<to=3>(x)\n  ["q/weight"]' if "sign" in new else '["q/weight"]'
    )
    model = attention_model(text)
    if "zero" in new:
        add_zero_point(model)
    if "k_blocks" in new:
        add_blocks(model)
    with pytest.raises(DialectError, match=message.replace("codes computed", "codes computed")):
        Spec.canonical().verify(model, where="test")
