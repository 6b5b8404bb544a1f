"""The body of `vditc.QuantizeToken`, run by ONNX Runtime, computes what its oracle does; a model names it and reads it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import token_cases
import tolerances
from hypothesis import given, settings
from token_cases import ODD, ODD_OPERATORS, TYPES, Case, cases, inputs, odd_case, tokens

from vditc.hadamard import rotate
from vditc.plugins.catalogue import attach_functions, operator_of
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.plugins.quantize_token.reference import exact, quantize_token

Array = npt.NDArray[Any]


def model(op: QuantizeToken, inputs: list[Array]) -> ir.Model:
    """One node, float32 at the border and x and what is of its type cast to that, as ONNX Runtime takes no bfloat16 from numpy."""
    values = [ir.val(f"in.{name}", dtype=ir.DataType.FLOAT, shape=ir.Shape(a.shape)) for name, a in zip(op.inputs, inputs, strict=True)]
    kinds = [ir.DataType.from_numpy(a.dtype) for a in inputs]
    casts = [ir.node("Cast", [v], {"to": int(kind)}, name=f"cast.{v.name}") for v, kind in zip(values, kinds, strict=True)]
    node = op.node([cast.outputs[0] for cast in casts], "q")
    channels = {"codes": inputs[0].shape[-1] // (2 if op.packed else 1), "sum": inputs[0].shape[-1]}
    for name, value, dtype in zip(op.outputs, node.outputs, op.types(kinds), strict=True):
        value.dtype = dtype
        value.shape = ir.Shape([*inputs[0].shape[:-1], channels.get(name, 1)])
    widen = [ir.node("Cast", [v], {"to": 1}, name=f"widen.{v.name}") for v in node.outputs if v.name == "q.sum"]
    for cast in widen:
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = "wide_sum", ir.DataType.FLOAT, node.outputs[-1].shape
    outputs = [*node.outputs[: len(node.outputs) - len(widen)], *(cast.outputs[0] for cast in widen)]
    graph = ir.Graph(values, outputs, nodes=[*casts, node, *widen], opset_imports={"": 21}, name="quantize")
    made = ir.Model(graph, ir_version=10)
    attach_functions(made)
    return made


def run(op: QuantizeToken, inputs: list[Array]) -> dict[str, Array]:
    """The outputs by name."""
    made = ir.to_proto(model(op, inputs))
    onnx.checker.check_model(made, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {f"in.{name}": a.astype(np.float32) for name, a in zip(op.inputs, inputs, strict=True)}
    found = dict(zip(op.outputs, session.run(None, feeds), strict=True))
    return found | ({"sum": found["sum"].astype(inputs[0].dtype)} if op.gated else {})


def check(op: QuantizeToken, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The body's outputs, which are the oracle's as exactly as they must be."""
    return token_cases.check(op, inputs, run(op, [inputs[name] for name in op.inputs]))


@settings(max_examples=120, deadline=None)
@given(cases())
def test_body_is_the_oracle(made: Case) -> None:
    check(*made)


@settings(max_examples=40, deadline=None)
@given(cases(plain=True))
def test_codes_are_exact_without_sums(made: Case) -> None:
    assert exact(made[0])
    check(*made)


@pytest.mark.parametrize("bits", [8, 6, 4, 3])
def test_ties_go_to_even_and_codes_end_at_the_range(bits: int) -> None:
    high = (1 << bits - 1) - 1
    x = np.asarray([[0.5, 1.5, -0.5, -1.5, 2.5, high + 9, -high - 9]], np.float32)
    one = np.ones(1, np.float32)
    out = quantize_token(QuantizeToken(bits=bits, scaled="given"), x, one)
    assert out["codes"].tolist() == [[0, 2, 0, -2, 2, high, -high - 1]]
    check(QuantizeToken(bits=bits, scaled="given"), {"x": x, "given": one})


def test_two_codes_a_byte_by_hand() -> None:
    """Channels i and i + 16 of a block of 32 are the low and the high half of byte i."""
    x = np.zeros((1, 64), np.float32)
    x[0, [1, 17, 34, 51]] = [3, -8, -1, 7]
    out = quantize_token(QuantizeToken(bits=4, scaled="given", packed=True), x, np.ones(1, np.float32))["codes"]
    assert out.shape == (1, 32) and out.dtype == np.int8
    assert {int(i): int(out[0, i]) & 255 for i in np.flatnonzero(out)} == {1: 0x83, 18: 0x0F, 19: 0x70}


def test_what_follows_the_residual_reads_its_rounded_sum() -> None:
    """1 + 2^-11 is no float16: its scale and the output are of 1."""
    x, one = np.full((1, 2), 2**-11, np.float16), np.ones((1, 2), np.float16)
    out = quantize_token(QuantizeToken(gated=True), x, one, one)
    assert out["sum"].tolist() == [[1, 1]] and out["scale"] == np.float32(1) / np.float32(127)


def test_the_oracle_rotates_as_the_calibration_does() -> None:
    x = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    plain = quantize_token(QuantizeToken(), rotate(x, 256))
    rotated = quantize_token(QuantizeToken(rotation=256), x)
    assert np.abs(plain["codes"].astype(int) - rotated["codes"]).max() <= 1
    assert np.allclose(plain["scale"], rotated["scale"], rtol=tolerances.SCALE_OFF)


def test_a_wide_token() -> None:
    """Where float32 sums of a norm are long: no more codes are off than may be."""
    op = QuantizeToken(norm="layer", epsilon=1e-6, gain=True, shift=True, total=True)
    random = np.random.default_rng(1)
    check(op, inputs(random, op, tokens(random, (2, 40), 5120, TYPES["fp16"]), {"gain": (2, 1, 5120), "shift": (2, 1, 5120)}))


@pytest.mark.parametrize("odd", list(ODD))
@pytest.mark.parametrize("op", ODD_OPERATORS, ids=lambda op: op.overload)
def test_what_is_no_number_stays_in_its_token(op: QuantizeToken, odd: str) -> None:
    check(op, odd_case(op, ODD[odd], 256, TYPES["fp16"]))


@settings(max_examples=40, deadline=None)
@given(cases())
def test_node_says_what_it_is(made: Case) -> None:
    op, inputs = made
    proto = ir.from_proto(ir.to_proto(model(op, list(inputs.values()))))
    read = operator_of(next(n for n in proto.graph if n.op_type == "QuantizeToken"))
    assert isinstance(read, QuantizeToken)
    assert dataclasses.replace(read, epsilon=op.epsilon) == op
    assert read.epsilon == np.float32(op.epsilon)


def test_two_bodies_have_two_overloads() -> None:
    """Every attribute that changes the body, or the inputs and outputs, changes the overload."""
    base: dict[str, Any] = {"norm": "layer", "epsilon": 1e-6}
    changes: list[dict[str, Any]] = [
        {"bits": 4}, {"scaled": "given"}, {"clip": True}, {"norm": "rms"}, {"norm": "none", "epsilon": 0.0, "activation": "gelu"},
        {"norm": "none", "epsilon": 0.0, "activation": "gelu_tanh"}, {"rotation": 256}, {"total": True}, {"shares": 1}, {"shares": 2},
        {"bits": 4, "packed": True}, {"gated": True},
        *({name: True} for name in ("weight", "bias", "gain", "shift", "center", "balance")),
    ]  # fmt: skip
    ops = [QuantizeToken(**base), *(QuantizeToken(**(base | change)) for change in changes)]
    bodies = {(op.inputs, op.outputs, tuple(op.body())) for op in ops}
    assert len({op.overload for op in ops}) == len(bodies) == len(ops)
    assert QuantizeToken(norm="layer", epsilon=1e-5).overload == ops[0].overload  # an attribute of the node


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 5}, "bits 5"),
        ({"bits": 6, "packed": True}, "packed codes of 6 bits; wanted 4 or 3"),
        ({"rotation": 128}, "rotation 128"),
        ({"shares": 5}, "shares 5"),
        ({"norm": "layer"}, "positive epsilon"),
        ({"epsilon": 1e-6}, "positive epsilon"),
        ({"weight": True}, "without a norm"),
        ({"norm": "rms", "epsilon": 1e-6, "activation": "gelu"}, "in front of norm"),
        ({"scaled": "given", "clip": True}, "clip of a given scale"),
        ({"scaled": "tensor"}, "scaled 'tensor'"),
    ],
)
def test_what_there_is_not(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QuantizeToken(**options)


def test_types() -> None:
    op = QuantizeToken(balance=True, total=True)
    assert op.types([ir.DataType.BFLOAT16, ir.DataType.FLOAT]) == (ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.FLOAT)
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    both = QuantizeToken(gated=True, gain=True)
    assert both.types([half, half, half, single]) == (ir.DataType.INT8, single, half)
    with pytest.raises(ValueError, match="residual is float; wanted float16"):
        both.types([half, half, single, single])
    with pytest.raises(ValueError, match="balance is float16; wanted float"):
        op.types([ir.DataType.FLOAT16, ir.DataType.FLOAT16])
    with pytest.raises(ValueError, match="x is int8; wanted float or float16 or bfloat16"):
        op.types([ir.DataType.INT8, ir.DataType.FLOAT])
