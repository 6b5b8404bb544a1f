"""QAttention: its body computes what the oracle does, the oracle what attention is, and a node that is wrong is not read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from attention_inputs import TYPES, Array, arrays, cases, check
from hypothesis import given, settings
from plugin_graphs import model_of

from vditc.attention import AttentionScheme
from vditc.calibrate.quantized_attention import quantized_attention
from vditc.numerics import QType
from vditc.plugins.catalogue import operator_of
from vditc.plugins.qattention.op import QAttention
from vditc.plugins.qattention.reference import codes_of, qattention
from vditc.runtimes.onnxruntime import session_options

SIZES = (2, 2, 5, 7, 16)


def run_body(op: QAttention, inputs: list[Array]) -> Array:
    """y of the body, which ONNX Runtime runs; numpy has no bfloat16 that it takes."""
    session = onnxruntime.InferenceSession(
        ir.to_proto(model_of(op, inputs)).SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    kind = int(ir.DataType.from_numpy(inputs[0].dtype))
    feeds = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(a).view(np.uint16), kind)
        for name, a in zip(op.inputs, inputs, strict=True)
    }
    (found,) = session.run_with_ort_values(["node"], feeds)
    assert found.element_type() == kind
    return onnxruntime_array(found).view(inputs[0].dtype)


def onnxruntime_array(value: Any) -> Array:
    """The bits of a float16 or bfloat16 value."""
    return np.from_dlpack(torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()).view(torch.int16)).view(np.uint16)


@settings(max_examples=60, deadline=None)
@given(cases(most=40))
def test_the_body_computes_what_the_oracle_does(made: tuple[QAttention, list[Array]]) -> None:
    op, inputs = made
    check(op, inputs, run_body(op, inputs))


@pytest.mark.parametrize("smooth_k", [False, True])
def test_the_oracle_is_what_calibration_measures(smooth_k: bool) -> None:
    """Of a scale for every token: the attention whose error a calibration file records."""
    op = QAttention(scale=0.3, smooth_k=smooth_k)
    inputs = arrays(op, np.random.default_rng(0), (2, 2, 40, 50, 64), TYPES["fp16"], exact=True)
    q, k, v = (torch.from_numpy(a.astype(np.float32)) for a in inputs)
    wanted = quantized_attention(q, k, v, AttentionScheme(qk=QType.INT8, smooth_k=smooth_k), scale=0.3).numpy()
    assert np.abs(qattention(op, *inputs).astype(np.float32) - wanted).max() <= 2.0**-11 * np.abs(wanted).max() + 1e-5


def test_codes_by_hand() -> None:
    x = np.array([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0], [-254, 1, 3, 5]], np.float32)
    codes, scale = codes_of(x)
    assert codes.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 0, 2, 2]]  # ties to even
    assert scale[:, 0].tolist() == [1, np.float32(1e-8), 2]


def test_the_oracle_by_hand() -> None:
    """Scores 2 ln 2 and 0 after the mask: weights 4/5 and 1/5; the third key is hidden."""
    op = QAttention(scale=float(np.log(2)), smooth_k=False, mask=True)
    f = np.float16
    q = np.array([[[[1, 0, 0, 0, 0, 0, 0, 0]]]], f)
    k = np.array([[[[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]]], f)
    v = np.arange(24, dtype=f).reshape(1, 1, 3, 8)
    found = qattention(op, q, k, v, np.array([[[[np.log(2), 0, -np.inf]]]], f))
    np.testing.assert_allclose(found[0, 0, 0].astype(float), 0.8 * np.arange(8) + 0.2 * np.arange(8, 16), rtol=1e-3)


def test_a_query_that_sees_nothing_averages() -> None:
    op = QAttention(scale=0.25, mask=True)
    q, k, v, _ = arrays(op, np.random.default_rng(0), SIZES, TYPES["fp16"], exact=True)
    hidden = np.full((1, 1, 1, 7), -np.inf, np.float16)
    wanted = np.broadcast_to(v.astype(np.float64).mean(2, keepdims=True), q.shape)
    for found in (qattention(op, q, k, v, hidden), run_body(op, [q, k, v, hidden])):
        np.testing.assert_allclose(found.astype(np.float64), wanted, atol=4e-3)


def node(**attributes: object) -> ir.Node:
    op = QAttention(scale=0.125)
    found = model_of(op, arrays(op, np.random.default_rng(0), SIZES, TYPES["fp16"])).graph.node(0)
    for name, value in attributes.items():
        if value is None:
            del found.attributes[name]
        else:
            found.attributes[name] = ir.convenience.convert_attribute(name, value)  # type: ignore[arg-type]
    return found


def test_a_node_says_its_operator() -> None:
    assert operator_of(node()) == QAttention(scale=0.125)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"scale": None}, "attribute scale is missing"),
        ({"value_type": 1}, "attribute value_type is unknown"),
        ({"scale": 0.0}, "scale 0.0; wanted a number from 1e-20 to 1e"),
        ({"scale": float("nan")}, "scale nan; wanted a number"),
        ({"mask": 2}, "mask 2; wanted 0 or 1"),
        ({"mask": 1}, "3 inputs; wanted q, k, v, mask"),
        ({"smooth_k": 0}, "overload 'int8_smooth'; wanted 'int8'"),
        ({"k_by_token": 1}, "overload 'int8_smooth'; wanted 'int8_smooth_k_by_token'"),
    ],
)
def test_a_node_that_is_wrong_is_not_read(attributes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        operator_of(node(**attributes))


def test_two_bodies_have_two_overloads() -> None:
    flags = ("smooth_k", "mask", "q_by_token", "k_by_token", "v_by_token", "y_by_token")
    ops = [QAttention(scale=1.0, **{name: bool(i >> n & 1) for n, name in enumerate(flags)}) for i in range(1 << len(flags))]
    assert len({op.overload for op in ops}) == len({(op.inputs, tuple(op.body())) for op in ops}) == len(ops)
    assert QAttention(scale=2.0).overload == QAttention(scale=1.0).overload  # an attribute of the node


def test_inputs_of_other_types_are_errors() -> None:
    op, half, brain = QAttention(scale=1.0, mask=True), ir.DataType.FLOAT16, ir.DataType.BFLOAT16
    assert op.types([half] * 4) == (half,) and op.types([brain] * 4) == (brain,)
    with pytest.raises(ValueError, match="q is float; wanted float16 or bfloat16"):
        op.types([ir.DataType.FLOAT] * 4)
    for i in range(1, 4):
        with pytest.raises(ValueError, match=f"{op.inputs[i]} is bfloat16; wanted float16"):
            op.types([brain if at == i else half for at in range(4)])
    with pytest.raises(ValueError, match="q is of unknown type"):
        op.types([None, half, half, half])
