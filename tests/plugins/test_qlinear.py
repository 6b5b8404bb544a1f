"""QLinear: its body computes what the oracle does, and a node that is wrong is not read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_graphs import Array, model_of, run_body

from vditc.plugins.catalogue import operator_of
from vditc.plugins.packing import BLOCK, code_range, pack, pack_tokens
from vditc.plugins.qlinear.op import ACTIVATIONS, QLinear
from vditc.plugins.qlinear.reference import accumulators, qlinear

FLOATS = {"fp32": np.float32, "fp16": np.float16}


@st.composite
def layers(draw: st.DrawFn) -> tuple[QLinear, list[Array]]:
    """An operator and inputs for it."""
    bits, group = draw(st.sampled_from((8, 4, 3))), draw(st.sampled_from((0, 0, 128)))
    packed = draw(st.booleans())
    k = 128 * draw(st.integers(1, 3)) if group else draw(st.integers(1, 80))
    op = QLinear(
        n=draw(st.integers(1, 80)),
        k=-(-k // BLOCK) * BLOCK if packed else k,
        bits=bits,
        unsigned=bits == 4 and draw(st.booleans()),
        activation_bits=draw(st.sampled_from((4, 3))) if packed else 8,
        packed=packed,
        group=group,
        low_rank=draw(st.sampled_from((0, 0, 16, 32, 48, 64))),
        rank=draw(st.integers(0, 4)),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        gated=draw(st.booleans()),
        output=draw(st.sampled_from(list(FLOATS))),
    )
    return op, inputs_of(op, np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.booleans()))


def inputs_of(op: QLinear, rng: np.random.Generator, one_scale: bool = False) -> list[Array]:
    low, high = code_range(op.bits, unsigned=op.unsigned)
    out, tokens = FLOATS[op.output], (2, 3)
    x = code_range(op.activation_bits)
    codes = rng.integers(x[0], x[1] + 1, (*tokens, op.k), dtype=np.int8)
    known: dict[str, Array] = {
        "x": pack_tokens(codes) if op.packed else codes,
        "scale": np.asarray(rng.random(() if one_scale else (*tokens, 1)) * 0.05, np.float32),
        "weight": pack(rng.integers(low, high + 1, (op.n, op.k), dtype=np.int8), op.bits, unsigned=op.unsigned),
        "weight_scale": (rng.random((op.k // op.group, op.n) if op.group else op.n) * 0.01).astype(np.float32),
        "left": rng.standard_normal((*tokens, op.rank)).astype(np.float32),
        "right": rng.standard_normal((op.rank, op.n)).astype(np.float32),
        "down": rng.standard_normal((*tokens, op.low_rank)).astype(np.float16),
        "up": rng.standard_normal((op.low_rank, op.n)).astype(np.float16),
        "b": rng.standard_normal(op.n).astype(np.float32),
        "gate": rng.standard_normal((2, 1, op.n)).astype(out),
        "residual": rng.standard_normal((*tokens, op.n)).astype(out),
    }
    return [known[name] for name in op.inputs]


@settings(max_examples=60, deadline=None)
@given(layers())
def test_the_body_computes_what_the_oracle_does(made: tuple[QLinear, list[Array]]) -> None:
    op, inputs = made
    (found,), wanted = run_body(op, inputs), qlinear(op, *inputs)
    assert found.dtype == wanted.dtype == FLOATS[op.output] and found.shape == wanted.shape
    assert (
        np.abs(found.astype(float) - wanted.astype(float)).max() <= tolerances.PLUGIN_BODY[op.output] * np.abs(wanted.astype(float)).max()
    )
    if not op.rank and not op.low_rank and op.activation == "none" and not op.gated:
        np.testing.assert_array_equal(found, wanted)  # no sum and no function whose rounding is anybody's choice


def test_accumulators_are_exact_where_float32_is_not() -> None:
    """K at which sums of 8-bit codes exceed 2^24."""
    op = QLinear(n=1, k=2048, bits=8, output="fp32")
    weight = pack(np.full((1, 2048), 127, np.int8), 8)
    x = np.full((1, 2048), 127, np.int8)
    x[0, 0] = 126
    assert accumulators(op, x, weight).tolist() == [[127 * 127 * 2048 - 127]]


def test_the_oracle_by_hand() -> None:
    op = QLinear(n=2, k=3, bits=3, rank=2, bias=True, gated=True, output="fp32")
    f = np.float32
    x, weight = np.array([[1, 2, 3]], np.int8), pack(np.array([[1, -4, 3], [0, 1, 2]], np.int8), 3)
    left, right = np.array([[1, 10]], f), np.array([[1, 2], [3, 4]], f)
    rest = (left, right, np.array([100, 200], f), np.array([[2, 3]], f), np.array([[1000, 2000]], f))
    found = qlinear(op, x, np.array([[0.5]], f), weight, np.array([2, 4], f), *rest)
    # acc 2, 8; scaled 2, 16; plus 31, 42; plus 100, 200; times 2, 3 plus 1000, 2000
    assert found.tolist() == [[1000 + 2 * (2 + 31 + 100), 2000 + 3 * (16 + 42 + 200)]]


def test_what_is_new_by_hand() -> None:
    """Two groups whose scales differ, unsigned weights, two codes a byte, a branch of which one column counts."""
    op = QLinear(n=1, k=256, bits=4, unsigned=True, activation_bits=4, packed=True, group=128, low_rank=16, bias=True, output="fp32")
    f, h = np.float32, np.float16
    codes, weight = np.zeros((1, 256), np.int8), np.zeros((1, 256), np.int8)
    codes[0, [0, 16, 255]], weight[0, [0, 16, 255]] = [-8, 7, 3], [15, 1, 8]
    down, up = np.zeros((1, 16), h), np.zeros((16, 1), h)
    down[0, 15], up[15] = 100, 3
    rest = (down, up, np.array([1000], f))
    found = qlinear(op, pack_tokens(codes), np.array([[2]], f), pack(weight, 4, unsigned=True), np.array([[1], [10]], f), *rest)
    # groups -120 + 7 and 24
    assert accumulators(op, pack_tokens(codes), pack(weight, 4, unsigned=True)).tolist() == [[[-113]], [[24]]]
    assert found.tolist() == [[2 * (-113 + 240) + 300 + 1000]]


def test_groups_are_added_one_after_another() -> None:
    """2^24 + 1 is no float32: ones behind it are lost, ones in front are not."""
    op = QLinear(n=1, k=512, bits=8, group=128, output="fp32")
    x, weight = np.zeros((1, 512), np.int8), np.zeros((1, 512), np.int8)
    x[0, ::128], weight[0, ::128] = 1, 1
    scale = np.array([[2.0**24], [1], [1], [-(2.0**24)]], np.float32)
    inputs: list[Array] = [x, np.ones((1, 1), np.float32), pack(weight, 8), scale]
    assert qlinear(op, *inputs).tolist() == run_body(op, inputs)[0].tolist() == [[0]]
    inputs[3] = np.ascontiguousarray(scale[[1, 2, 0, 3]])
    assert qlinear(op, *inputs).tolist() == run_body(op, inputs)[0].tolist() == [[2]]


def test_a_branch_of_bfloat16_is_of_the_outputs_type() -> None:
    half, bf16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
    for output, wanted in {"fp32": half, "fp16": half, "bf16": bf16}.items():
        op = QLinear(n=4, k=4, bits=4, low_rank=16, output=output)
        kinds = {"x": ir.DataType.INT8, "weight": ir.DataType.INT8, "down": wanted, "up": wanted}
        op.types([kinds.get(name, ir.DataType.FLOAT) for name in op.inputs])
        with pytest.raises(ValueError, match=f"up is float; wanted {wanted.name.lower()}"):
            op.types([(kinds | {"up": ir.DataType.FLOAT}).get(name, ir.DataType.FLOAT) for name in op.inputs])


def test_two_bodies_have_two_overloads() -> None:
    """Every attribute that changes the body, or the inputs, changes the overload."""
    base: dict[str, Any] = {"n": 8, "k": 128, "bits": 4, "activation_bits": 4}
    changes: list[dict[str, Any]] = [
        {"bits": 8}, {"bits": 3}, {"unsigned": True}, {"packed": True}, {"group": 128}, {"rank": 1}, {"low_rank": 16}, {"bias": True},
        {"activation": "gelu"}, {"activation": "gelu_tanh"}, {"gated": True}, {"output": "fp32"}, {"output": "bf16"},
    ]  # fmt: skip
    ops = [QLinear(**base), *(QLinear(**(base | change)) for change in changes)]
    assert len({op.overload for op in ops}) == len({(op.inputs, tuple(op.body())) for op in ops}) == len(ops)
    assert QLinear(**(base | {"low_rank": 64, "rank": 0})).overload == QLinear(**(base | {"low_rank": 16})).overload


def node(**attributes: object) -> ir.Node:
    op = QLinear(n=4, k=4, bits=4)
    found = model_of(op, inputs_of(op, np.random.default_rng(0))).graph.node(0)
    for name, value in attributes.items():
        if value is None:
            del found.attributes[name]
        else:
            found.attributes[name] = ir.convenience.convert_attribute(name, value)  # type: ignore[arg-type]
    return found


def test_a_node_says_its_operator() -> None:
    assert operator_of(node()) == QLinear(n=4, k=4, bits=4)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"bits": None}, "attribute bits is missing"),
        ({"colour": 1}, "attribute colour is unknown"),
        ({"bits": 5}, "bits 5; wanted 8 or 4 or 3"),
        ({"layout": 2}, "layout 2; wanted 1"),
        ({"rank": 5}, "rank 5; wanted 0 or 1 or 2 or 3 or 4"),
        ({"n": 0}, "n 0, k 4; wanted positive numbers"),
        ({"activation": "relu"}, "activation 'relu'; wanted none or gelu or gelu_tanh"),
        ({"plugin_namespace": "other"}, "plugin_namespace 'other'; wanted 'vditc'"),
        ({"unsigned": 1, "bits": 3}, "unsigned weights of 3 bits; wanted bits 4"),
        ({"packed": 1}, "packed, activation_bits 8, k 4; wanted 4 or 3 bits and a multiple of 32"),
        ({"packed": 1, "activation_bits": 4}, "packed, activation_bits 4, k 4; wanted 4 or 3 bits and a multiple of 32"),
        ({"group": 64}, "group 64; wanted 0 or 128"),
        ({"group": 128}, "group 128, k 4; wanted a multiple of 128"),
        ({"low_rank": 8}, "low_rank 8; wanted 0 or 16 or 32 or 48 or 64"),
        ({"bias": 1}, "4 inputs; wanted x, scale, weight, weight_scale, b"),
        ({"output": "fp32"}, "overload 'w4_fp16'; wanted 'w4_fp32'"),
    ],
)
def test_a_node_that_is_wrong_is_not_read(attributes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        operator_of(node(**attributes))


def test_inputs_of_other_types_are_errors() -> None:
    op = QLinear(n=4, k=4, bits=4, gated=True)
    kinds = {"x": ir.DataType.INT8, "weight": ir.DataType.INT8, "gate": ir.DataType.FLOAT16, "residual": ir.DataType.FLOAT16}
    good = [kinds.get(name, ir.DataType.FLOAT) for name in op.inputs]
    assert op.types(good) == (ir.DataType.FLOAT16,)
    for i, name in enumerate(op.inputs):
        with pytest.raises(ValueError, match=f"{name} is bool; wanted"):
            op.types([*good[:i], ir.DataType.BOOL, *good[i + 1 :]])
