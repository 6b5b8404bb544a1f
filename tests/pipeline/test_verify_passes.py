"""`lower --verify`: right passes pass, and of wrong ones the first is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_export
from attention_graph import ABOUT, save_attention

from vditc.axis import Axis
from vditc.errors import PrecisionError, VditcError
from vditc.export.adapters.wan import Wan
from vditc.graph_passes.core import PASSES, Pass, Result, run_passes
from vditc.graph_passes.pipelines import pipeline
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, lower
from vditc.graph_passes.tolerances import KINDS, TOLERANCES, activation_codes, tolerance
from vditc.model_dir import ModelDir
from vditc.pipeline.verify_inputs import cases, two_sizes
from vditc.pipeline.verify_passes import VerifyPasses, distance
from vditc.progress import SILENT
from vditc.target import Target


def verified(model: Path, out: Path, target: str = "rtx-ada", passes: list[str] | None = None, *, live: bool = False) -> VerifyPasses:
    """`live`: the time path stays."""
    verifier, chosen = VerifyPasses(model), Target.load(target)
    lower(model=model, target=chosen, out=out, progress=SILENT, passes=passes, keep_time_path=live, observers=[verifier])
    return verifier


@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "w8a8-static", "w8a6", "w4a16", "fp8-static", "nvfp4"])
def test_the_pipeline_of_an_exported_model_is_right(tmp_path: Path, tiny: ModelDir, scheme: str) -> None:
    known = {**tiny_export.SCHEMES, **tiny_export.FLOATS}[scheme]
    scales = {"fp8-static": 0.005, "nvfp4": 0.001}
    layers = Wan().layer_roles(tiny)
    calibrated = tiny_export.calibration(tiny, known, scales=dict.fromkeys(layers, scales.get(scheme, 0.04)))
    model = tiny_export.export(tiny, calibrated, tmp_path / "model.onnx")
    verifier = VerifyPasses(model)
    run_passes(load(model), pipeline(Target.load("rtx-ada")), Spec.canonical(), observers=[verifier])  # whatever the target takes
    verdicts = [v for v in verifier.verdicts if v is not None]
    assert len(verdicts) >= 2 and max(v.error for v in verdicts) > 1e-5  # float16 is seen
    assert verdicts[-1].error == verdicts[-1].allowed == 0  # dead nodes


def test_passes_that_change_nothing_are_not_run(tmp_path: Path) -> None:
    model = save_attention(tmp_path / "model.onnx")
    verifier = verified(model, tmp_path / "out" / "x.onnx", "cpu", live=True)
    passes = pipeline(Target.load("cpu"), keep_time_path=True)
    assert verifier.verdicts == [None] * len(passes) and verifier._outputs is None


def declare(title: str, change: str) -> None:
    """A pass that says that it only reorders float32 operations, and does `change`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Changes(Pass):
        name: ClassVar[str] = title

        def call(self, model: ir.Model) -> Result:
            graph = model.graph
            nodes = {str(n.outputs[0].name): n for n in graph}

            def constant(name: str, array: npt.NDArray[Any]) -> ir.Value:
                value = ir.val(name, const_value=ir.tensor(array, name=name))
                graph.initializers.add(value)
                return value

            def timestep_from(kind: str, *inputs: ir.Value) -> None:
                made = ir.node(kind, inputs, name=kind)
                made.outputs[0].name = "time"
                graph.insert_before(nodes["freq"], made)
                nodes["freq"].replace_input_with(0, made.outputs[0])

            match change:
                case "nothing":
                    node = ir.node("Identity", [nodes["x"].outputs[0]], name="again")
                    node.outputs[0].name = "again"
                    graph.append(node)
                case "softmax over queries":
                    nodes["weights"].attributes["axis"] = ir.AttrInt64("axis", 2)
                case "a range that random numbers keep":
                    limits = [constant(f"limit{t}", np.array(t, np.float32)) for t in (-20, 20)]
                    made = ir.node("Clip", [graph.inputs[0], *limits], name="clip")
                    made.outputs[0].name = "clipped"
                    graph.insert_before(nodes["norm"], made)
                    nodes["norm"].replace_input_with(0, made.outputs[0])
                case "time of the last step" | "time of the first step":
                    low, high = (10, 2000) if "last" in change else (0, 900)
                    timestep_from("Clip", graph.inputs[1], *(constant(f"t{t}", np.array(t, np.float32)) for t in (low, high)))
                case "one batch size":
                    nodes["flat"].replace_input_with(1, constant("fixed", np.array([2, -1, 64])))
                case "transposed":
                    graph.outputs[0] = ir.val("swapped", ir.DataType.FLOAT, ["text_tokens", "batch", 64])
                    node = ir.node("Transpose", [nodes["velocity"].outputs[0]], {"perm": [1, 0, 2]}, outputs=[graph.outputs[0]])
                    graph.append(node)
                case "table of times" | "wrong table of times":
                    times = [999.0, 500.5, 3.25] if change == "table of times" else [999.0, 3.25, 500.5]
                    step = ir.val("step", ir.DataType.INT64, [1])
                    graph.inputs.append(step)
                    timestep_from("Gather", constant("times", np.array(times, np.float32)), step)
            return Result(model, modified=True)


def verify(tmp_path: Path, *passes: str) -> VerifyPasses:
    return verified(save_attention(tmp_path / "model.onnx"), tmp_path / "out" / "x.onnx", "cpu", list(passes))


@pytest.mark.parametrize(
    ("change", "kind", "step"),
    [
        ("softmax over queries", "", ""),
        ("a range that random numbers keep", "outliers", ""),
        ("time of the first step", "", "0"),
        ("time of the last step", "", "2"),
        ("wrong table of times", "", "2"),
    ],
)
def test_the_first_wrong_pass_is_named(tmp_path: Path, registry: None, change: str, kind: str, step: str) -> None:
    declare("right", "nothing")
    declare("wrong", change)
    declare("wrong-too", "softmax over queries")
    message = rf"after pass wrong, the first that leaves its tolerance: found a relative error of \S+ with ({kind or '.*'}) inputs at .*"
    with pytest.raises(PrecisionError, match=rf"{message}, step {step or '.'}; wanted at most 0.0(1|3); look at the graphs") as caught:
        verify(tmp_path, "fold-constants", "right", "wrong", "wrong-too", "eliminate-dead-nodes")
    assert "model.onnx" in caught.value.where
    assert not (tmp_path / "out").exists()


def test_a_table_instead_of_the_time_is_fed_the_step_of_that_time(tmp_path: Path, registry: None) -> None:
    declare("tabulate", "table of times")
    (verdict,) = verify(tmp_path, "tabulate").verdicts
    assert verdict is not None and verdict.error == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("one batch size", "--verify, after pass wrong: found .*; wanted a graph that ONNX Runtime can run"),
        ("transposed", r"after pass wrong: found outputs of shapes \[\[3, 2, 64\]\]; wanted \[\[2, 3, 64\]\], as before the pass"),
    ],
)
def test_a_pass_that_breaks_sizes_is_named(tmp_path: Path, registry: None, change: str, message: str) -> None:
    declare("wrong", change)
    with pytest.raises(VditcError, match=message):
        verify(tmp_path, "fold-constants", "wrong")


def test_a_type_that_cannot_be_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        VditcError, match=r"--verify, after pass convert-compute-type\{to=bf16\}: found .*; wanted a graph that ONNX Runtime"
    ):
        verify(tmp_path, "convert-compute-type{to=bf16}")


def test_inputs(tmp_path: Path) -> None:
    found = cases(save_attention(tmp_path / "model.onnx"))
    assert {c.kind for c in found} == {"random", "constant rows", "zeros", "outliers"}
    assert {c.step for c in found} == {0, 2}
    sizes = [{"batch": 2, "text_tokens": 3}, {"batch": 3, "text_tokens": 2}]
    for case in found:
        x = case.feeds["hidden_states"]
        assert case.sizes in sizes and x.shape == (*case.sizes.values(), 64) and x.dtype == np.float32
        assert (case.feeds["timestep"] == ABOUT["timesteps"][case.step]).all() and case.feeds["step"].tolist() == [case.step]  # type: ignore[index]
        assert case.adversarial == (case.kind != "random")
    by_kind = {c.kind: c.feeds["hidden_states"] for c in found}
    assert not by_kind["zeros"].any()
    assert (by_kind["constant rows"] == by_kind["constant rows"][..., :1]).all() and by_kind["constant rows"].std() > 0
    assert np.abs(by_kind["outliers"]).max() > 50 * np.median(np.abs(by_kind["outliers"]))
    assert {(c.kind, c.sizes["batch"]) for c in found} == {(k, b) for k in by_kind for b in (2, 3)}


def test_sizes_are_those_that_the_axes_allow() -> None:
    axes = {
        "batch": Axis(default=1, high=1),
        "frames": Axis(default=4, low=3, high=4),
        "height": Axis(default=8, multiple=4),
        "text_tokens": Axis(default=512, low=256),
    }
    first, second = two_sizes(axes)
    assert all(axes[n].allows(s) for sizes in (first, second) for n, s in sizes.items())
    assert first["batch"] == second["batch"] == 1
    assert all(first[n] != second[n] for n in ("frames", "height", "text_tokens"))


def test_distance() -> None:
    one, nan = [np.ones((2, 2), np.float32)], [np.full((2, 2), np.nan, np.float32)]
    assert distance(one, one, "") == 0 and distance(nan, nan, "") == 0
    assert distance(nan, one, "") == distance(one, nan, "") == np.inf
    zero = [np.zeros((2, 2), np.float32)]
    assert distance(zero, zero, "") == 0 and distance([z + 1e-9 for z in zero], zero, "") == pytest.approx(1e-3)
    assert distance([*one, *zero], [*one, *one], "") == 1  # the worst output


def test_tolerances() -> None:
    assert all(kind in KINDS for kind, _ in TOLERANCES)
    assert all(made(**{}).numerics() in KINDS for made in PASSES.values())
    assert tolerance("rounding", "fp16", "int8") == TOLERANCES["fp16", "int8"] > TOLERANCES["rounding", "int8"]
    assert tolerance("exact", "fp16", "int8") == 0
    assert tolerance("bf16", "bf16", None) is None


@pytest.mark.parametrize("scheme", [*tiny_export.SCHEMES, *tiny_export.FLOATS, *tiny_export.FEW_BITS])
def test_codes_are_read_from_the_graph(tmp_path: Path, tiny: ModelDir, scheme: str) -> None:
    known = {**tiny_export.SCHEMES, **tiny_export.FLOATS, **tiny_export.FEW_BITS}[scheme]
    model = ir.load(tiny_export.export(tiny, tiny_export.calibration(tiny, known), tmp_path / "model.onnx"))
    wanted = known.activation.qtype.value if known is not None and known.activation is not None else None
    assert activation_codes(model.graph) == wanted
