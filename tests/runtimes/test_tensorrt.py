"""The TensorRT backend where no GPU is: the script for the device, the inspector's report, what is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from lowered_graphs import save_product

from vditc.errors import InputError, VditcError
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes import tensorrt, trt_runner
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.precision import Expectation, QuantizedLayer, assert_landed
from vditc.runtimes.registry import backend
from vditc.runtimes.tensorrt import TensorRT
from vditc.runtimes.trt_inspection import inspected_program
from vditc.target import Target

PROFILE = Profile({"batch": Range(1, 2, 2), "frames": Range(8, 8, 16)})


def test_elsewhere_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "compute_capability", lambda: None)
    lowered = save_product(tmp_path / "l.onnx", "fp16")
    target, out = Target.load("jetson-orin"), tmp_path / "out"
    facts = TensorRT().build(lowered=lowered, target=target, profile=PROFILE, inputs=(), out=out, work=tmp_path, progress=SILENT)
    assert facts == EngineFacts(status="to build on the device", backend="tensorrt")
    assert facts.to_json() == {"status": "to build on the device", "backend": "tensorrt"}
    assert not out.exists()


def test_the_targets_gpu_without_the_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "compute_capability", lambda: "sm_90")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VditcError, match=r"tensorrt is not installed; .*pip install vditc\[gpu\]"):
        TensorRT().check(Target.load("h200"))
    TensorRT().check(Target.load("jetson-orin"))  # another GPU: only a script is written


def test_open_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> None:
        with TensorRT().open(model=tmp_path / "model.onnx", engine=tmp_path):
            pass

    with pytest.raises(VditcError, match=r"found no engine; .*sh .*build\.sh"):
        opened()
    (tmp_path / "model.plan").write_bytes(b"engine")
    monkeypatch.setattr(trt_runner, "compute_capability", lambda: None)
    with pytest.raises(VditcError, match=r"found no NVIDIA GPU or no driver.*onnxruntime"):
        opened()
    monkeypatch.setattr(trt_runner, "compute_capability", lambda: "sm_90")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VditcError, match="found tensorrt not installed"):
        opened()


def test_backends_by_name() -> None:
    assert [backend(name).name for name in ("tensorrt_rtx", "tensorrt", "onnxruntime")] == ["tensorrt_rtx", "tensorrt", "onnxruntime"]
    with pytest.raises(InputError, match="found backend 'cuda'; wanted one of tensorrt_rtx, tensorrt, onnxruntime"):
        backend("cuda")


def test_facts_of_another_version_are_refused() -> None:
    with pytest.raises(InputError, match=r"engine facts with \['colour'\]"):
        EngineFacts.from_json({"status": "portable", "backend": "onnxruntime", "colour": "red"})
    with pytest.raises(InputError, match="engine facts with 'finished'"):
        EngineFacts.from_json({"status": "finished", "backend": "onnxruntime"})


def report(path: Path, *layers: Any) -> Path:
    path.write_text(json.dumps({"Layers": layers}))
    return path


def layer(name: str, kind: str, node: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    def ends(types: list[str]) -> list[dict[str, Any]]:
        return [{"Name": "t", "Dimensions": [2, 8], "Format/Datatype": t} for t in types]

    return {"Name": name, "LayerType": kind, "Inputs": ends(inputs), "Outputs": ends(outputs), "Metadata": f"[ONNX Layer: {node}]"}


def test_inspection_becomes_a_program(tmp_path: Path) -> None:
    program = inspected_program(
        report(
            tmp_path / "r.json",
            layer("l/MatMul_myl0_3", "gemm", "l/MatMul", ["Int8", "Int8"], ["Float"]),
            layer("__myl_ReplCastMulCastFc_myl0_4", "kgen", "m/MatMul", ["Half"], ["Half"]),
            layer("__myl_MulCast_myl0_5", "kgen", "l/MatMul", ["Float", "Float"], ["Half"]),
            layer("_gemm_mha_v2_myl0_6", "kgen", "a/Softmax", ["Half", "Half", "Half"], ["Half"]),
            layer("q", "PluginV3", "q", ["Row major INT8 format"], ["Row major linear FP32"]),
        )
    )
    assert [str(g) for g in program.gemms] == ["int8 x int8 -> float", "half x half -> half"]
    assert [k.outputs for k in program.kernels] == [("half[2, 8]",)]
    assert len(program.plugins) == 1
    quantized = (QuantizedLayer("l", "l/MatMul", "int8", "int8"), QuantizedLayer("m", "m/MatMul", "int4", None))
    landed = assert_landed(Expectation(quantized, {}, ("a/Softmax",)), program)
    assert landed.layers == {"l": "int8 x int8 -> float", "m": "half x half -> half"}


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ((), "0 layers without metadata"),
        (("names only",), "1 layers without metadata"),
        ((layer("x", "gemm", "n", ["Odd"], []),), "type 'Odd'"),
    ],
)
def test_an_unknown_report_is_an_error(layers: tuple[Any, ...], found: str, tmp_path: Path) -> None:
    with pytest.raises(VditcError, match=found):
        inspected_program(report(tmp_path / "r.json", *layers))
