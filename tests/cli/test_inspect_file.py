"""`vditc inspect` of a graph and of an engine."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vditc.build_options import BuildOptions
from vditc.cli.app import main
from vditc.cli.inspect_file import graph_facts, plan_facts
from vditc.errors import VditcError
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.engine_program import EngineProgram, Gemm, Kernel

PROGRAM = EngineProgram(
    source="x",
    gemms=(Gemm(("a/MatMul",), "int8", "int8", "float", "int4", False),),
    attentions=(),
    plugins=(Kernel("p", ("b/QLinear",), ("half[2 8]",)),),
    kernels=(Kernel("k", ("n/LayerNormalization", "a/QuantizeLinear"), ("int8[2 8]",)),),
    constant_bytes={"int4": 2_000_000},
)


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["vditc", "inspect", *words])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as done:
        main()
    said = capsys.readouterr()
    assert not done.value.code, said.err
    return said.out


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "model.plan").write_bytes(b"p" * 123_456)
    options = BuildOptions(level=4, strip_weights=True)
    BuiltWith(module="tensorrt", version="10.16.1", arch=("sm_90",), options=options, weights="../l.onnx").write(tmp_path)
    return tmp_path / "model.plan"


def test_a_plan_of_tensorrt_by_what_lies_beside_it(plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vditc.runtimes.plan_text.read_plan", lambda path: pytest.fail("no text is looked for in a plan of TensorRT"))
    known = {key: value for key, value in dataclasses.asdict(PROGRAM).items() if key != "source"}
    (plan.parent / "layers.json").write_text(json.dumps({"read_from": "engine inspector", "program": known}))
    facts = plan_facts(plan)
    assert facts["read_from"] == "layers.json (engine inspector)" and facts["bytes"] == 123_456
    assert facts["summary"]["products"] == {"int8 x int8 from int4 by a kernel of its own -> float": 1}
    assert facts["built_with"]["options"] == {"level": 4, "strip-weights": True}
    said = shown(capsys, monkeypatch, str(plan))
    for words in ("0.12 MB", "tensorrt 10.16.1", "sm_90", "level 4, strip-weights True", "stripped; those of ../l.onnx", "1 × QLinear"):
        assert words in said
    assert "1 × LayerNormalization + QuantizeLinear" in said and "2.00 MB of int4" in said
    assert json.loads(shown(capsys, monkeypatch, str(plan), "--json")) == json.loads(json.dumps(facts))


def test_a_segment(plan: Path) -> None:
    segment = plan.rename(plan.with_name("segment_01.plan"))
    known = {key: value for key, value in dataclasses.asdict(PROGRAM).items() if key != "source"}
    parts = {
        name: {"read_from": "plan text", "program": {**known, "plugins": known["plugins"] * n}}
        for n, name in ((1, "segment_00"), (2, "segment_01"))
    }
    (plan.parent / "layers.json").write_text(json.dumps({"segments": parts}))
    assert plan_facts(segment)["summary"]["plugins"] == {"QLinear": 2}


def test_a_plan_that_a_device_built(plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VditcError, match=r"found a plan of tensorrt 10\.16\.1 for sm_90, and neither layers\.json nor built\.json"):
        plan_facts(plan)
    engine = {"gemms": {"int8 x int8 -> float": 60}, "attentions": 12, "plugin_operators": {"vditc.QLinear": 3}}
    (plan.parent / "built.json").write_text(json.dumps({"engine": engine, "device": {"board": "Orin", "driver": "unknown: no"}}))
    said = shown(capsys, monkeypatch, str(plan))
    for words in ("60 × int8 x int8 -> float", "12", "3 × vditc.QLinear", "Orin", "built.json"):
        assert words in said
    assert "unknown" not in said


def test_a_plan_of_which_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"p")
    with pytest.raises(VditcError, match="found no program text"):
        plan_facts(tmp_path / "model.plan")


def test_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="a/MatMul")],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64]),
            helper.make_tensor_value_info("step", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [weight],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="vditc", producer_version="9"
    )
    helper.set_model_props(model, {"vditc": json.dumps({"recipe": "w8a8", "layers": {"W[int8] A[float]": ["a"]}, "timesteps": [3, 2, 1]})})
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    facts = graph_facts(path)
    assert (facts["data"], facts["data_bytes"], facts["steps"], facts["layers"]) == ("m.data", 64 * 64 * 4, 3, {"W[int8] A[float]": 1})
    said = shown(capsys, monkeypatch, str(path))
    for words in (
        "16384 bytes in m.data",
        "vditc 9",
        "w8a8",
        "ai.onnx 21; IR 10",
        "x float[batch, 64]",
        "a table of 3",
        "1 × float x float",
    ):
        assert words in said
    assert "1 × W[int8] A[float]" in said
