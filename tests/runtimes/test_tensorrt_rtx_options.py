"""Build options with TensorRT-RTX, for real: what changes an engine, and that what is refused would have done nothing or fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from lowered_graphs import save_product
from plans import same_engine

from vditc.build_options import BuildOptions
from vditc.errors import InputError, VditcError
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes import tensorrt_rtx
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.tensorrt_rtx import TensorRTRTX
from vditc.runtimes.trt_builder import BuildRequest
from vditc.runtimes.trt_process import run_build, shapes
from vditc.target import Target

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (extra: rtx)")
RTX = Target.load("rtx-ada")
PROFILE = Profile({"batch": Range(1, 2, 2), "tokens": Range(16, 64, 256), "text_tokens": Range(16, 64, 256)})


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_product(tmp_path_factory.mktemp("graph") / "l.onnx", "w8a8")


def build(lowered: Path, out: Path, options: str = "") -> EngineFacts:
    return TensorRTRTX().build(
        lowered=lowered,
        target=RTX,
        profile=PROFILE,
        inputs=input_specs(lowered),
        out=out,
        work=out.with_name(f"{out.name}.work"),
        progress=SILENT,
        options=BuildOptions.parse(options),
    )


def unchecked(lowered: Path, folder: Path, options: str) -> bytes:
    """An engine with options that the backend would refuse."""
    plan = folder / "model.plan"
    request = BuildRequest(
        module="tensorrt_rtx",
        lowered=str(lowered),
        plan=str(plan),
        shapes=shapes(input_specs(lowered), PROFILE),
        compute_capabilities=["SM89"],
        options=BuildOptions.parse(options),
    )
    run_build(request, folder / "work")
    return plan.read_bytes()


def test_what_is_refused_changes_nothing(lowered: Path, tmp_path: Path) -> None:
    """The quirk kernels-chosen-when-loaded; an engine with streamed weights differs, so the comparison can fail."""
    plain = unchecked(lowered, tmp_path, "")
    assert same_engine(unchecked(lowered, tmp_path, "level=0,tactic-memory=1GiB,tiling=full,hardware-compatibility=ampere_plus"), plain)
    assert not same_engine(unchecked(lowered, tmp_path, "weight-streaming"), plain)
    with pytest.raises(VditcError, match=r"libnvinfer_lean"):
        unchecked(lowered, tmp_path, "version-compatible")
    for option in (
        "level=5",
        "tactic-memory=1GiB",
        "tiling=fast",
        "timing-cache=on",
        "hardware-compatibility=ampere_plus",
        "version-compatible",
    ):
        with pytest.raises(InputError, match=rf"found engine option {option.partition('=')[0]}; .*kernels are chosen on the GPU"):
            build(lowered, tmp_path / "out", option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["refit", "strip-weights"])
def test_what_takes_a_gpu_is_refused_without_one(option: str, lowered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "compute_capability", lambda: None)
    with pytest.raises(InputError, match=rf"found engine option {option} on a machine without a GPU"):
        build(lowered, tmp_path / "out", option)
    monkeypatch.setattr(tensorrt_rtx, "compute_capability", lambda: "sm_89")
    TensorRTRTX().check(RTX, BuildOptions.parse(option))


def test_an_engine_says_how_it_was_built(lowered: Path, tmp_path: Path) -> None:
    facts = build(lowered, tmp_path / "out", "weight-streaming=1MB,workspace=1GiB,memory=20GB")
    said = BuiltWith.read(tmp_path / "out")
    assert said is not None and said.version == facts.version
    assert said == BuiltWith(
        module="tensorrt_rtx",
        version=str(facts.version),
        arch=RTX.arch,
        options=BuildOptions(weight_streaming=1_000_000, workspace=2**30, memory=20_000_000_000),
    )
    layers = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert layers["read_from"] == "plan text"
    assert [g["nodes"][0] for g in layers["program"]["gemms"]] == ["l/MatMul"]
    assert str(tmp_path) not in json.dumps(layers)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["engine.json", "layers.json", "model.plan"]


def test_too_small_a_workspace_is_named(lowered: Path, tmp_path: Path) -> None:
    with pytest.raises(VditcError, match=r"found no kernel within the workspace limit: no engine .*; raise it \(--engine workspace=SIZE\)"):
        build(lowered, tmp_path / "out", "workspace=1MiB")
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_memory_is_said_before_the_build(lowered: Path, tmp_path: Path) -> None:
    with pytest.raises(VditcError, match=r"building for rtx-ada: found 100 MB of memory allowed; wanted about 3\d\d MB"):
        build(lowered, tmp_path / "out", "memory=100MB")
    assert not (tmp_path / "out.work").exists()


def test_a_full_disk_leaves_no_engine(lowered: Path, tmp_path: Path) -> None:
    """Into a device that is always full; TensorRT-RTX 1.7 calls such a build good."""
    request = BuildRequest(
        module="tensorrt_rtx",
        lowered=str(lowered),
        plan="/dev/full",
        shapes=shapes(input_specs(lowered), PROFILE),
        compute_capabilities=["SM89"],
    )
    with pytest.raises(VditcError, match="/dev/full: found a full disk; wanted a disk that holds the whole engine; free some space"):
        run_build(request, tmp_path / "work")


def test_nothing_to_embed_is_an_error(lowered: Path, tmp_path: Path) -> None:
    with pytest.raises(VditcError, match="found no operator of the plugin library in the graph; wanted something to embed"):
        build(lowered, tmp_path / "out", "embed-plugins")


def test_plugins_in_the_engine(plugin_folder: Path, tmp_path: Path) -> None:
    """The engine has the library in it, and says that a runtime must be told to load it."""
    import numpy as np
    import onnx
    import onnx_ir as ir
    from plugin_graphs import model_of

    from vditc.plugins.quantize_token.op import QuantizeToken

    graph = tmp_path / "one.onnx"
    onnx.save(ir.to_proto(model_of(QuantizeToken(), [np.zeros((2, 64), np.float16)])), graph)
    library = plugin_folder / "x86_64" / "libvditc_plugins.so"
    request = BuildRequest(
        module="tensorrt_rtx",
        lowered=str(graph),
        plan=str(tmp_path / "model.plan"),
        shapes={"x": [[2, 64]] * 3},
        compute_capabilities=["SM89"],
        plugins=str(library),
        plugin_nodes={"node": ("QuantizeToken", "1", "vditc")},
    )
    run_build(request, tmp_path / "work")
    apart = (tmp_path / "model.plan").stat().st_size
    run_build(dataclasses.replace(request, options=BuildOptions(embed_plugins=True)), tmp_path / "work")
    assert (tmp_path / "model.plan").stat().st_size - apart >= library.stat().st_size // 2
    assert b"\x7fELF" in (tmp_path / "model.plan").read_bytes()
    assert BuildOptions(embed_plugins=True).host_code
