"""Shapes without a second graph are those of ONNX's inference over the whole one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import pytest
import tiny_export
from onnx_ir.passes.common import ShapeInferencePass

from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.core import run_passes
from vditc.graph_passes.inferred_shapes import inferred_shapes
from vditc.graph_passes.pipelines import pipeline
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.graph_passes.sized_shapes import sized_shapes
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load
from vditc.model_dir import ModelDir
from vditc.plugins.catalogue import plugin_nodes
from vditc.target import Target


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_the_same_as_of_the_whole_graph(tiny: ModelDir, tmp_path: Path, scheme: str) -> None:
    graph = load(tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES[scheme]), tmp_path / "model.onnx"))
    found = inferred_shapes(graph.graph)
    assert all(o.shape is None for n in graph.graph for o in n.outputs if not o.is_graph_output()), "the graph was changed"
    whole = graph.clone()
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(whole)
    wanted = {
        str(v.name): tuple(d if isinstance(d, int) else None for d in v.shape)
        for v in (*whole.graph.inputs, *(o for n in whole.graph for o in n.outputs))
        if v.shape is not None
    }
    assert len(wanted) > 100 and {name: found.get(name) for name in wanted} == wanted


def test_shapes_behind_operators_of_the_plugin_library(tiny: ModelDir, tmp_path: Path) -> None:
    """Those that they had before layers were handed over, at any sizes and at given ones; and types of values that there were not."""
    model = load(tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES["w4a8"]), tmp_path / "model.onnx"))
    target, sizes = Target.load("a100"), {"batch": 1, "frames": 2, "height": 8, "width": 16, "text_tokens": 4}
    passes = pipeline(target, plugins=True, attention=QuantizeAttention(min_keys=1))
    at = next(i for i, one in enumerate(passes) if isinstance(one, ConvertComputeType)) + 1
    spec, _ = run_passes(model, passes[:at], Spec.canonical())
    before, before_sized = inferred_shapes(model.graph), by_name(sized_shapes(model.graph, sizes))
    run_passes(model, passes[at:], spec)
    made = [v.name for n in plugin_nodes(model) for v in n.outputs]
    assert Counter(n.op_type for n in plugin_nodes(model)).keys() == {"QAttention", "QLinear", "QuantizeToken"}
    after, sized = inferred_shapes(model.graph), by_name(sized_shapes(model.graph, sizes))
    assert all(after.get(str(name)) and sized.get(str(name)) for name in made)
    values = [str(v.name) for n in model.graph for v in n.outputs]
    for found, wanted in ((after, before), (sized, before_sized)):
        same = [name for name in values if name in wanted]
        assert len(same) > 60 and {name: found.get(name) for name in same} == {name: wanted[name] for name in same}


def by_name(shapes: Mapping[ir.Value, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {str(value.name): shape for value, shape in shapes.items()}


def test_sizes_that_the_graph_computes_are_followed() -> None:
    """y = Reshape(x, Concat(Shape(x)[0:1], [8, -1])): the 8 is known by the value of a constant alone."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[batch,4,6] x) => (float[batch,8,m] y) <int64[2] rest = {8, -1}>
        {
          n = Shape<start = 0, end = 1>(x)
          shape = Concat<axis = 0>(n, rest)
          r = Reshape(x, shape)
          y = Relu(r)
        }"""
    )
    assert inferred_shapes(model.graph)["r"] == (None, 8, None)
