"""Engines of TensorRT-RTX with the plugin library: graphs are parsed with its plugins, which are counted, and built ahead of time."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_export
from plugin_graphs import model_of

import vditc
from vditc.calibrate.stage import uncalibrated
from vditc.errors import InputError, VditcError
from vditc.export.adapters.registry import adapter_for
from vditc.export.stage import export_model
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.numerics import QType
from vditc.pipeline.components import model_schedule
from vditc.plugins.build import LIBRARY
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.profile import Profile
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.graph_inputs import graph_sizes, input_specs
from vditc.runtimes.graph_precision import expected_precision
from vditc.runtimes.plan_text import read_plan
from vditc.runtimes.tensorrt_rtx import TensorRTRTX
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_process import run_build, shapes
from vditc.target import Target

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (extra: rtx)")
RTX = Target.load("rtx-ada")
TINY = "batch=1,frames=2,height=8,width=8,text_tokens=4"


@pytest.fixture(scope="module")
def lowered(tiny: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, W4A8, handed over to the plugin library."""
    root = tmp_path_factory.mktemp("plugins")
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES["w4a8"]), root / "model.onnx")
    return lower(model=model, target=RTX, out=root / "lowered" / "rtx.onnx", progress=SILENT, plugins=True).files[0]


def build(graph: Path, library: Path | None, out: Path, sizes: str = TINY, target: Target = RTX) -> EngineFacts:
    profile = Profile.parse(sizes, Profile({}), graph_sizes(graph))
    inputs, work = input_specs(graph), out.with_name("work")
    return TensorRTRTX().build(
        lowered=graph, target=target, profile=profile, inputs=inputs, out=out, work=work, progress=SILENT, plugins=library
    )


def into_plugins(plan: Path) -> Counter[tuple[str, str, str]]:
    """(operator, type of the first input, of the first output) of every plugin of a plan."""
    main = read_plan(plan).sections[0]
    custom = [op for op in main.ops if op.kind == "custom_layer"]
    types = {name: tensor.type for name, tensor in main.tensors.items()}
    return Counter((op.nodes[0].rpartition("/")[2], types[op.inputs[0]], types[op.outputs[0]]) for op in custom)


def test_an_engine_computes_with_the_plugins(lowered: Path, plugin_folder: Path, tmp_path: Path) -> None:
    facts = build(lowered, plugin_folder / "x86_64" / LIBRARY, tmp_path / "out")
    wanted = Counter(node.op_type for node in onnx.load(lowered, load_external_data=False).graph.node if node.domain)
    assert wanted["QLinear"] == 20 and wanted["QuantizeToken"] > 0
    assert facts.plugin_operators == {f"vditc.{op}": count for op, count in sorted(wanted.items())}
    assert facts.plugins == sum(wanted.values())
    assert facts.layers["blocks.0.attn1.to_v"] == "plugin QLinear w4a8 -> fp16"
    assert "int8" not in "".join(facts.gemms)  # no product of codes is left to TensorRT
    found = into_plugins(tmp_path / "out" / "model.plan")
    assert {(op, read) for op, read, _ in found if op == "QLinear"} == {("QLinear", "int8")}
    assert {(op, made) for op, _, made in found if op == "QuantizeToken"} == {("QuantizeToken", "int8")}
    log = (tmp_path / "work" / "builder.log").read_text()
    assert "vditc.QLinear, layer blocks.0.attn1.to_q/QLinear: 32 rows, at most 32; tactics: chosen when it runs" in log


@pytest.mark.parametrize("target", ["rtx-ada-bf16", "rtx-blackwell"])
def test_engines_of_other_targets(target: str, tiny: ModelDir, plugin_folder: Path, tmp_path: Path) -> None:
    chosen = Target.load(target)
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES["w3a8"]), tmp_path / "model.onnx")
    graph = lower(model=model, target=chosen, out=tmp_path / "l" / "l.onnx", progress=SILENT, plugins=True).files[0]
    facts = build(graph, plugin_folder / "x86_64" / LIBRARY, tmp_path / "out", target=chosen)
    assert facts.compute_capabilities == chosen.arch and facts.plugin_operators["vditc.QLinear"] == 20


def test_without_a_library_nothing_is_built(lowered: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found operator vditc\.QuantizeToken at node .* and no plugin library"):
        build(lowered, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def request(lowered: Path, tmp_path: Path, library: Path | None) -> BuildRequest:
    profile = Profile.parse(TINY, Profile({}), graph_sizes(lowered))
    return BuildRequest(
        module="tensorrt_rtx",
        lowered=str(lowered),
        plan=str(tmp_path / "model.plan"),
        shapes=shapes(input_specs(lowered), profile),
        compute_capabilities=["SM89"],
        plugins=str(library) if library else None,
        plugin_nodes=expected_precision(lowered, plugins=True).plugin_names,
    )


def test_a_function_that_was_inlined_is_an_error(plugin_folder: Path, tmp_path: Path) -> None:
    """What TensorRT does where it has no plugin of that name: it runs the body, and says nothing."""
    graph = tmp_path / "one.onnx"
    onnx.save(ir.to_proto(model_of(QuantizeToken(), [np.zeros((2, 64), np.float16)])), graph)
    asked = BuildRequest(
        module="tensorrt_rtx",
        lowered=str(graph),
        plan=str(tmp_path / "model.plan"),
        shapes={"x": [[2, 64]] * 3},
        compute_capabilities=["SM89"],
        plugin_nodes={"node": ("QuantizeToken", "1", "vditc")},
    )
    with pytest.raises(VditcError, match=r"found 0 of them in the network; not there: node; wanted 1 plugins, one for each"):
        run_build(asked, tmp_path / "work")
    assert not (tmp_path / "model.plan").exists()
    asked = dataclasses.replace(asked, plugins=str(plugin_folder / "x86_64" / LIBRARY))
    run_build(asked, tmp_path / "work")
    with pytest.raises(VditcError, match=r"not there: node \(vditc\.QuantizeToken version 1 instead\); wanted 1 plugins"):
        run_build(dataclasses.replace(asked, plugin_nodes={"node": ("QLinear", "1", "vditc")}), tmp_path / "work")


def test_a_library_that_is_none_or_of_another_version_is_an_error(lowered: Path, plugin_folder: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other.so").write_bytes(b"nothing")
    with pytest.raises(VditcError, match=r"other\.so, tensorrt_rtx .*found a library that does not load"):
        run_build(request(lowered, tmp_path, other), tmp_path / "work")
    asked = request(lowered, tmp_path, plugin_folder / "x86_64" / LIBRARY)
    newer = {node: (op, "2", domain) for node, (op, _, domain) in asked.plugin_nodes.items()}
    with pytest.raises(VditcError, match=r"found no vditc\.QLinear version 2, vditc\.QuantizeToken version 2 in it"):
        run_build(dataclasses.replace(asked, plugin_nodes=newer), tmp_path / "work")


REGISTER = """
import ctypes, sys
import tensorrt_rtx as trt
from vditc.runtimes.trt_plugins import load_plugins
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
registry = trt.get_plugin_registry()
library = ctypes.CDLL(sys.argv[1])
count = library.vditc_register_plugins()
print(count > 0, library.vditc_register_plugins(), sum(c.plugin_namespace == "vditc" for c in registry.all_creators) == count)
load_plugins(trt, sys.argv[1], [("QLinear", "1", "vditc")])
print(sum(c.plugin_namespace == "vditc" for c in registry.all_creators) == count)
"""


def test_a_process_that_registered_the_plugins_itself_keeps_them(plugin_folder: Path) -> None:
    """As with a preloaded library: nothing is registered twice, and loading is no error."""
    command = [sys.executable, "-c", REGISTER, str(plugin_folder / "x86_64" / LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True 0 True", "True"] and "vditc" not in done.stderr


def test_a_weight_of_another_layout_is_refused_by_name(lowered: Path, plugin_folder: Path, tmp_path: Path) -> None:
    """The parser's error says which layer, what was found and what was wanted."""
    model = onnx.load(lowered)
    node = next(n for n in model.graph.node if n.op_type == "QLinear")
    next(a for a in node.attribute if a.name == "layout").i = 2
    onnx.save(model, changed := tmp_path / "changed.onnx")
    asked = dataclasses.replace(request(lowered, tmp_path, plugin_folder / "x86_64" / LIBRARY), lowered=str(changed))
    with pytest.raises(VditcError, match=rf"vditc\.QLinear, layer {node.name}: layout 2; wanted 1"):
        run_build(asked, tmp_path / "work")


@pytest.mark.parametrize(("weight", "activation"), [(QType.INT4, QType.INT8), (QType.INT3, QType.INT6)], ids=["w4a8", "w3a6"])
def test_the_bundled_models_graphs_build(weight: QType, activation: QType, plugin_folder: Path, tmp_path: Path) -> None:
    source, recipe = ModelDir.open(Path(vditc.__path__[0]) / "assets" / "digits"), Recipe.load("w4a8-rtn")
    rules = []
    for rule in recipe.rules:
        if (scheme := rule.scheme) is not None and scheme.activation is not None:
            scheme = dataclasses.replace(
                scheme,
                weight=dataclasses.replace(scheme.weight, qtype=weight),
                activation=dataclasses.replace(scheme.activation, qtype=activation),
            )
        rules.append(dataclasses.replace(rule, scheme=scheme))
    recipe, adapter = dataclasses.replace(recipe, rules=tuple(rules)), adapter_for(source)
    codes = uncalibrated(source=source, adapter=adapter, recipe=recipe)
    schedule = model_schedule(source, None, SILENT)
    model = tmp_path / "model.onnx"
    export_model(source=source, adapter=adapter, calibration=codes, schedule=schedule, out=model, progress=SILENT)
    graph = lower(model=model, target=RTX, out=tmp_path / "l" / "l.onnx", progress=SILENT, plugins=True).files[0]
    facts = build(graph, plugin_folder / "x86_64" / LIBRARY, tmp_path / "out", "batch=1:2:2,frames=8,height=16,width=16,text_tokens=4")
    assert facts.plugin_operators["vditc.QLinear"] == 60
    assert {said.split()[2] for said in facts.layers.values() if said.startswith("plugin")} == {"w3a6" if weight is QType.INT3 else "w4a8"}
    assert {read for op, read, _ in into_plugins(tmp_path / "out" / "model.plan") if op == "QLinear"} == {"int8"}
