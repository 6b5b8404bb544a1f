"""The time path as tables: equal to the live one at every step, in bytes as announced, and refused where it must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_export
import tolerances
from attention_graph import run
from command import vditc

from vditc.errors import InputError
from vditc.graph_passes import evaluate
from vditc.graph_passes.core import PassFacts, run_passes
from vditc.graph_passes.pipelines import parse_pass
from vditc.graph_passes.precompute_time_path import PrecomputeTimePath
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, lower, save
from vditc.graph_passes.tensor_bytes import tensor_bytes
from vditc.model_dir import ModelDir
from vditc.progress import SILENT
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.target import Target, builtin_targets

TIME = "condition_embedder."  # the time path's layers of Wan, and the text's
# One clip's row instead of all clips': the products of one row sum in another order.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def exported(tiny: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export.export(tiny, tiny_export.calibration(tiny, None), tmp_path_factory.mktemp("time") / "model.onnx")


def precomputed(model: Path, *passes: str) -> tuple[Path, PassFacts]:
    """The graph after the pass alone, or after `passes`, and what the first of them did."""
    graph = load(model)
    _, facts = run_passes(graph, [parse_pass(p) for p in passes or ("precompute-time-path",)], Spec.canonical())
    out = model.with_name("passed") / "model.passed.onnx"
    save(graph, out)
    return out, facts[0]


def distance(found: Path, wanted: Path, step: int, shape: tuple[int, ...]) -> float:
    return tolerances.relative_l2(*(run(p, tiny_export.feeds_at(p, step, step, *shape)) for p in (found, wanted)))


@pytest.mark.parametrize("step", range(tiny_export.STEPS))
@pytest.mark.parametrize("shape", tiny_export.SHAPES)
def test_every_step_is_as_live(exported: Path, step: int, shape: tuple[int, ...]) -> None:
    passed, facts = precomputed(exported)
    assert facts.modified and not facts.refusals
    assert distance(passed, exported, step, shape) <= ROUNDING
    others = [run(passed, tiny_export.feeds_at(passed, step, 0, *shape) | {"step": np.array([i])}) for i in range(tiny_export.STEPS)]
    assert all(tolerances.relative_l2(a, b) > 1e-3 for i, a in enumerate(others) for b in others[:i])  # or the above could not fail


def test_a_wrong_row_is_seen(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ir.tensor

    def off(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], **kw: object) -> object:
        return table(np.roll(array, 1, 0) if str(kw["name"]).endswith(".table") else array, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr("vditc.graph_passes.precompute_time_path.ir.tensor", off)
    assert distance(precomputed(exported)[0], exported, 0, tiny_export.SHAPES[0]) > 1e-3


def test_one_table_serves_all_blocks(exported: Path, tiny: ModelDir) -> None:
    """Each block adds its own constants: one row of 6 C, and one of C for the head, whatever the number of blocks."""
    passed, facts = precomputed(exported)
    graph = ir.load(passed).graph
    tables = {str(n): v.const_value for n, v in graph.initializers.items() if str(n).endswith(".table")}
    width = tiny.config["num_attention_heads"] * tiny.config["attention_head_dim"]
    assert sorted(t.size for t in tables.values() if t is not None) == [tiny_export.STEPS * width, tiny_export.STEPS * 6 * width]
    before = {str(n): v.const_value.nbytes for n, v in load(exported).graph.initializers.items() if v.const_value is not None}
    gone = before.keys() - set(graph.initializers)
    assert {n for n in before if n.startswith(f"{TIME}time")} <= gone
    assert facts.figures["steps"] == tiny_export.STEPS and facts.figures["tables"] == 2
    assert facts.figures["tables_bytes"] == sum(t.nbytes for t in tables.values() if t is not None) == 4 * 7 * width * tiny_export.STEPS
    assert facts.figures["weights_bytes"] == sum(before[n] for n in gone)
    assert [str(v.name) for v in graph.inputs] == ["hidden_states", "encoder_hidden_states", "step"]
    assert json.loads(ir.load(passed).metadata_props["vditc"])["time_path"] == facts.figures


def test_again_changes_nothing(exported: Path) -> None:
    graph = load(exported)
    run_passes(graph, [PrecomputeTimePath()], Spec.canonical())
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    _, (again,) = run_passes(graph, [PrecomputeTimePath()], Spec.canonical())
    assert not again.modified and not again.refusals and not again.figures
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-static", "w4a8", "w4a16", "w3a8"])
def test_quantized_layers_of_the_time_path_vanish_too(tiny: ModelDir, tmp_path: Path, scheme: str) -> None:
    """Their codes, scales and, of static activations, a scale for every step: evaluated as they are."""
    calibrated = tiny_export.calibration(
        tiny, tiny_export.SCHEMES[scheme], layers=f"{TIME}time_proj" if scheme == "w4a16" else TIME
    )  # 64 divides its inputs
    model = tiny_export.export(tiny, calibrated, tmp_path / "model.onnx")
    quantized = [n for n in load(model).graph if n.op_type == "QuantizeLinear" and str(n.name).startswith(f"{TIME}time")]
    assert quantized or scheme == "w4a16"
    passed, facts = precomputed(model)
    assert not [n for n in ir.load(passed).graph if str(n.name).startswith(f"{TIME}time")]
    assert not facts.refusals
    assert max(distance(passed, model, step, tiny_export.SHAPES[0]) for step in range(tiny_export.STEPS)) <= ROUNDING


def test_weights_are_read_where_they_are_needed_alone(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()

    def noted(tensor: ir.TensorProtocol) -> npt.NDArray[np.uint8]:
        if isinstance(tensor, ir.ExternalTensor):
            read.add(str(tensor.name))
        return data(tensor)

    data = tensor_bytes
    monkeypatch.setattr(evaluate, "tensor_bytes", noted)
    run_passes(load(exported), [PrecomputeTimePath()], Spec.canonical())
    assert read and all(name.startswith((f"{TIME}time", "scale_shift_table", "blocks.")) for name in read), read
    assert all("scale_shift_table" in name for name in read if name.startswith("blocks.")), read


def test_a_table_that_float16_cannot_hold_stays_float32(exported: Path) -> None:
    graph = load(exported)
    bias = next(v for n, v in graph.graph.initializers.items() if n == f"{TIME}time_proj.bias")
    assert bias.const_value is not None
    bias.const_value = ir.tensor(np.full(bias.const_value.shape.numpy(), 1e5, np.float32), name=bias.name)
    _, (facts,) = run_passes(graph, [PrecomputeTimePath(store="fp16")], Spec.canonical())
    assert [r.reason for r in facts.refusals] == ["its table exceeds FLOAT16: stored in float32"]
    kinds = {v.const_value.dtype for n, v in graph.graph.initializers.items() if n.endswith(".table") and v.const_value is not None}
    assert kinds == {ir.DataType.FLOAT, ir.DataType.FLOAT16}


def test_kept_where_it_is_asked_for(exported: Path, tmp_path: Path) -> None:
    inputs = {}
    for keep in (False, True):
        facts = lower(model=exported, target=Target.load("rtx-ada"), out=tmp_path / f"{keep}.onnx", progress=SILENT, keep_time_path=keep)
        inputs[keep] = [str(v.name) for v in ir.load(facts.files[0]).graph.inputs]
    assert inputs == {
        False: ["hidden_states", "encoder_hidden_states", "step"],
        True: ["hidden_states", "timestep", "encoder_hidden_states"],
    }
    with pytest.raises(InputError, match="found --passes with --keep-time-path"):
        lower(
            model=exported,
            target=Target.load("cpu"),
            out=tmp_path / "x.onnx",
            progress=SILENT,
            passes=["fold-constants"],
            keep_time_path=True,
        )


def test_the_runtime_refuses_another_schedule(exported: Path) -> None:
    passed, _ = precomputed(exported)
    model = OnnxRuntimeModel(passed, threads=1)
    feeds = tiny_export.feeds(0, *tiny_export.SHAPES[0])
    told = {**feeds, "timestep": np.full(2, 800, np.float32)}
    assert model(told, 1).shape == feeds["hidden_states"].shape
    bare = {name: array for name, array in feeds.items() if name != "timestep"}
    assert np.array_equal(model(bare, 1), model(told, 1))  # whoever has no timestep feeds the step alone
    for given, step, words in (
        (told, 2, "found timestep 800 at step 2; wanted 500, step 2 of 3"),
        (told, 3, "found step 3; wanted 0 to 2"),
    ):
        with pytest.raises(InputError, match=words):
            model(given, step)


def test_explained_on_the_command_line(exported: Path, tmp_path: Path) -> None:
    said = vditc("lower", str(exported), "--target", "cpu", "-o", str(tmp_path / "l.onnx"), "--explain").stdout
    figures = precomputed(exported)[1].figures
    assert f"weights bytes: {figures['weights_bytes']:,}" in said and f"tables bytes: {figures['tables_bytes']:,}" in said
    kept = vditc("lower", str(exported), "--target", "cpu", "-o", str(tmp_path / "k.onnx"), "--explain", "--keep-time-path").stdout
    assert "precompute-time-path" not in kept


def test_a_weight_with_another_reader_stays(exported: Path) -> None:
    """A weight that something else reads as well stays."""
    graph = load(exported)
    weight = next(v for n, v in graph.graph.initializers.items() if n == f"{TIME}time_proj.weight")
    assert weight.const_value is not None
    (cast,) = (use.node for use in weight.uses())
    shape = ir.node("Shape", [cast.outputs[0]], name="reader")
    shape.outputs[0].name = "reader"
    graph.graph.append(shape)
    shape.outputs[0].type, shape.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2])
    graph.graph.outputs.append(shape.outputs[0])
    _, (facts,) = run_passes(graph, [PrecomputeTimePath()], Spec.canonical())
    assert weight.name in graph.graph.initializers
    assert facts.figures["weights_bytes"] < weight.const_value.nbytes


@pytest.mark.parametrize("name", builtin_targets())
def test_every_builtin_target_takes_the_tables(exported: Path, tmp_path: Path, name: str) -> None:
    target = Target.load(name)
    facts = lower(model=exported, target=target, out=tmp_path / "lowered.onnx", progress=SILENT)
    graph = ir.load(facts.files[0]).graph
    assert [str(v.name) for v in graph.inputs] == ["hidden_states", "encoder_hidden_states", "step"]
    kinds = {v.const_value.dtype for n, v in graph.initializers.items() if n.endswith(".table") and v.const_value is not None}
    assert kinds == {ir.DataType.FLOAT16 if target.compute == "fp16" else ir.DataType.FLOAT}
