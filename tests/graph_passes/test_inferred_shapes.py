"""Shapes without a second graph are those of ONNX's inference over the whole one."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import tiny_export
from onnx_ir.passes.common import ShapeInferencePass

from vditc.graph_passes.inferred_shapes import inferred_shapes
from vditc.graph_passes.stage import load
from vditc.model_dir import ModelDir


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
