"""The scale of a step goes into what computes the input, and the graph computes the same at every step."""

from __future__ import annotations

import modulated_graphs as graphs
import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from modulated_graphs import Builder, run

from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.core import Pass, PassFacts, run_passes
from vditc.graph_passes.fold_channel_balance import FoldChannelBalance
from vditc.graph_passes.fold_temporal_scales import FoldTemporalScales
from vditc.graph_passes.spec import Spec


def fold(model: ir.Model, *passes: Pass) -> PassFacts:
    """The pass, and others behind it."""
    return run_passes(model, (FoldTemporalScales(), *passes), Spec.canonical())[1][0]


def quantized(b: Builder, x: ir.Value, width: int = graphs.WIDTH) -> ir.Value:
    """A linear layer with a scale for every step."""
    scales = np.exp(b.rng.standard_normal(graphs.STEPS)).astype(np.float32) * np.float32(0.03)
    s = b.op("Gather", b.constant(scales), b.input("step", 1, dtype=ir.DataType.INT64), axis=0, name="linear/Gather")
    x, one = b.op("Div", x, s, name="linear/Div"), b.constant(np.float32(1))
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", x, one, output_dtype=ir.DataType.INT8), one)
    return b.op("Mul", b.op("MatMul", x, b.quantized_weight(width)), s)


@st.composite
def case(draw: st.DrawFn) -> tuple[Builder, ir.Value]:
    """An input that takes a divisor."""
    b = Builder(np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
    if draw(st.booleans()):
        return b, graphs.attention(b, x, low_rank=False, zero_point=False)
    norm, modulation = draw(st.sampled_from(["plain", "affine", "rms"])), draw(st.sampled_from(list(graphs.MODULATIONS)))
    return b, graphs.modulated(b, x, norm, modulation)


@settings(max_examples=60, deadline=None)
@given(case())
def test_no_division_of_tokens_is_left(made: tuple[Builder, ir.Value]) -> None:
    b, x = made
    model = b.model(quantized(b, x), "batch", "text_tokens", graphs.WIDTH)
    steps = [b.feeds | {"step": np.array([step])} for step in range(graphs.STEPS)]
    wanted = [run(model, feeds) for feeds in steps]
    facts = fold(model)
    assert facts.modified and not facts.refusals
    assert "linear/Div" not in {n.name for n in model.graph}
    for feeds, want in zip(steps, wanted, strict=True):
        assert tolerances.relative_l2(run(model, feeds), want) <= tolerances.FOLDED_CODES
    assert not fold(model).modified


@pytest.mark.parametrize("order", [1, -1])
def test_with_a_balance_in_front_in_either_order(order: int) -> None:
    b = Builder(np.random.default_rng(4))
    x = graphs.modulated(b, b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH), "plain", "wan")
    m = np.exp(b.rng.standard_normal(graphs.WIDTH)).astype(np.float32)
    x = b.op("Mul", x, b.constant(m, "linear.balance"), name="linear/Mul_balance")
    model = b.model(quantized(b, x), "batch", "text_tokens", graphs.WIDTH)
    wanted = run(model, b.feeds)
    run_passes(model, (FoldTemporalScales(), FoldChannelBalance())[::order], Spec.canonical())
    assert "linear/Div" not in {n.name for n in model.graph}
    assert tolerances.relative_l2(run(model, b.feeds), wanted) <= tolerances.FOLDED_CODES


def test_products_of_codes_stay_in_float32() -> None:
    """With nothing that divides in front, the scale behind is known by its table."""
    b = Builder(np.random.default_rng(5))
    x = graphs.modulated(b, b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH), "plain", "wan")
    model = b.model(quantized(b, x), "batch", "text_tokens", graphs.WIDTH)
    wanted = run(model, b.feeds)
    fold(model, ConvertComputeType(to="fp16"))
    rescale = next(n for n in model.graph if n.op_type == "Mul" and any(v is not None and v.name == "linear/Gather" for v in n.inputs))
    assert rescale.inputs[0] is not None and rescale.inputs[0].producer().op_type == "MatMul"  # type: ignore[union-attr]
    assert tolerances.relative_l2(run(model, b.feeds), wanted) <= tolerances.LOWERED["fp16", "int8"]


def test_half_of_the_channels_is_not_divided_alone() -> None:
    """Beside GELU the division stays: of a half it would be no fewer nodes."""
    b = Builder(np.random.default_rng(5))
    x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
    halves = b.op("Concat", graphs.attention(b, x, low_rank=False, zero_point=False), b.op("Gelu", x, name="act"), axis=2)
    model = b.model(quantized(b, halves, 2 * graphs.WIDTH), "batch", "text_tokens", graphs.WIDTH)
    facts = fold(model)
    assert not facts.modified
    assert [(r.node, r.reason) for r in facts.refusals] == [("linear/Div", "behind Gelu act, which is not linear in its channels")]
