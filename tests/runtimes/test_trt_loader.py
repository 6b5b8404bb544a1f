"""Loading an engine as it was built: what is set before and after, by names of each release, and what is said when it does not load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trt_stub import TABLES, Stub

from vditc.build_options import BuildOptions
from vditc.errors import InputError, VditcError
from vditc.runtimes.backend import EnginePlugins
from vditc.runtimes.built_with import NAME, BuiltWith
from vditc.runtimes.cpu_backend import OnnxRuntime
from vditc.runtimes.trt_loader import load_engine

AUTOMATIC, STREAMABLE = 700, 1000
EVERYWHERE = pytest.mark.parametrize("release", sorted(TABLES))


def engine(tmp_path: Path, options: str = "", weights: str | None = None) -> Path:
    (plan := tmp_path / "model.plan").write_bytes(b"engine")
    BuiltWith(module="tensorrt", version="10.3.0", arch=("sm_90",), options=BuildOptions.parse(options), weights=weights).write(tmp_path)
    return plan


def stub(release: str, **values: Any) -> Stub:
    known = {"ICudaEngine.streamable_weights_size": STREAMABLE, "ICudaEngine.get_weight_streaming_automatic_budget": lambda: AUTOMATIC}
    return Stub(release, known | {key.replace("__", "."): value for key, value in values.items()})


def called(trt: Stub, key: str) -> list[Any]:
    return [args[0] if args else None for name, args in trt.calls if name == key]


@EVERYWHERE
@pytest.mark.parametrize(
    ("options", "budget", "wanted"),
    [
        ("", None, []),
        ("weight-streaming", None, [AUTOMATIC]),
        ("weight-streaming=600B", None, [600]),
        ("weight-streaming=600B", 0, [0]),
        ("weight-streaming", 2 * STREAMABLE, [STREAMABLE]),
    ],
)
def test_weights_stream_within_a_budget(release: str, options: str, budget: int | None, wanted: list[int], tmp_path: Path) -> None:
    trt = stub(release)
    load_engine(trt, engine(tmp_path, options), "sm_90", None, budget)
    assert called(trt, "ICudaEngine.weight_streaming_budget_v2") == wanted


def test_a_budget_for_an_engine_that_does_not_stream(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found a budget for weights; .*build the engine with --engine weight-streaming"):
        load_engine(stub("11.4"), engine(tmp_path), "sm_90", None, 5)


def test_a_budget_where_nothing_streams(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="found a budget for weights"),
        OnnxRuntime().open(model=tmp_path, engine=tmp_path, weight_budget=5),
    ):
        pass


@EVERYWHERE
@pytest.mark.parametrize(("options", "allowed"), [("", []), ("refit", []), ("embed-plugins", [True]), ("version-compatible", [True])])
def test_code_of_the_host_is_allowed_where_the_engine_has_some(release: str, options: str, allowed: list[bool], tmp_path: Path) -> None:
    trt = stub(release)
    load_engine(trt, engine(tmp_path, options), "sm_90", None)
    assert called(trt, "Runtime.engine_host_code_allowed") == allowed
    order = [name for name, _ in trt.calls]
    assert order[-1] == "Runtime.deserialize_cuda_engine"


@EVERYWHERE
def test_the_plugin_library_is_loaded_unless_it_is_in_the_engine(release: str, tmp_path: Path) -> None:
    plugins = EnginePlugins(library=tmp_path / "l.so", wanted=(("QLinear", "1", "vditc"),))
    trt = stub(release, IPluginRegistry__all_creators=[], IPluginRegistry__load_library=lambda path: None)
    with pytest.raises(VditcError, match="found a library that does not load"):
        load_engine(trt, engine(tmp_path), "sm_90", plugins)
    load_engine(trt, engine(tmp_path, "embed-plugins"), "sm_90", plugins)


@EVERYWHERE
def test_stripped_weights_come_from_the_lowered_graph(release: str, tmp_path: Path) -> None:
    plan = engine(tmp_path, "strip-weights", weights="lowered.onnx")
    with pytest.raises(VditcError, match=r"found no such file; wanted the engine's weights, from .*lowered\.onnx; copy the whole bundle"):
        load_engine(stub(release), plan, "sm_90")
    (tmp_path / "lowered.onnx").write_bytes(b"graph")
    trt = stub(release)
    load_engine(trt, plan, "sm_90")
    assert called(trt, "OnnxParserRefitter.refit_from_file") == [str(tmp_path / "lowered.onnx")]
    assert [name for name, _ in trt.calls][-1] == "Refitter.refit_cuda_engine"
    trt = stub(
        release, OnnxParserRefitter__refit_from_file=lambda path: False, OnnxParserRefitter__num_errors=1, ParserError__desc=lambda: "odd"
    )
    with pytest.raises(VditcError, match="found odd; wanted the engine's weights"):
        load_engine(trt, plan, "sm_90")
    with pytest.raises(VditcError, match=r"found no l\.weight, m\.weight in it"):
        load_engine(stub(release, Refitter__get_missing_weights=lambda: ["l.weight", "m.weight"]), plan, "sm_90")
    with pytest.raises(VditcError, match="found weights that the engine does not take"):
        load_engine(stub(release, Refitter__refit_cuda_engine=lambda: False), plan, "sm_90")


@EVERYWHERE
def test_an_engine_of_another_version_or_gpu_names_both(release: str, tmp_path: Path) -> None:
    trt = stub(release)

    def refuse(data: bytes) -> None:
        log = trt.loggers[-1]
        log.log(trt.ILogger.WARNING, "a warning")
        log.log(trt.ILogger.ERROR, " expecting library version 10.3 got 11 ")

    trt.values["Runtime.deserialize_cuda_engine"] = refuse
    with pytest.raises(VditcError) as error:
        load_engine(trt, engine(tmp_path), "sm_89")
    version = trt.__version__
    assert error.value.found == f"stub {version} on sm_89, which does not load it (expecting library version 10.3 got 11)"
    assert error.value.wanted == "what it was built with: tensorrt 10.3.0 for sm_90"
    assert error.value.fix.endswith("engines for sm_89 come from another --target")
    (tmp_path / NAME).unlink()
    with pytest.raises(VditcError, match=f"wanted an engine of stub {version} for sm_89; build it again here"):
        load_engine(trt, tmp_path / "model.plan", "sm_89")


def test_what_is_said_of_an_engine_must_be_readable(tmp_path: Path) -> None:
    plan = engine(tmp_path)
    for text in ("{", "[]", "{}", '{"module": "tensorrt", "version": "1", "arch": [], "colour": 1}'):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(InputError, match=r"engine\.json: found unreadable"):
            load_engine(stub("11.4"), plan, "sm_90")
