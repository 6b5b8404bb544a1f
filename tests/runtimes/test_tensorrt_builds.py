"""The TensorRT backend where its GPU is: a whole build in a child process, in which the recorded API of a release stands for TensorRT."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lowered_graphs import save_product
from trt_stub import TABLES

from vditc.build_options import BuildOptions
from vditc.errors import PrecisionError, VditcError
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes import tensorrt
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.tensorrt import TensorRT
from vditc.target import Target

TESTS = Path(__file__).resolve().parents[1]
PROFILE = Profile({"batch": Range(1, 2, 2), "tokens": Range(16, 64, 256), "text_tokens": Range(16, 64, 256)})
# A package `tensorrt`: strict about names and arguments, and as easily pleased as a machine that has what it asks for.
MODULE = """
import json, os, pathlib, signal, sys, time
sys.path.insert(0, {tests!r})
from trt_stub import Stub

def built(network, config, writer=None):
    {during}
    return bool(writer.write(b"engine")) if writer else b"engine"

names = ["hidden_states", "encoder_hidden_states"]
turn = iter(names * 9)
trt = Stub({release!r}, {{
    "INetworkDefinition.num_inputs": 2,
    "INetworkDefinition.num_layers": 0,
    "ITensor.name": lambda: next(turn),
    "Builder.build_serialized_network": built,
    "Builder.build_serialized_network_to_stream": built,
    "ITimingCache.serialize": lambda: b"times",
    "EngineInspector.get_engine_information": lambda form: {report!r},
    **{{{values}}}
}})
trt.__version__ = "10.16.1"
sys.modules[__name__] = trt
"""
REPORT: dict[str, Any] = {
    "Layers": [
        {
            "Name": "l/MatMul_myl0_1",
            "LayerType": "gemm",
            "Inputs": [{"Name": "a", "Format/Datatype": "Int8"}, {"Name": "b", "Format/Datatype": "Int8"}],
            "Outputs": [{"Name": "c", "Dimensions": [2], "Format/Datatype": "Float"}],
            "Metadata": "[ONNX Layer: l/MatMul]",
        }
    ]
}


class Case:
    """One lowered graph and a fake tensorrt."""

    def __init__(self, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.out, self.work = tmp_path, tmp_path / "out", tmp_path / "work"
        self.lowered = save_product(tmp_path / "l.onnx", "w8a8")
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        patch.syspath_prepend(tmp_path)
        patch.setattr(tensorrt, "compute_capability", lambda: "sm_90")

    def install(self, release: str = "10.16", during: str = "pass", values: str = "", report: object = REPORT) -> None:
        """What the builder does while it builds, and other values."""
        text = MODULE.format(tests=str(TESTS), release=release, during=during, values=values, report=json.dumps(report))
        (self.root / "tensorrt.py").write_text(text)

    def build(self, options: str = "") -> EngineFacts:
        return TensorRT().build(
            lowered=self.lowered,
            target=Target.load("h100"),
            profile=PROFILE,
            inputs=input_specs(self.lowered),
            out=self.out,
            work=self.work,
            progress=SILENT,
            options=BuildOptions.parse(options),
        )

    @property
    def files(self) -> list[str]:
        return sorted(p.name for p in self.out.iterdir()) if self.out.exists() else []


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    made = Case(tmp_path, monkeypatch)
    made.install()
    return made


@pytest.mark.parametrize("release", [r for r in sorted(TABLES) if not r.startswith("rtx")])
def test_a_build_leaves_engine_cache_and_layers(case: Case, release: str) -> None:
    case.install(release)
    options = "level=4,workspace=1GiB,strip-weights,weight-streaming,hardware-compatibility=ampere_plus,version-compatible"
    facts = case.build(options)
    assert (facts.status, facts.version, facts.gemms) == ("built", "10.16.1", {"int8 x int8 -> float": 1})
    assert case.files == ["engine.json", "layers.json", "model.plan", "timing.cache"]
    assert (case.out / "model.plan").read_bytes() == b"engine" and (case.out / "timing.cache").read_bytes() == b"times"
    said = BuiltWith.read(case.out)
    assert said is not None and (said.version, said.arch, said.weights) == ("10.16.1", ("sm_90",), "../l.onnx")
    assert said.options == BuildOptions.parse(options)
    layers = json.loads((case.out / "layers.json").read_text())
    assert layers["read_from"] == "engine inspector" and layers["inspector"] == REPORT


def test_the_timing_cache_is_read_and_one_of_another_gpu_is_said(case: Case) -> None:
    notes: list[str] = []
    accepted = '"IBuilderConfig.create_timing_cache": lambda data: trt.thing("ITimingCache") if data in (b"", b"times") else None'
    case.install(values=accepted)

    class Notes(type(SILENT)):  # type: ignore[misc]
        def note(self, text: str) -> None:
            notes.append(text)

    def again(options: str = "") -> None:
        TensorRT().build(
            lowered=case.lowered,
            target=Target.load("h100"),
            profile=PROFILE,
            inputs=input_specs(case.lowered),
            out=case.out,
            work=case.work,
            progress=Notes(),
            options=BuildOptions.parse(options),
        )

    again()
    again()
    assert notes == []
    (case.out / "timing.cache").write_bytes(b"of another GPU")
    again()
    assert len(notes) == 1 and "timing.cache is of another GPU or another TensorRT than 10.16.1: begun anew" in notes[0]
    assert (case.out / "timing.cache").read_bytes() == b"times"
    (case.out / "timing.cache").unlink()
    again("timing-cache=off")
    assert "timing.cache" not in case.files


def test_a_lost_precision_keeps_the_times_alone(case: Case) -> None:
    case.install(report={"Layers": [{**REPORT["Layers"][0], "Inputs": [{"Format/Datatype": "Half"}] * 2}]})
    with pytest.raises(PrecisionError, match="l: computes half x half -> float, wanted int8 x int8") as error:
        case.build()
    assert error.value.layers == {"l": "computes half x half -> float, wanted int8 x int8"}
    assert case.files == ["timing.cache"]


@pytest.mark.parametrize(
    ("during", "words"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            r"found too little memory on this machine \(.* are free now\), or it was killed by hand: .*SIGKILL",
        ),
        (
            'print("[E] Error Code 2: OutOfMemory (Requested size was 99 bytes.)"); return None',
            r"too little memory on the GPU: no engine .*99 bytes",
        ),
        ('raise MemoryError("no")', r"too little memory on this machine: the builder process exited with 1"),
        ('os.write(2, b"terminate called after throwing std::bad_alloc"); os.abort()', r"too little memory on this machine: .*SIGABRT"),
        ('raise OSError(28, "No space left on device")', r"found a full disk; wanted a disk that holds the whole engine"),
        ('os.write(2, b"something odd"); os.abort()', r"found the builder process died of SIGABRT \(something odd\)"),
    ],
)
def test_each_end_of_a_builder_has_one_message(case: Case, during: str, words: str) -> None:
    case.install(during=during)
    with pytest.raises(VditcError, match=words) as error:
        case.build()
    assert "builder.log" in error.value.fix or "free some space" in error.value.fix
    assert [name for name in case.files if not name.startswith(".")] == [] and not list(case.root.rglob("*.partial"))
    case.install()
    assert case.build().status == "built"  # a builder that died is not in the way of the next one


def test_nodes_and_types_that_a_runtime_refuses_are_layers(case: Case) -> None:
    node = '"OnnxParser.parse_from_file": lambda path: False, "OnnxParser.num_errors": 1, "ParserError.desc": lambda: "odd", '
    node += '"ParserError.node_operator": lambda: "QuantizeLinear", "ParserError.node_name": lambda: {name!r}'
    case.install(values=node.format(name="l/QuantizeLinear"))
    with pytest.raises(PrecisionError, match=r"node l/QuantizeLinear \(QuantizeLinear\): odd") as error:
        case.build()
    assert error.value.layers == {"l": "the runtime does not take node l/QuantizeLinear"}
    case.install(values=node.format(name="sum"))
    with pytest.raises(PrecisionError) as error:
        case.build()
    assert error.value.layers == {}
    case.install(during='print("[E] model contains HW-specific datatypes: int8"); return None')
    with pytest.raises(PrecisionError, match="no engine") as error:
        case.build()
    assert error.value.layers == {"l": "the runtime has no int8 here"}


def test_no_room_for_the_engine_is_said_before_the_build(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(VditcError, match=r"model\.plan: found 1,000 bytes free; wanted \d\d,\d\d\d bytes free"):
        case.build()
    assert case.files == [] and not (case.work / "builder.log").exists()
    case.build("strip-weights")


def test_a_builder_dies_with_the_command(case: Case) -> None:
    """Or it would go on and write into the file of the next build."""
    case.install(during=f"pathlib.Path({str(case.root / 'pid')!r}).write_text(str(os.getpid())); time.sleep(600)")
    request: dict[str, Any] = {
        "module": "tensorrt",
        "lowered": str(case.lowered),
        "plan": str(case.root / "p"),
        "shapes": {},
        "compute_capabilities": [],
    }
    request["shapes"] = {name: [[1, 16, 128]] * 3 for name in ("hidden_states", "encoder_hidden_states")}
    (asked := case.root / "request.json").write_text(json.dumps(request))
    words = ["-m", "vditc.runtimes.trt_worker", str(asked), str(case.root / "result.json")]
    code = f"import subprocess, sys; subprocess.run([sys.executable, *{words!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    builder = int(waited(case.root / "pid"))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{builder}/status").exists() and "zombie" not in Path(f"/proc/{builder}/status").read_text():
        assert time.monotonic() < deadline, "the builder outlived the command"
        time.sleep(0.05)


def waited(path: Path) -> str:
    """The text of a file, as soon as it has some."""
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)
    return path.read_text()
