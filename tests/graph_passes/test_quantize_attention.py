"""INT8 scores in graphs of a model; what the pass does to a graph is in the *.onnxtxt files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import pytest
import tiny_export
import tolerances

from vditc.graph_passes.claims import CheckClaims
from vditc.graph_passes.core import Pass, PassFacts, run_passes
from vditc.graph_passes.pipelines import pipeline
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.graph_passes.sized_shapes import sized_shapes
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, save
from vditc.graph_passes.target_spec import lowered_for
from vditc.graph_passes.tolerances import activation_codes, tolerance
from vditc.model_dir import ModelDir
from vditc.plugins.catalogue import operator_of, plugin_nodes
from vditc.plugins.qattention.op import QAttention
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.target import Target

EVERY = QuantizeAttention(min_keys=1)
BLOCKS = 2  # of the model, with two attentions each
BEFORE = ("fold-constants", "share-quantization", "convert-compute-type")
LIBRARY = ("fold-token-aware", "fuse-quantize-token", "lower-subbyte-linear")
TARGET = Target.load("rtx-blackwell")


def exported(tiny: ModelDir, folder: Path, scheme: str | None) -> Path:
    schemes = {**tiny_export.SCHEMES, **tiny_export.FEW_BITS, **tiny_export.FLOATS}
    return tiny_export.export(tiny, tiny_export.calibration(tiny, schemes[scheme] if scheme else None), folder / "model.onnx")


def passes(*names: str) -> list[Pass]:
    """Those of the target's list with the plugin library."""
    return [p for p in pipeline(TARGET, plugins=True) if p.name in names]


def lowered(path: Path, todo: Sequence[Pass], out: Path) -> tuple[ir.Model, PassFacts]:
    """The graph, which `out` has as well, and what the last pass did."""
    model = load(path)
    _, facts = run_passes(model, todo, Spec.canonical(), observers=[CheckClaims()])
    lowered_for(TARGET).verify(model, where="here")
    save(model, out)
    return model, facts[-1]


def operators(model: ir.Model) -> list[QAttention]:
    """Those of the graph, in order."""
    return [op for node in plugin_nodes(model) if isinstance(op := operator_of(node), QAttention)]


@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "w8a6", "w8a4", "fp8"])
def test_every_attention(tiny: ModelDir, tmp_path: Path, scheme: str) -> None:
    """Within its tolerance, and not without effect."""
    path = exported(tiny, tmp_path, scheme)
    before, _ = lowered(path, passes(*BEFORE), tmp_path / "a" / "before.onnx")
    model, facts = lowered(path, [*passes(*BEFORE), EVERY], tmp_path / "b" / "after.onnx")
    assert facts.figures == {"attentions with INT8 scores": 2 * BLOCKS} and not facts.refusals
    own, cross = operators(model)[:2]
    assert own == QAttention(scale=0.125, v_by_token=True, y_by_token=True)  # q and k are rotated head by head
    assert cross == QAttention(scale=0.125, q_by_token=True, k_by_token=True, v_by_token=True, y_by_token=True)
    assert not [n for n in model.graph if n.op_type == "Softmax"]
    feeds = tiny_export.feeds_at(path, 1, 0, *tiny_export.SHAPES[0])
    found, wanted = (OnnxRuntimeModel(tmp_path / p, threads=1)(feeds, 1) for p in ("b/after.onnx", "a/before.onnx"))
    allowed = tolerance(EVERY.numerics(), "fp16", activation_codes(before.graph))
    assert allowed is not None and 1e-4 < tolerances.relative_l2(found, wanted) <= allowed


def test_with_others_of_the_library(tiny: ModelDir, tmp_path: Path) -> None:
    """In front of them and behind them all attentions, and they take what they took: shapes are known behind their operators."""
    path = exported(tiny, tmp_path, "w4a8")
    alone, _ = lowered(path, passes(*BEFORE, *LIBRARY), tmp_path / "alone.onnx")
    first, _ = lowered(path, [*passes(*BEFORE), EVERY, *passes(*LIBRARY)], tmp_path / "first.onnx")
    last, facts = lowered(path, [*passes(*BEFORE, *LIBRARY), EVERY], tmp_path / "last.onnx")
    assert len(operators(first)) == len(operators(last)) == 2 * BLOCKS and not facts.refusals
    counted = [Counter(n.op_type for n in plugin_nodes(model)) for model in (alone, first)]
    assert counted[1] - counted[0] == {"QAttention": 2 * BLOCKS} and not counted[0] - counted[1]


def test_few_keys_by_default(tiny: ModelDir, tmp_path: Path) -> None:
    """The model's default clip has many keys, its text 8."""
    model, facts = lowered(exported(tiny, tmp_path, None), [*passes(*BEFORE), QuantizeAttention()], tmp_path / "lowered.onnx")
    assert len(operators(model)) == BLOCKS
    assert [r.node for r in facts.refusals] == [f"blocks.{i}.attn2/Softmax" for i in range(BLOCKS)]
    assert all("keys at the default sizes; min_keys is 1024" in r.reason for r in facts.refusals)


TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[batch,frames,8] x, float[other] z) => (float[batch,pieces,frames,4] y, float[other] unknown)
  <int64[1] parts = {2}, int64[1] width = {4}, int64[1] begin = {0}, int64[1] one = {1}, int64 two = {2}, int64 zero = {0},
   float[1,9,8] table>
{
  all = Shape(x)
  at = Gather<axis=0>(all, one)
  half = Div(at, parts)
  flat = Reshape(half, begin_shape)
  number = Squeeze(flat)
  counted = Range(zero, number, two_step)
  rows = Slice(table, begin, at, one)
  batch = Gather<axis=0>(all, begin)
  shape = Concat<axis=0>(batch, parts, at, width)
  y = Reshape(x, shape)
  moved = Expand(rows, all)
  unknown = Abs(z)
}
"""


def test_shapes_at_sizes() -> None:
    """Lengths that are computed, of a Reshape, a Range and a Slice; sizes that a table has not; an axis that nobody said the size of."""
    text = TEXT.replace("begin_shape", "one").replace("two_step", "two")
    graph = ir.from_onnx_text(text.replace("float[1,9,8] table", "float[1,9,8] table = {" + ",".join(["0"] * 72) + "}")).graph
    shapes = {value.name: shape for value, shape in sized_shapes(graph, {"batch": 3, "frames": 6}).items()}
    found = [shapes.get(name) for name in ("x", "y", "counted", "rows", "moved", "unknown")]
    assert found == [(3, 6, 8), (3, 2, 6, 4), (2,), (1, 6, 8), (3, 6, 8), None]
    shapes = {value.name: shape for value, shape in sized_shapes(graph, {"batch": 3, "frames": 20}).items()}
    assert (shapes["rows"], shapes["moved"], shapes["y"]) == ((1, 9, 8), (3, 20, 8), (3, 2, 20, 4))
