"""Cutting a lowered graph into segments: what crosses, what is computed again, how weights are divided, and that numbers stay."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowered_graphs import save_blocks

from vditc.errors import VditcError
from vditc.graph_passes.cut_segments import Load, Segment, cut_segments, partition
from vditc.profile import Profile, Range
from vditc.runtimes.graph_inputs import input_specs

PROFILE = Profile({"batch": Range(1, 2, 2), "tokens": Range(4, 8, 16), "text": Range(3, 3, 3)})
# Two lists of blocks that alternate, after one another in depth alone: `spatial.1` stands before `temporal.0` in the file.
# `text` is quantized once for all blocks, `count` is computed of a shape, `rope` of that count, and proj_out reads the input again.
GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[batch, tokens, 4] x, float[batch, text, 4] t, int64[1] step) => (float[batch, tokens, 4] velocity)
<float[4, 4] w = {1,2,3,4, 5,6,7,8, 9,1,2,3, 4,5,6,7}, float one = {1}, int64[1] last = {-1}, int64[1] first = {0},
 int64[1] width = {4}, float[4] turn = {1,2,3,4}, int64[1] axis1 = {1}>
{
   text_codes = QuantizeLinear<output_dtype = 3>(t, one)
   shape = Shape<start = 1, end = 2>(x)
   rows = Gather<axis = 0>(shape, first)
   rope = Slice(table, first, rows, first)
   [name = "spatial.1/float"] early = DequantizeLinear(text_codes, one)
   [name = "patch_embedding/MatMul"] a = MatMul(x, w)
   [name = "spatial.0.to_q/MatMul"] b = MatMul(a, w)
   [name = "rotation.4.left/float"] rotation = Neg(turn)
   [name = "spatial.0/turn"] b1 = Mul(b, rotation)
   [name = "spatial.0/Add"] c = Add(b1, rope)
   [name = "spatial.0/float"] text0 = DequantizeLinear(text_codes, one)
   [name = "temporal.0/sum"] sum0 = ReduceMean<keepdims = 1>(text0, axis1)
   [name = "temporal.0/Add"] d = Add(c, sum0)
   [name = "spatial.1/sum"] sum1 = ReduceMean<keepdims = 1>(early, axis1)
   [name = "spatial.1/Add"] e = Add(d, sum1)
   [name = "spatial.1/rope"] f = Add(e, rope)
   [name = "temporal.1/turn"] f1 = Mul(f, rotation)
   [name = "temporal.1.to_q/MatMul"] g0 = MatMul(f1, w)
   [name = "temporal.1/size"] wide = Concat<axis = 0>(last, rows, width)
   [name = "temporal.1/Reshape"] h = Reshape(g0, wide)
   [name = "proj_out/MatMul"] y = MatMul(h, w)
   velocity = Add(y, x)
}
"""


def saved(folder: Path) -> Path:
    path = folder / "l.onnx"
    text = re.sub(r'\[name = "[^"]*"\]', "", GRAPH)
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(128, dtype=np.float32).reshape(32, 4), "table"))
    names = re.findall(r'^ {3}(?:\[name = "([^"]*)"\] )?\w+ = ', GRAPH, re.MULTILINE)
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name or f"{node.op_type}_{node.output[0]}"
    onnx.save(model, path)
    return path


def cut(lowered: Path, count: int | None, budget: int | None = None, profile: Profile = PROFILE) -> tuple[Segment, ...]:
    return cut_segments(lowered, input_specs(lowered), profile, count, memory=lambda load: load.weights, budget=budget)


def run(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(str(path), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {value.name: feeds[value.name] for value in session.get_inputs()}), strict=True))


def same(lowered: Path, segments: tuple[Segment, ...], profile: Profile) -> None:
    """At all three sizes of the profile, one segment after the other."""
    for end in ("min", "opt", "max"):
        sizes = {axis: getattr(r, end) for axis, r in profile.axes.items()}
        feeds = {s.name: s.example(sizes, np.random.default_rng(0)) for s in input_specs(lowered) if s.name != "step"}
        feeds["step"] = np.zeros(1, np.int64)
        want, known = run(lowered, feeds), dict(feeds)
        for segment in segments:
            given = {spec.name: known[spec.name] for spec in segment.inputs}
            ranges = {axis: getattr(r, end) for axis, r in segment.profile.axes.items()}
            assert {name: array.shape for name, array in given.items()} == {s.name: s.shape(ranges) for s in segment.inputs}
            known |= run(segment.graph, given)
        assert all(np.array_equal(known[name], array) for name, array in want.items())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_segments_compute_what_the_graph_computes(count: int, tmp_path: Path) -> None:
    segments = cut(lowered := saved(tmp_path), count)
    assert len(segments) == count and [b for s in segments for b in s.blocks] == ["spatial.0", "temporal.0", "spatial.1", "temporal.1"]
    same(lowered, segments, PROFILE)


def test_what_crosses_and_what_is_computed_again(tmp_path: Path) -> None:
    one, two, three, four = cut(saved(tmp_path), 4)
    assert [spec.name for spec in one.inputs] == ["x"] and one.outputs == ("rope", "c")  # the text is of the blocks that read it
    assert [spec.name for spec in two.inputs] == ["t", "c"] and two.outputs == ("d",)  # codes are made again, and dequantized again
    assert [spec.name for spec in three.inputs] == ["t", "rope", "d"]
    assert [spec.name for spec in four.inputs] == ["x", "f"] and four.outputs == ("velocity",)  # sizes and constants are computed again
    crossing = next(spec for spec in three.inputs if spec.name == "rope")
    assert crossing.dims == ("tokens", 4) and three.profile.axes["tokens"] == PROFILE.axes["tokens"]
    assert next(spec for spec in two.inputs if spec.name == "t").dims == ("batch", "text", 4)


def test_a_size_that_no_axis_has_gets_a_name(tmp_path: Path) -> None:
    """Tokens of a frame times frames; where the profile leaves nothing free a size is a number."""
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[batch, frames, rows, 4] x) => (float[batch, n, 4] velocity)
    <int64[3] flat = {0, -1, 4}, float[4, 4] w = {1,2,3,4, 5,6,7,8, 9,1,2,3, 4,5,6,7}>
    { a = Reshape(x, flat)  b = MatMul(a, w)  c = MatMul(b, w)  velocity = Identity(c) }
    """
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, ("blocks.0/Reshape", "blocks.0/MatMul", "blocks.1/MatMul", "out"), strict=True):
        node.name = name
    onnx.save(model, path := tmp_path / "l.onnx")
    profile = Profile({"batch": Range(1, 1, 1), "frames": Range(1, 2, 3), "rows": Range(2, 4, 8)})
    _, second = segments = cut(path, 2, profile=profile)
    assert second.inputs[0].dims == (1, "size0", 4) and second.profile.axes == {"size0": Range(2, 8, 24)}
    for segment in segments[1:]:
        assert segment.profile.to_json() == {"size0": [2, 8, 24]}


def test_as_few_segments_as_the_memory_takes(tmp_path: Path) -> None:
    lowered = save_blocks(tmp_path / "l.onnx", "w8a8", 4)
    profile = Profile({"batch": Range(1, 2, 2), "tokens": Range(16, 64, 64), "text_tokens": Range(16, 64, 64)})
    [whole] = cut(lowered, None, 1 << 40, profile)
    block = sum(t.nbytes for t in map(onnx.numpy_helper.to_array, onnx.load(whole.graph).graph.initializer)) // 4
    assert [len(s.blocks) for s in cut(lowered, None, int(2.5 * block), profile)] == [2, 2]
    assert sorted(p.name for p in tmp_path.glob("*.onnx")) == ["l.onnx", "l.segment_00.onnx", "l.segment_01.onnx"]  # older ones are gone
    assert [len(s.blocks) for s in cut(lowered, None, int(1.5 * block), profile)] == [1, 1, 1, 1]
    assert len(cut(lowered, None, 1, profile)) == 4  # blocks stay whole, whatever there is
    with pytest.raises(VditcError, match="found segments=5; wanted at most 4, as the model has blocks"):
        cut(lowered, 5, profile=profile)


def test_weights_stay_where_they_are(tmp_path: Path) -> None:
    lowered = save_blocks(tmp_path / "l.onnx", "w8a8", 2)
    model = onnx.load(lowered)
    for tensor in model.graph.initializer:  # only raw data go to a file
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, lowered, save_as_external_data=True, location="l.data", size_threshold=256)
    before = (tmp_path / "l.data").read_bytes()
    segments = cut(lowered, 2, profile=Profile({"batch": Range(1, 1, 1), "tokens": Range(16, 16, 16), "text_tokens": Range(16, 16, 16)}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.data", "l.onnx", "l.segment_00.onnx", "l.segment_01.onnx"]
    held = [[t for t in onnx.load(s.graph, load_external_data=False).graph.initializer if t.external_data] for s in segments]
    assert all({e.value for t in one for e in t.external_data if e.key == "location"} == {"l.data"} for one in held)
    names = [{t.name.split(".")[1] for t in one if t.name.startswith("blocks")} for one in held]
    assert names == [{"0"}, {"1"}] and (tmp_path / "l.data").read_bytes() == before


def test_a_size_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[batch, 4] x) => (float[n, 4] velocity)
    { i = NonZero(x)  t = Transpose(i)  a = Cast<to = 1>(t)  velocity = Neg(a) }
    """
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, ("blocks.0/NonZero", "blocks.0/Transpose", "blocks.0/Cast", "blocks.1/Neg"), strict=True):
        node.name = name
    onnx.save(model, path := tmp_path / "l.onnx")
    with pytest.raises(VditcError, match="found a tensor of unknown size between two blocks: a; wanted blocks that hand on"):
        cut(path, 2)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(1, 9))
def test_no_division_has_a_lighter_heaviest_run(weights: list[int], count: int) -> None:
    loads = [Load(0, weight) for weight in weights]
    if count > len(loads):
        return
    found = partition(loads, count)
    assert len(found) == count and sum(found) == len(loads) and min(found) > 0

    def heaviest(ends: tuple[int, ...]) -> int:
        return max(sum(weights[a:b]) for a, b in itertools.pairwise((0, *ends, len(weights))))

    ends = tuple(itertools.accumulate(found))[:-1]
    assert heaviest(ends) == min(map(heaviest, itertools.combinations(range(1, len(weights)), count - 1)))
