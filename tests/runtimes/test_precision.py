"""What a lowered graph asks for, and which engines do not do it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from lowered_graphs import LAYERS, save_blocks
from onnx import TensorProto, helper

from vditc.errors import PrecisionError
from vditc.runtimes.engine_program import EngineProgram, Gemm, Kernel
from vditc.runtimes.graph_precision import expected_precision
from vditc.runtimes.precision import Expectation, QuantizedLayer, assert_landed

QKV = tuple(f"attn1.to_{c}/MatMul" for c in "qkv")
W8A8 = Gemm(QKV, "int8", "int8", "float", "int8", True)
W4A16 = Gemm(("ffn/MatMul",), "half", "half", "half", "int4", True)
WANTED = Expectation(
    quantized=(
        *(QuantizedLayer(node.removesuffix("/MatMul"), node, "int8", "int8") for node in QKV),
        QuantizedLayer("ffn", "ffn/MatMul", "int4", None),
    ),
    floating={"head/MatMul": "head"},
    attentions=("attn1/Softmax",),
)
ENGINE = EngineProgram(
    source="model.plan",
    gemms=(W8A8, W4A16, Gemm(("head/MatMul",), "half", "half", "half", "half", True)),
    attentions=(Kernel("_gemm_mha_v2", ("attn1/Softmax",), ("half[2 8 64]",)),),
    plugins=(),
    kernels=(),
    constant_bytes={"int4": 128},
)


@pytest.mark.parametrize(
    ("scheme", "weight", "activation"), [("w8a8", "int8", "int8"), ("w4a16", "int4", None), ("w8a16", "int8", None), ("fp16", None, None)]
)
def test_expectation_of_a_block(scheme: str, weight: str | None, activation: str | None, tmp_path: Path) -> None:
    found = expected_precision(save_blocks(tmp_path / "l.onnx", scheme))
    assert found.attentions == ("blocks.0.attn1/Softmax", "blocks.0.attn2/Softmax")
    if weight is None:
        assert (found.quantized, sorted(found.floating.values())) == ((), sorted(LAYERS))
    else:
        wanted = sorted((layer, f"{layer}/MatMul", weight, activation) for layer in LAYERS)
        assert sorted(dataclasses.astuple(q) for q in found.quantized) == wanted
        assert found.floating == {}


def test_a_quantized_activation_needs_a_quantized_weight(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float16[n, 8] x, float16[8, 8] w, float16 s) => (float16[n, 8] y) {
            q = QuantizeLinear<output_dtype = 3>(x, s)
            d = DequantizeLinear(q, s)
            [l_MatMul] y = MatMul(d, w)
        }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "l.onnx")
    with pytest.raises(PrecisionError, match=r"node l_MatMul of .*: found a quantized activation with a weight that is not quantized"):
        expected_precision(tmp_path / "l.onnx")


def test_unknown_codes_are_an_error(tmp_path: Path) -> None:
    codes = helper.make_tensor("w", TensorProto.UINT8, (8, 8), [0] * 64)
    scale = helper.make_tensor("s", TensorProto.FLOAT16, (8,), [1.0] * 8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="l/MatMul"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [codes, scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "l.onnx")
    with pytest.raises(PrecisionError, match="found codes of type UINT8; wanted one of INT8, INT4, FLOAT8E4M3FN"):
        expected_precision(tmp_path / "l.onnx")


def test_what_landed() -> None:
    landed = assert_landed(WANTED, ENGINE)
    assert landed.gemms == {"half x half -> half": 1, "half x half from int4 -> half": 1, "int8 x int8 -> float": 1}
    assert landed.layers["attn1.to_k"] == "int8 x int8 -> float"
    assert landed.layers["head"] == "half x half -> half"
    assert landed.merged == (("attn1.to_k", "attn1.to_q", "attn1.to_v"),)
    assert (landed.attentions, landed.plugins, landed.constant_bytes) == (1, 0, {"int4": 128})


@pytest.mark.parametrize(
    ("gemms", "fault"),
    [
        ((dataclasses.replace(W8A8, nodes=QKV[:2]), W4A16), "found 1 of 5 .*: attn1.to_v: in 0 products of the engine;"),
        ((W8A8, W8A8, W4A16), "attn1.to_q: in 2 products"),
        (
            (dataclasses.replace(W8A8, activation="half", weight="half"), W4A16),
            "attn1.to_q: computes half x half from int8 -> float, wanted int8 x int8",
        ),
        ((dataclasses.replace(W8A8, output="half"), W4A16), "attn1.to_q: computes int8 x int8 -> half: sums beyond 65504 overflow"),
        ((W8A8, dataclasses.replace(W4A16, stored="half")), "ffn: weight stored as half, wanted int4"),
        ((W8A8, dataclasses.replace(W4A16, dequant_fused=False)), "ffn: the int4 weight is dequantized by a kernel of its own"),
        ((W8A8, W4A16, dataclasses.replace(W8A8, nodes=("attn1/qk",))), "attn1/qk computes int8 x int8 -> float, not asked for"),
    ],
)
def test_a_layer_in_another_precision_is_named(gemms: tuple[Gemm, ...], fault: str) -> None:
    with pytest.raises(PrecisionError, match=fault):
        assert_landed(WANTED, dataclasses.replace(ENGINE, gemms=gemms))


def test_an_attention_that_is_not_fused_is_named_with_its_scores() -> None:
    apart = Kernel("__myl_Softmax", ("attn1/Softmax",), ("float[2 3 512 512]",))
    with pytest.raises(
        PrecisionError, match=r"attn1/Softmax in 0 fused kernels; scores written out as float\[2 3 512 512\] by __myl_Softmax"
    ):
        assert_landed(WANTED, dataclasses.replace(ENGINE, attentions=(), kernels=(apart,)))


def test_an_engine_that_does_not_tell_how_weights_are_stored() -> None:
    silent = tuple(dataclasses.replace(g, stored=None) for g in ENGINE.gemms)
    assert assert_landed(WANTED, dataclasses.replace(ENGINE, gemms=silent)).layers["ffn"] == "half x half -> half"
