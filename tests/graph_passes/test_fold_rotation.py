"""Rotations of whole heads go into v; others stay, and say why."""

from __future__ import annotations

import modulated_graphs as graphs
import numpy as np
import onnx_ir as ir
import pytest
import tolerances
from modulated_graphs import Builder, run

from vditc.graph_passes.core import PassFacts, run_passes
from vditc.graph_passes.fold_channel_balance import FoldChannelBalance
from vditc.graph_passes.fold_rotation import FoldRotation
from vditc.graph_passes.spec import Spec
from vditc.hadamard import factors

WIDTH, HEAD = graphs.WIDTH, graphs.HEAD


def rotated(b: Builder, x: ir.Value, block: int) -> ir.Value:
    """As the exporter writes it, and a linear layer behind it."""
    left, right = factors(block) or (np.ones((1, 1)), np.ones((1, 1)))
    shape = b.op("Shape", x, name="linear/Shape_rotation")
    x = b.op("Reshape", x, b.ints(-1, len(left), len(right)), name="linear/Reshape_rotation_in")
    if len(right) > 1:
        x = b.op("MatMul", x, b.constant(right), name="linear/MatMul_rotation_right")
    if len(left) > 1:
        x = b.op("MatMul", b.constant(np.ascontiguousarray(left.T)), x, name="linear/MatMul_rotation_left")
    x = b.op("Reshape", x, shape, name="linear/Reshape_rotation_out")
    return b.op("MatMul", x, b.quantized_weight())


def attention(b: Builder, *, stored: type = np.float32, codes: bool = False, several: bool = False) -> ir.Value:
    """With a v in floating point, unless it has `codes`."""
    x = b.input("hidden_states", "batch", "text_tokens", WIDTH)
    weight = b.constant(b.rng.standard_normal((WIDTH, WIDTH)).astype(stored), "v.weight")
    plain = weight if stored is np.float32 else b.op("Cast", weight, to=1)
    v = b.op("Add", b.op("Add", b.op("MatMul", x, b.quantized_weight() if codes else plain, name="v"), b.vector()), b.vector())
    heads = b.op("Transpose", b.op("Reshape", v, b.ints(0, 0, WIDTH // HEAD, HEAD)), perm=[0, 2, 1, 3])
    scores = b.op("Softmax", b.input("scores", "batch", WIDTH // HEAD, "text_tokens", "text_tokens"), axis=-1)
    out = b.op("Reshape", b.op("Transpose", b.op("MatMul", scores, heads), perm=[0, 2, 1, 3]), b.ints(0, 0, WIDTH), name="out")
    if several:
        b.op("Relu", out, name="other")
    return out


def fold(model: ir.Model) -> PassFacts:
    return run_passes(model, (FoldRotation(),), Spec.canonical())[1][0]


@pytest.mark.parametrize("stored", [np.float32, np.float16])
@pytest.mark.parametrize("block", [2, HEAD])
def test_blocks_within_a_head_fold(block: int, stored: type) -> None:
    b = Builder(np.random.default_rng(block))
    model = b.model(rotated(b, attention(b, stored=stored), block), "batch", "text_tokens", WIDTH)
    wanted = run(model, b.feeds)
    facts = fold(model)
    assert facts.modified and not facts.refusals
    assert not [n for n in model.graph if "rotation" in str(n.name)]
    assert "v.weight" not in model.graph.initializers
    assert tolerances.relative_l2(run(model, b.feeds), wanted) <= tolerances.FOLDED
    assert not fold(model).modified


@pytest.mark.parametrize(
    ("block", "case", "reason"),
    [
        (WIDTH, {}, f"its blocks of {WIDTH} channels mix heads of {HEAD}"),
        (HEAD, {"codes": True}, "the weight of v was rounded without the rotation"),
        (HEAD, {"several": True}, "out is also read as it is, by other"),
        (HEAD, None, "it is not what attention gave out, but comes from Gelu act"),
    ],
)
def test_what_stays(block: int, case: dict[str, bool] | None, reason: str) -> None:
    b = Builder(np.random.default_rng(0))
    x = b.op("Gelu", b.input("hidden_states", "batch", "text_tokens", WIDTH), name="act") if case is None else attention(b, **case)  # type: ignore[arg-type]
    model = b.model(rotated(b, x, block), "batch", "text_tokens", WIDTH)
    facts = fold(model)
    assert not facts.modified
    assert [(r.node, r.reason) for r in facts.refusals] == [
        ("linear/Reshape_rotation_in", f"{reason}: the rotation is computed when the graph runs")
    ]


def test_random_signs_fold_where_the_rotation_does_not() -> None:
    b = Builder(np.random.default_rng(2))
    x, signs = attention(b, codes=True), np.array([1, -1] * (WIDTH // 2), np.float32)
    x = b.op("Mul", x, b.constant(signs, "linear.balance"), name="linear/Mul_balance")
    model = b.model(rotated(b, x, WIDTH), "batch", "text_tokens", WIDTH)
    wanted = run(model, b.feeds)
    facts = run_passes(model, (FoldChannelBalance(), FoldRotation()), Spec.canonical())[1]
    assert [f.modified for f in facts] == [True, False] and not facts[0].refusals
    np.testing.assert_array_equal(run(model, b.feeds), wanted)  # signs are exact
