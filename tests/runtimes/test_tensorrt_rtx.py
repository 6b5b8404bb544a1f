"""Real ahead-of-time builds of small graphs, without a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

import onnx
import pytest
from lowered_graphs import LAYERS, WIDTH, save_blocks, save_product
from onnx import helper
from plans import same_engine

from vditc.adapter import InputSpec
from vditc.errors import PrecisionError, VditcError
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.tensorrt_rtx import TensorRTRTX
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_process import run_build, shapes
from vditc.target import Target

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (extra: rtx)")
INPUTS = (
    InputSpec("hidden_states", "float16", ("batch", "tokens", WIDTH)),
    InputSpec("encoder_hidden_states", "float16", ("batch", "text_tokens", WIDTH)),
)
PROFILE = Profile({"batch": Range(1, 2, 2), "tokens": Range(16, 64, 256), "text_tokens": Range(8, 8, 8)})
ONE_PRODUCT = Profile({**PROFILE.axes, "text_tokens": PROFILE.axes["tokens"]})


def build(lowered: Path, tmp_path: Path, profile: Profile = PROFILE, target: str = "rtx-ada") -> EngineFacts:
    return TensorRTRTX().build(
        lowered=lowered,
        target=Target.load(target),
        profile=profile,
        inputs=INPUTS,
        out=tmp_path / "out",
        work=tmp_path / "work",
        progress=SILENT,
    )


@needs_rtx
def test_w8a8_block(tmp_path: Path) -> None:
    facts = build(save_blocks(tmp_path / "l.onnx", "w8a8"), tmp_path)
    plan = tmp_path / "out" / "model.plan"
    assert facts.status == "built"
    assert facts.compute_capabilities == ("sm_80", "sm_86", "sm_89", "sm_120")
    assert facts.plan_bytes == plan.stat().st_size
    # q, k, v of the self-attention are one product, and so are k, v of the cross-attention
    assert facts.gemms == {"int8 x int8 -> float": len(LAYERS) - 3}
    b = "blocks.0.attn"
    assert facts.merged == ((f"{b}1.to_k", f"{b}1.to_q", f"{b}1.to_v"), (f"{b}2.to_k", f"{b}2.to_v"))
    assert facts.layers == dict.fromkeys(sorted(LAYERS), "int8 x int8 -> float")
    assert (facts.attentions, facts.plugins) == (2, 0)
    assert facts.constant_bytes["int8"] == 12 * WIDTH * WIDTH
    assert None not in (facts.activation_bytes, facts.weight_bytes, facts.scratch_bytes)
    assert 50e6 < (facts.peak_rss_bytes or 0) < 2e9
    assert EngineFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["engine.json", "layers.json", "model.plan"]
    assert "Engine generation completed" in (tmp_path / "work" / "builder.log").read_text()


@needs_rtx
def test_w4a16_block_keeps_int4_weights(tmp_path: Path) -> None:
    facts = build(save_blocks(tmp_path / "l.onnx", "w4a16"), tmp_path)
    assert facts.gemms == {"half x half from int4 -> half": len(LAYERS)}
    assert facts.constant_bytes["int4"] == 12 * WIDTH * WIDTH // 2


@needs_rtx
def test_two_builds_give_the_same_engine(tmp_path: Path) -> None:
    lowered = save_product(tmp_path / "l.onnx", "w8a8")
    plans = []
    for _ in range(2):
        build(lowered, tmp_path, ONE_PRODUCT)
        plans.append((tmp_path / "out" / "model.plan").read_bytes())
    assert same_engine(*plans)


@needs_rtx
@pytest.mark.parametrize(
    ("scheme", "fault"),
    [
        ("w8a8-half", "l: computes int8 x int8 -> half: sums beyond 65504 overflow"),
        ("w4a16-channel", "l: the int4 weight is dequantized by a kernel of its own on every run"),
    ],
)
def test_a_lost_precision_leaves_no_engine(scheme: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match=fault):
        build(save_product(tmp_path / "l.onnx", scheme), tmp_path, ONE_PRODUCT)
    assert list((tmp_path / "out").iterdir()) == []


@needs_rtx
def test_float32_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match=r"attention blocks.0.attn1/Softmax in 0 fused kernels"):
        build(save_blocks(tmp_path / "l.onnx", "fp16", wide_attention=True), tmp_path)


@needs_rtx
def test_a_node_that_the_parser_lacks_is_named(tmp_path: Path) -> None:
    model = onnx.load(save_product(tmp_path / "l.onnx", "w8a8"))
    quantize = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    model.graph.initializer.append(helper.make_tensor("five", onnx.TensorProto.INT8, (), [5]))
    quantize.input.append("five")
    onnx.save(model, tmp_path / "l.onnx")
    with pytest.raises(VditcError, match=r"node l/QuantizeLinear \(QuantizeLinear\): .*zero point.*log: .*builder\.log"):
        build(tmp_path / "l.onnx", tmp_path, ONE_PRODUCT)


@needs_rtx
def test_an_architecture_that_needs_a_device(tmp_path: Path) -> None:
    target = dataclasses.replace(Target.load("rtx-ada"), arch=("sm_87",))
    with pytest.raises(VditcError, match=r"found compute capabilities SM87; wanted some of .*SM89"):
        TensorRTRTX().build(
            lowered=save_product(tmp_path / "l.onnx", "w8a8"),
            target=target,
            profile=ONE_PRODUCT,
            inputs=INPUTS,
            out=tmp_path / "out",
            work=tmp_path / "work",
            progress=SILENT,
        )


@pytest.mark.parametrize(
    ("module", "ending"),
    [
        ("import os; os.abort()", "died of SIGABRT .*it wrote nothing"),
        ("raise OSError('no such library')", "exited with 1 .*no such library"),
    ],
)
def test_a_builder_that_dies_is_an_error(module: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying_trt.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    plan = str(tmp_path / "p")
    request = BuildRequest(module="dying_trt", lowered="l.onnx", plan=plan, shapes={}, compute_capabilities=[])
    with pytest.raises(VditcError, match=rf"the builder process {ending}.*builder\.log"):
        run_build(request, tmp_path / "work")
    assert "dying_trt" not in sys.modules


def test_shapes_cover_every_input_and_axis() -> None:
    wanted = {
        "hidden_states": [[1, 16, 128], [2, 64, 128], [2, 256, 128]],
        "encoder_hidden_states": [[1, 8, 128], [2, 8, 128], [2, 8, 128]],
    }
    assert shapes(INPUTS, PROFILE) == wanted
    with pytest.raises(VditcError, match="found no range for batch, tokens"):
        shapes(INPUTS[:1], Profile({}))


def test_input_specs_come_from_the_graph(tmp_path: Path) -> None:
    assert input_specs(save_product(tmp_path / "l.onnx", "fp16")) == INPUTS


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VditcError, match=r"tensorrt_rtx is not installed.*pip install vditc\[rtx\]"):
        TensorRTRTX().check(Target.load("rtx-ada"))
