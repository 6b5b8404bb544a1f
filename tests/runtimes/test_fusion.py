"""How many kernels make the codes of an input, on graphs and engines written here."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from vditc.runtimes.engine_program import EngineProgram, Kernel
from vditc.runtimes.fusion import fusion, summary
from vditc.runtimes.quantized_inputs import quantized_inputs

QUANTIZE = """
            {0}a = Abs({0})
            {0}t = ReduceMax({0}a, last)
            [{0}_max] {0}s = Max({0}t, one)
            [{0}_div] {0}d = Div({0}, {0}s)
            [{0}_q] {0}q = QuantizeLinear<output_dtype = 3>({0}d, one)
            {0}f = DequantizeLinear({0}q, one)
            {0}p = MatMul({0}f, w)
            {0}y = Mul({0}p, {0}s)
"""
GRAPH = f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[n, 4] x, float[n, 4] scale) => (float[n, 4] gy, float[n, 4] ry, float[n, 4] sy, float[n, 4] ky)
          <float[4, 4] w, float one = {{1}}, float two = {{2}}, int64[1] last = {{-1}}, float[4] ones> {{
            [norm] n = LayerNormalization(x, ones)
            [modulate] m = Mul(n, scale)
            {QUANTIZE.format("m")}
            [gelu] g = Gelu(my)
            {QUANTIZE.format("g")}
            [square] x2 = Pow(x, two)
            [mean] me = ReduceMean(x2, last)
            [root] ro = Sqrt(me)
            [rms] r = Div(x, ro)
            {QUANTIZE.format("r")}
            [sum] s = Add(x, my)
            {QUANTIZE.format("s")}
            ["k/RMSNormalization"] k = RMSNormalization(x, ones)
            {QUANTIZE.format("k")}
        }}"""
NORM = ("norm", "modulate", "m_max", "m_div", "m_q")


def engine(*kernels: tuple[str, ...]) -> EngineProgram:
    return EngineProgram("plan", (), (), (), tuple(Kernel("k", nodes, ("int8[n 4]",)) for nodes in kernels), {})


def test_what_is_before_codes() -> None:
    found = {i.node: i for i in quantized_inputs(ir.from_onnx_text(GRAPH).graph)}
    assert {name: i.behind for name, i in found.items()} == {"m_q": "norm", "g_q": "gelu", "r_q": "norm", "s_q": "rest", "k_q": "norm"}
    assert set(NORM) <= set(found["m_q"].nodes)
    assert {"square", "mean", "root", "rms", "r_q"} <= set(found["r_q"].nodes)
    assert {"k/RMSNormalization", "k_q"} <= set(found["k_q"].nodes)
    assert {"gelu", "g_q"} <= set(found["g_q"].nodes) and "m_max" not in found["g_q"].nodes
    assert found["s_q"].nodes == ("s_q",)  # from an addition of many readers nobody knows which kernel it belongs to


@pytest.mark.parametrize(
    ("kernels", "fused", "cut"),
    [
        ([NORM], {"norm": 1}, {}),
        ([("residual", "norm"), NORM], {}, {"m_q": 2}),
        ([NORM[:2], NORM[2:]], {}, {"m_q": 2}),
        ([NORM, ("gelu", "g_q"), ("s_q",)], {"gelu": 1, "norm": 1, "rest": 1}, {}),
        ([("other",)], {}, {}),
    ],
)
def test_counts(kernels: list[tuple[str, ...]], fused: dict[str, int], cut: dict[str, int]) -> None:
    found = fusion(quantized_inputs(ir.from_onnx_text(GRAPH).graph), engine(*kernels))
    assert (found.fused, found.cut) == (fused, cut)


def test_an_attention_may_quantize() -> None:
    inside = Kernel("_gemm_mha", ("a/Softmax", "s_q"), ("int8[n 4]",))
    found = dataclasses.replace(engine(), attentions=(inside,))
    assert fusion(quantized_inputs(ir.from_onnx_text(GRAPH).graph), found).fused == {"rest": 1}
    assert summary(found)["kernels_that_write_codes"] == {"Softmax": 1}


def test_kernels_that_write_codes() -> None:
    kernels = engine(("a/LayerNormalization", "a/QuantizeLinear_1"), ("norm/Mul_2/RMSNormalization", "b/ReduceMax", "b/QuantizeLinear"))
    assert summary(kernels)["kernels_that_write_codes"] == {
        "LayerNormalization + QuantizeLinear": 1,
        "RMSNormalization + ReduceMax + QuantizeLinear": 1,
    }
