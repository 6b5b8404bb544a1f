"""`vditc lower` and `vditc passes`: what they print and write, and bad input."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_ir as ir
import pytest
import tiny_export
from attention_graph import TEXT_FORM, save_attention
from command import Run, vditc

from vditc.graph_passes.core import PASSES, Pass, Result
from vditc.graph_passes.pipelines import pipeline
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.model_dir import ModelDir
from vditc.target import Target, builtin_targets


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_attention(tmp_path / "model" / "model.onnx")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "lowered.onnx"


def lower(model: Path, out: Path, *options: str, target: str = "rtx-ada") -> Run:
    return vditc("lower", str(model), "--target", target, "-o", str(out), *options)


def refused(run: Run, out: Path, model: Path, *words: str) -> None:
    """Exit 2, one line with every word, nothing written, and the input as it was."""
    said = [line for line in run.stderr.splitlines() if line.strip() and "━" not in line]
    assert run.code == 2 and len(said) == 1 and said[0].startswith("vditc: error: "), run
    for word in words:
        assert word in said[0], f"{word!r} not in {said[0]!r}"
    assert not out.parent.exists()
    assert {p.name for p in model.parent.iterdir()} <= {"model.onnx", "model.onnx.data"}


@pytest.fixture
def wrong(registry: None) -> None:
    """A pass `wrong`, which forgets a scale, and `liar`, which hides what it does."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wrong(Pass):
        name: ClassVar[str] = "wrong"

        def call(self, model: ir.Model) -> Result:
            next(n for n in model.graph if n.op_type == "Softmax").attributes["axis"] = ir.AttrInt64("axis", 2)
            return Result(model, modified=True)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Liar(Wrong):
        name: ClassVar[str] = "liar"

        def call(self, model: ir.Model) -> Result:
            super().call(model)
            return Result(model, modified=False)


def test_explain_and_verify_say_what_every_pass_did(model: Path, out: Path) -> None:
    run = lower(model, out, "--explain", "--verify", "--keep-time-path")
    assert run.code == 0, run
    lines = run.stdout.splitlines()
    assert lines[0] == "fold-constants{size_limit=1024}: nothing to do, 45 -> 45 nodes"
    assert lines[5].startswith("convert-compute-type{to=fp16}: changed the graph, 45 -> ") and " nodes, error " in lines[5]
    assert " of 0.0" in lines[5] and "step " in lines[5]
    assert lines[-3].startswith("eliminate-dead-nodes: changed the graph") and "error 0 of 0 (" in lines[-3]
    assert lines[-2:] == [f"verified 3 passes that changed the graph, {len(lines) - 2} in all", f"wrote {out}"]
    assert "error" not in lower(model, out, "--explain", "--force").stdout


def test_explain_prints_refusals(tmp_path: Path, out: Path) -> None:
    graph = TEXT_FORM.replace("x = Mul(norm, scale)", "y = Mul(norm, scale)\n  [low] x = Max(y, lowest)").replace(
        "velocity)\n{", "velocity)\n  <float lowest = {-1e30}>\n{"
    )
    run = lower(save_attention(tmp_path / "model.onnx", graph), out, "--explain")
    assert "  left low: constant lowest does not fit FLOAT16: stays in float32" in run.stdout.splitlines()


def test_print_after(model: Path, out: Path) -> None:
    one = lower(model, out, "--print-after", "convert-compute-type").stdout
    assert one.count("# after ") == 1 and "# after convert-compute-type{to=fp16}\n" in one and "Softmax" in one
    assert lower(model, out, "--print-after", "all", "--force").stdout.count("# after ") == len(pipeline(Target.load("rtx-ada")))


def test_dump(model: Path, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    options = ("--dump", str(folder), "--passes", "fold-constants,convert-compute-type{to=fp16}, eliminate-dead-nodes")
    assert lower(model, out, *options).code == 0
    assert {p.name for p in folder.iterdir() if p.suffix == ".onnx"} == {"02-convert-compute-type.onnx", "03-eliminate-dead-nodes.onnx"}
    onnx.load(folder / "03-eliminate-dead-nodes.onnx", load_external_data=False)
    again = lower(model, tmp_path / "other.onnx", *options)
    assert again.code == 2 and f"--dump: found {folder} exists" in again.stderr
    assert lower(model, out, *options, "--force").code == 0


def test_verify_names_the_wrong_pass_and_writes_only_the_dump(model: Path, out: Path, tmp_path: Path, wrong: None) -> None:
    passes = "fold-constants,convert-compute-type,eliminate-dead-nodes,wrong,legalize-for-target"
    run = lower(model, out, "--passes", passes, "--verify", "--dump", str(tmp_path / "dump"))
    assert run.code == 1 and not out.exists()
    assert f"error: {model}, after pass wrong, the first that leaves its tolerance: found a relative error of" in run.stderr
    assert (tmp_path / "dump" / "04-wrong.onnxtxt").exists()
    assert lower(model, out, "--passes", passes).code == 0  # without --verify nobody looks


def test_verify_finds_a_hidden_change(model: Path, out: Path, wrong: None) -> None:
    run = lower(model, out, "--passes", "fold-constants,liar", "--verify", target="cpu")
    assert run.code == 1 and not out.exists()
    assert (
        "after pass liar: found another graph than before; wanted the same graph, since the pass says that it changed nothing" in run.stderr
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--passes", "fold"], ["--passes: found pass 'fold'; wanted one of convert-compute-type, ", "correct the name"]),
        (["--passes", "fold-constants{limit=1}"], ["--passes fold-constants: found option 'limit'; wanted one of size_limit"]),
        (["--passes", "fold-constants{size_limit=x}"], ["--passes fold-constants: found size_limit=x; wanted size_limit of type int"]),
        (["--passes", "convert-compute-type{to=fp8}"], ["found to=fp8; wanted one of fp32, fp16, bf16"]),
        (["--passes", "fold-constants{size_limit=1"], ["wanted a closing brace"]),
        (["--passes", ","], ["--passes: found ','; wanted passes"]),
        (["--passes", "legalize-for-target"], ["found legalize-for-target without convert-compute-type before it"]),
        (["--print-after", "softmax"], ["--print-after: found softmax; wanted one of all, fold-constants, "]),
        (["--print-after", "share-quantization", "--passes", "fold-constants"], ["wanted one of all, fold-constants; "]),
    ],
)
def test_options_that_cannot_be(model: Path, out: Path, options: list[str], words: list[str]) -> None:
    refused(lower(model, out, *options), out, model, *words)


def test_a_dump_that_cannot_be_written(model: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(lower(model, out, "--dump", str(tmp_path / "file")), out, model, "--dump: found", "file exists")
    refused(lower(model, out, "--dump", str(tmp_path / "file"), "--force"), out, model, "a file; wanted a folder, or nothing there")
    run = lower(model, out, "--dump", str(tmp_path / "file" / "below"))
    refused(run, out, model, "--dump: found", "file, which cannot be written to; wanted a folder")


def change(model: Path, edit: str) -> None:
    """Make a graph that `lower` must not take."""
    proto = onnx.load(model, load_external_data=False)
    about = {"no metadata": None, "no JSON": "{", "a list": "[]"}
    if edit in about:
        del proto.metadata_props[:]
        if (text := about[edit]) is not None:
            onnx.helper.set_model_props(proto, {"vditc": text})
    else:
        node = next(n for n in proto.graph.node if n.op_type == "Softmax")
        node.domain, node.op_type = {"domain": ("com.microsoft", "Softmax"), "operator": ("", "Softest"), "later": ("", "Swish")}[edit]
    model.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("no metadata", ["model.onnx: found a graph from elsewhere, without vditc's metadata; wanted a graph that `vditc export` wrote"]),
        ("no JSON", ["model.onnx: found unreadable metadata; wanted a graph that `vditc export` wrote"]),
        ("a list", ["found unreadable metadata"]),
        ("domain", ["rule standard-domain of the canonical dialect, node softmax: found operator com.microsoft.Softmax"]),
        ("operator", ["node softmax: found operator Softest; wanted operators of opset 21"]),
        ("later", ["node softmax: found operator Swish; wanted operators of opset 21"]),
    ],
)
@pytest.mark.parametrize("verify", [[], ["--verify"]])
def test_graphs_that_are_not_lowered(model: Path, out: Path, edit: str, words: list[str], verify: list[str]) -> None:
    change(model, edit)
    before = {p: p.read_bytes() for p in model.parent.iterdir()}
    refused(lower(model, out, *verify), out, model, *words)
    assert {p: p.read_bytes() for p in model.parent.iterdir()} == before


def test_truncated_data(model: Path, out: Path, tmp_path: Path) -> None:
    data = model.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:-1])
    size = data.stat().st_size
    run = lower(model, out, "--verify", "--dump", str(tmp_path / "dump"))
    refused(run, out, model, f"model.onnx.data: found {size} bytes; wanted at least {size + 1} bytes for tensor")
    assert not (tmp_path / "dump").exists() and data.stat().st_size == size
    data.unlink()
    refused(lower(model, out), out, model, "found no such file; wanted at least")


def test_a_lowered_graph_is_not_lowered_again(model: Path, out: Path, tmp_path: Path) -> None:
    assert lower(model, out).code == 0
    run = lower(out, tmp_path / "again.onnx")
    assert run.code == 2 and "of the canonical dialect" in run.stderr and not (tmp_path / "again.onnx").exists()


def test_passes_are_listed() -> None:
    run = vditc("passes")
    lines = run.stdout.splitlines()
    assert run.code == 0 and [line.split(":")[0].split("{")[0] for line in lines] == sorted(PASSES)
    (line,) = (x for x in lines if x.startswith("convert-compute-type"))
    assert line.startswith("convert-compute-type{to=fp16}: ") and line.endswith(
        "; needs canonical, constants-folded; gives lowered; ends canonical"
    )
    found = {one["name"]: one for one in json.loads(vditc("passes", "--json").stdout)}
    assert found.keys() == PASSES.keys()
    assert found["fold-constants"]["options"] == {"size_limit": {"type": "int", "default": "1024"}}
    assert found["eliminate-dead-nodes"]["targets"] == list(builtin_targets())
    used = {one.name for t in builtin_targets() for one in pipeline(Target.load(t), plugins=True, attention=QuantizeAttention())}
    assert {name for name, one in found.items() if one["targets"]} == used


@pytest.mark.parametrize("name", sorted(PASSES))
def test_one_pass_is_shown_with_its_example(name: str) -> None:
    run = vditc("passes", name)
    assert run.code == 0 and run.stdout.startswith(f"{name}: ")
    assert "->" in run.stdout and "\nnumbers: " in run.stdout and "\ntargets: " in run.stdout


def test_an_unknown_pass_is_not_shown() -> None:
    run = vditc("passes", "fold")
    assert run.code == 2 and "vditc passes: found pass 'fold'; wanted one of convert-compute-type" in run.stderr


def test_layers_of_few_bits_go_to_the_plugin_library(tmp_path: Path, tiny: ModelDir, out: Path, plugin_folder: Path) -> None:
    (tmp_path / "model").mkdir()
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES["w4a8"]), tmp_path / "model" / "model.onnx")
    run = lower(model, out, "--plugins", "--explain")
    assert run.code == 0 and "  layers handed over: 20" in run.stdout.splitlines()
    facts = json.loads(vditc("inspect", str(out), "--json").stdout)
    assert sum(count for name, count in facts["plugins"].items() if "QLinear" in name) == 20
    assert facts["plugins"]["vditc:QuantizeToken:a8_gelu_tanh_token"] == 2
    profile = ("--profile", "batch=1,frames=2,height=8,width=8,text_tokens=4")
    build = vditc("build", str(out), "--target", "rtx-ada", "-o", str(tmp_path / "engine"), *profile)
    assert build.code == 2 and "x86_64/libvditc_plugins.so: found no library; wanted libvditc_plugins.so; build it" in build.stderr
    assert not (tmp_path / "engine").exists()
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        given = ("--plugins", str(plugin_folder), "--json")
        build = vditc("build", str(out), "--target", "rtx-ada", "-o", str(tmp_path / "engine"), *profile, *given)
        built = json.loads(build.stdout)
        assert built["plugin_operators"]["vditc.QLinear"] == 20 and built["plugin_library"]["path"].endswith("/x86_64/libvditc_plugins.so")
    other = tmp_path / "other" / "l.onnx"
    refused(lower(model, other, "--plugins", "--passes", "fold-constants"), other, model, "found --passes with --plugins")
