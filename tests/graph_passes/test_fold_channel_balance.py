"""Balances and shifts go into what computes their input, and the graph computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modulated_graphs as graphs
import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from modulated_graphs import Arrays, Builder, run

from vditc.errors import InputError
from vditc.graph_passes.core import PassFacts, run_passes
from vditc.graph_passes.fold_channel_balance import FoldChannelBalance, transformed_inputs
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, save


def fold(model: ir.Model) -> PassFacts:
    """Once."""
    return run_passes(model, (FoldChannelBalance(),), Spec.canonical())[1][0]


def token_operations(model: ir.Model) -> int:
    """Nodes that multiply, add or subtract tensors of one row for every token."""
    inferred = model.clone()
    ir.passes.common.ShapeInferencePass()(inferred)
    shapes = [n.outputs[0].shape for n in inferred.graph if n.op_type in ("Mul", "Add", "Sub", "Div")]
    return sum(s is not None and s.rank() > 2 and not isinstance(s[-2], int) for s in shapes)


@st.composite
def foldable(draw: st.DrawFn) -> tuple[ir.Model, Arrays, int]:
    """A graph whose transform folds whole, and how many operations on tokens that saves."""
    b = Builder(np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
    kind = draw(st.sampled_from(["modulated", "affine", "attention", "text beside video"]))
    if kind == "attention":
        x = graphs.attention(b, x, low_rank=draw(st.booleans()))
    elif kind == "affine":
        x = graphs.modulated(b, x, "affine", "none")
    else:
        modulation = st.sampled_from(list(graphs.MODULATIONS))
        norm = st.sampled_from(["plain", "affine", "rms"])
        parts = [graphs.modulated(b, x, draw(norm), draw(modulation))]
        if kind == "text beside video":
            parts.append(graphs.modulated(b, b.input("text", "batch", "frames", graphs.WIDTH), draw(norm), draw(modulation)))
            x = b.op("Concat", *parts, axis=1)
        else:
            x = parts[0]
    if draw(st.booleans()):
        x = b.op("Reshape", b.op("Unsqueeze", x, b.ints(1)), b.ints(0, -1, graphs.WIDTH))
    shift, readers = draw(st.booleans()), draw(st.integers(1, 2))
    tokens = "text_tokens + frames" if kind == "text beside video" else "text_tokens"
    model = b.model(graphs.explicit(b, x, shift, readers), "batch", tokens, graphs.WIDTH)
    return model, b.feeds, (1 + shift) * readers


@settings(max_examples=150, deadline=None)
@given(foldable())
def test_what_is_linear_folds_whole(case: tuple[ir.Model, Arrays, int]) -> None:
    model, feeds, saved = case
    before, wanted = token_operations(model), run(model, feeds)
    facts = fold(model)
    assert facts.modified and not facts.refusals
    assert not list(transformed_inputs(model.graph)) and "linear.balance" not in model.graph.initializers
    assert token_operations(model) == before - saved
    assert tolerances.relative_l2(run(model, feeds), wanted) <= tolerances.FOLDED
    assert not fold(model).modified
    assert tolerances.relative_l2(run(model, feeds), wanted) <= tolerances.FOLDED


def one(x: str = "plain", modulation: str = "wan", *, shift: bool = True, seed: int = 0) -> tuple[ir.Model, Arrays]:
    """A modulated norm in front of a linear layer."""
    b = Builder(np.random.default_rng(seed))
    hidden = graphs.modulated(b, b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH), x, modulation)
    return b.model(graphs.explicit(b, hidden, shift), "batch", "text_tokens", graphs.WIDTH), b.feeds


def test_the_order_of_two_layers_does_not_matter() -> None:
    """Two norms that take their vectors from one split."""
    made = []
    for order in (1, -1):
        b = Builder(np.random.default_rng(3))
        x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
        table = b.op("Add", b.vector(1, 4, graphs.WIDTH), b.input("timestep", "batch", 4, graphs.WIDTH))
        parts = b.split(table, 1, 4)
        both = [b.op("Add", b.op("Mul", graphs.layer_norm(b, x, False), parts[i]), parts[i + 1]) for i in (0, 2)]
        m = [b.constant(np.exp(b.rng.standard_normal(graphs.WIDTH)).astype(np.float32), f"{i}.balance") for i in range(2)]
        z = [b.constant(b.rng.standard_normal(graphs.WIDTH).astype(np.float32), f"{i}.shift") for i in range(2)]
        weights = [b.quantized_weight() for _ in range(2)]
        ends = {}
        for i in (0, 1)[::order]:
            moved = b.op("Sub", both[i], z[i], name=f"{i}/Sub_shift")
            ends[i] = b.op("MatMul", b.op("Mul", moved, m[i], name=f"{i}/Mul_balance"), weights[i])
        model = b.model(b.op("Add", ends[0], ends[1]), "batch", "text_tokens", graphs.WIDTH)
        wanted = run(model, b.feeds)
        assert not fold(model).refusals
        made.append(run(model, b.feeds))
        assert tolerances.relative_l2(made[-1], wanted) <= tolerances.FOLDED
    np.testing.assert_allclose(made[0], made[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulation", ["table", "schedule"])
def test_a_table_of_steps_takes_everything_beforehand(modulation: str) -> None:
    model, feeds = one("rms", modulation)
    count, wanted = len(model.graph), run(model, feeds)
    fold(model)
    assert len(model.graph) == count - 2  # no vector is computed when the graph runs
    assert tolerances.relative_l2(run(model, feeds), wanted) <= tolerances.FOLDED


def test_explicit_changes_nothing() -> None:
    model, _ = one()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    facts = run_passes(model, (FoldChannelBalance(explicit=True),), Spec.canonical())[1][0]
    assert not facts.modified and ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("name", "value", "said"), [("balance", 0.0, "0.0"), ("balance", np.inf, "inf"), ("shift", np.nan, "nan")])
def test_what_is_no_factor_is_named(name: str, value: float, said: str) -> None:
    model, _ = one()
    initializer = model.graph.initializers[f"linear.{name}"]
    assert initializer.const_value is not None
    array = initializer.const_value.numpy().copy()
    array[5] = value
    initializer.const_value = ir.tensor(array, name=initializer.name)
    with pytest.raises(InputError, match=f"layer linear: found a {name} of {said} for channel 5"):
        fold(model)


def test_half_of_a_concatenation() -> None:
    """HunyuanVideo's single blocks: attention beside GELU in the channels."""
    b = Builder(np.random.default_rng(1))
    x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
    gelu = b.op("Gelu", x, name="gelu")
    both = b.op("Concat", graphs.attention(b, x, low_rank=False), gelu, axis=2, name="both")
    model = b.model(graphs.explicit(b, both, True), "batch", "text_tokens", graphs.WIDTH)
    wanted, feeds = run(model, b.feeds), b.feeds
    facts = fold(model)
    assert [(r.node, r.reason) for r in facts.refusals] == [
        ("linear", "the channels of gelu stay explicit: behind Gelu gelu, which is not linear in its channels")
    ]
    assert [n.inputs[0].name for n in model.graph if str(n.name).endswith("Mul_folded")] == ["gelu"]  # type: ignore[union-attr]
    assert tolerances.relative_l2(run(model, feeds), wanted) <= tolerances.FOLDED


def test_modulation_of_every_token_is_no_vector() -> None:
    b = Builder(np.random.default_rng(1))
    x, shift = (b.input(n, "batch", "text_tokens", graphs.WIDTH) for n in ("hidden_states", "shift"))
    modulated = b.op("Add", graphs.layer_norm(b, x, False), shift)
    model = b.model(graphs.explicit(b, modulated, False), "batch", "text_tokens", graphs.WIDTH)
    facts = fold(model)
    assert not facts.modified and [r.reason for r in facts.refusals] == ["it is the graph's input shift"]


@pytest.mark.parametrize("kind", ["float", "one scale", "least code", "two readers"])
def test_a_v_that_takes_nothing(kind: str) -> None:
    b = Builder(np.random.default_rng(1))
    x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
    codes = b.rng.integers(-127, 128, (graphs.WIDTH, graphs.WIDTH)).astype(np.int8)
    if kind == "least code":
        codes[:] = -128
    if kind == "float":
        weight = b.vector(graphs.WIDTH, graphs.WIDTH)
    else:
        scale = np.float32(0.1) if kind == "one scale" else np.full(graphs.WIDTH, 0.1, np.float32)
        attributes: dict[str, Any] = {"axis": 1} if scale.ndim else {}
        weight = b.op("DequantizeLinear", b.constant(codes, "codes"), b.constant(scale), **attributes)
    v = b.op("MatMul", x, weight, name="v")
    if kind == "two readers":
        b.op("Gelu", v)
    scores = b.op("Softmax", b.input("scores", "batch", "text_tokens", "text_tokens"), axis=-1)
    model = b.model(graphs.explicit(b, b.op("MatMul", scores, v), False), "batch", "text_tokens", graphs.WIDTH)
    facts = fold(model)
    assert not facts.modified
    assert [r.reason for r in facts.refusals] == [
        {
            "float": "the weight of v is not quantized, and would be rounded and stored once more",
            "one scale": "the whole weight of v has one scale",
            "least code": "codes has codes without a counterpart of the other sign",
            "two readers": "v has 2 readers",
        }[kind]
    ]


@pytest.mark.parametrize("kind", [ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN])
def test_signs_of_codes(kind: ir.DataType, tmp_path: Path) -> None:
    """In memory and in a file; the other columns keep their codes."""
    b = Builder(np.random.default_rng(1))
    x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
    limit = {ir.DataType.INT4: 7}.get(kind, 127)
    codes = b.rng.integers(-limit, limit + 1, (graphs.WIDTH, graphs.WIDTH)).astype(kind.numpy())
    weight = b.op("DequantizeLinear", b.constant(codes, "codes", kind), b.constant(np.full(graphs.WIDTH, 0.1, np.float32)), axis=1)
    scores = b.op("Softmax", b.input("scores", "batch", "text_tokens", "text_tokens"), axis=-1)
    mixed = b.op("MatMul", scores, b.op("MatMul", x, weight))
    model = b.model(graphs.explicit(b, mixed, False), "batch", "text_tokens", graphs.WIDTH)
    wanted = run(model, b.feeds)
    assert not fold(model).refusals
    assert tolerances.relative_l2(run(model, b.feeds), wanted) <= tolerances.FOLDED
    save(model, tmp_path / "x.onnx")
    assert tolerances.relative_l2(run(load(tmp_path / "x.onnx"), b.feeds), wanted) <= tolerances.FOLDED
    turned = model.graph.initializers["codes.folded"].const_value
    assert turned is not None and turned.dtype is kind
    same = (turned.numpy().astype(np.float32) == codes.astype(np.float32)).all(0)
    assert 0 < same.sum() < graphs.WIDTH


def test_signs_of_asymmetric_codes() -> None:
    """The least code has no counterpart of the other sign, but -1 - c has the range of c, and the zero point makes up for it."""
    b = Builder(np.random.default_rng(1))
    x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
    codes = b.rng.integers(-8, 8, (graphs.WIDTH, graphs.WIDTH)).astype(ir.DataType.INT4.numpy())
    codes[0] = -8
    scale, zero = np.exp(b.rng.standard_normal(graphs.WIDTH)).astype(np.float32), b.rng.uniform(-3, 3, graphs.WIDTH)
    weight = b.op("DequantizeLinear", b.constant(codes, "v.weight", ir.DataType.INT4), b.constant(scale), axis=1)
    total = b.op("ReduceSum", x, b.ints(-1), keepdims=1)
    offset = b.constant((-scale * zero).astype(np.float32), "v.weight_offset")
    v = b.op("Add", b.op("Add", b.op("MatMul", x, weight), b.vector()), b.op("Mul", total, offset))
    scores = b.op("Softmax", b.input("scores", "batch", "text_tokens", "text_tokens"), axis=-1)
    model = b.model(graphs.explicit(b, b.op("MatMul", scores, v), True), "batch", "text_tokens", graphs.WIDTH)
    wanted = run(model, b.feeds)
    assert not fold(model).refusals
    assert tolerances.relative_l2(run(model, b.feeds), wanted) <= tolerances.FOLDED
    turned = model.graph.initializers["v.weight.folded"].const_value
    assert turned is not None and set(np.unique(turned.numpy()[0].astype(int))) == {-8, 7}


@pytest.mark.parametrize("kind", ["softmax", "other axis", "no softmax"])
def test_a_shift_passes_rows_that_add_up_to_one(kind: str) -> None:
    b = Builder(np.random.default_rng(1))
    x = b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH)
    weights = b.input("scores", "batch", "text_tokens", "text_tokens")
    if kind != "no softmax":
        weights = b.op("Softmax", weights, axis=-1 if kind == "softmax" else 1)
    v = b.op("Add", b.op("MatMul", x, b.quantized_weight()), b.vector())
    model = b.model(graphs.explicit(b, b.op("MatMul", weights, v, name="mixed"), True), "batch", "text_tokens", graphs.WIDTH)
    wanted = run(model, b.feeds)
    reasons = [(r.node, r.reason) for r in fold(model).refusals]
    left = [("linear/Sub_shift", "the rows of mixed have no sum of 1, so a shift does not pass")]
    assert reasons == ([] if kind == "softmax" else left)
    assert not [n for n in model.graph if str(n.name).endswith("Mul_balance")]
    assert tolerances.relative_l2(run(model, b.feeds), wanted) <= tolerances.FOLDED


def test_channels_first() -> None:
    """A transpose alone, by a permutation that is not its own inverse."""
    b = Builder(np.random.default_rng(1))
    x = b.op("Transpose", b.input("hidden_states", "batch", "text_tokens", graphs.WIDTH), perm=[2, 0, 1])
    x = b.op("Add", b.op("Mul", b.op("Gelu", x), b.vector(graphs.WIDTH, 1, 1)), b.vector(graphs.WIDTH, 1, 1))
    model = b.model(graphs.explicit(b, b.op("Transpose", x, perm=[1, 2, 0]), True), "batch", "text_tokens", graphs.WIDTH)
    wanted = run(model, b.feeds)
    assert not fold(model).refusals
    assert tolerances.relative_l2(run(model, b.feeds), wanted) <= tolerances.FOLDED
