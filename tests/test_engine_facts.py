"""What people are told of an engine, from a manifest and the notes beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vditc.bundle import Bundle, FileEntry, Manifest
from vditc.engine_facts import engine_facts

ENGINE: dict[str, Any] = {
    "status": "built",
    "backend": "tensorrt",
    "version": "10.16.1",
    "compute_capabilities": ["sm_90"],
    "weight_bytes": 2_500_000_000,
    "activation_bytes": 12_000_000,
    "constant_bytes": {"int4": 2_000_000_000, "half": 45_000},
    "gemms": {"int8 x int8 -> float": 2, "half x half -> half": 1},
    "layers": {"a": "int8 x int8 -> float", "b": "int8 x int8 -> float", "head": "half x half -> half"},
    "merged": [["a", "b"]],
    "attentions": 4,
    "fused": {"norm": 2, "rest": 1},
    "cut": {"c/QuantizeLinear": 3},
}
TARGET: dict[str, Any] = {
    "backend": "tensorrt",
    "runtime": "TensorRT 10.16 to 11.4",
    "arch": ["sm_90", "sm_100"],
    "compute": "bf16",
    "attention": "fp16",
    "build": {"level": 5},
    "memory": {"weights": 10**9, "activations": 2 * 10**9, "total": 3 * 10**9, "builder": 5 * 10**9, "tokens": 100, "scores": 0},
    "graph": {"nodes": 12, "error": 0.00123},
    "plugins": {"library": "plugins/x86_64/l.so", "sha256": "ab" * 32, "operators": {"vditc.QLinear": 60}},
    "fallback": [{"layers": ["d", "e", "f", "g"], "from": "W[fp4]", "to": "fp8", "reason": "the runtime has no fp4"}],
    "engine": ENGINE,
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    to_build = {"backend": "tensorrt", "arch": ["sm_87"], "engine": {"status": "to build on the device", "backend": "tensorrt"}}
    manifest = Manifest(
        vditc="0",
        model={"part": "transformer"},
        recipe={},
        layers={name: {} for name in "abc"},
        kept={},
        mean_bits=4,
        sampling={"schedule": {}},
        inputs=[],
        profile={},
        graph={},
        targets={"h100": TARGET, "orin": {**to_build, "plugins": {"reason": "no compiler"}}},
        quality=None,
        gate={},
        tools={},
        files={f"engines/h100/{n}": FileEntry(size, "") for n, size in (("model.plan", 3_000_000), ("timing.cache", 900), ("x.json", 1))},
    )
    return Bundle(tmp_path, manifest)


def test_an_engine_in_words(bundle: Bundle) -> None:
    assert engine_facts(bundle, "h100") == {
        "status": "built",
        "backend": "tensorrt 10.16.1",
        "GPUs": "sm_90",
        "computes in": "bf16, attention in fp16",
        "build options": "level=5",
        "files": ["model.plan 3 MB", "timing.cache 1 KB"],
        "memory, of the builder's log": "2.50 GB of weights, 12 MB of activations",
        "memory, estimated": "3.00 GB: 1.00 GB of weights, 2.00 GB of activations at 100 tokens a clip; 5.00 GB to build",
        "constants": "2.00 GB of int4, 45 KB of half",
        "lowered graph": "12 nodes, 0.0012 relative error against the portable graph",
        "quantized layers": "2 of 3 in the engine as its lowered graph asks",
        "matrix products": ["2 × int8 x int8 -> float", "1 × half x half -> half"],
        "products of several layers": "1, for example a + b",
        "fused attentions": "4",
        "inputs quantized where they are made": "2 behind a norm, 1 behind attention, a residual stream or a text",
        "inputs quantized by kernels of their own": "1, for example c/QuantizeLinear",
        "plugins": ["60 × vditc.QLinear", "plugins/x86_64/l.so, sha256 abababababababab"],
        "fallback": ["falls back from W[fp4] to fp8: d, e, f and 1 more (the runtime has no fp4)"],
    }


def test_segments_by_their_first_and_last_block(bundle: Bundle) -> None:
    segments = [{"name": "segment_00", "blocks": [f"b.{i}" for i in range(5)]}, {"name": "segment_01", "blocks": ["b.5"]}]
    engine = {**ENGINE, "segments": [*segments, {"name": "segment_02", "blocks": ["b.6", "b.7"]}]}
    manifest = dataclasses.replace(bundle.manifest, targets={"h100": {**TARGET, "engine": engine}})
    found = engine_facts(Bundle(bundle.path, manifest), "h100")["segments"]
    assert found == ["segment_00: b.0 to b.4", "segment_01: b.5", "segment_02: b.6 to b.7"]


def test_what_is_not_known_is_left_out(bundle: Bundle) -> None:
    assert engine_facts(bundle, "orin") == {
        "status": "to build on the device",
        "backend": "tensorrt",
        "GPUs": "sm_87",
        "build options": "defaults",
        "plugins": "none: no compiler",
    }


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def test_who_built_it_last_tells_how_long_it_took(bundle: Bundle) -> None:
    """The compile, then `vditc build`, then a device; an expert's notes are with those of the whole model."""
    root = bundle.path
    write(root / "report/run.json", {"stages": {"build h100": {"facts": {"seconds": 12.34, "peak_rss_bytes": 10**9}}}})
    assert engine_facts(bundle, "h100")["build"] == "12.3 s, 1.00 GB at peak"
    job = {"part": "transformer", "target": "h100", "state": "done", "seconds": 70.2, "where": "node7"}
    write(
        root / ".build/jobs.json",
        {"jobs": [{**job, "target": "a10"}, {**job, "seconds": None}, {**job, "state": "failed", "seconds": 1.0}, job]},
    )
    assert engine_facts(bundle, "h100")["build"] == "70 s by node7"
    write(root / "engines/h100/built.json", {"engine": {"seconds": 600.0, "peak_rss_bytes": 2 * 10**9}})
    assert engine_facts(bundle, "h100")["build"] == "600.0 s, 2.00 GB at peak"
    inner = dataclasses.replace(bundle.manifest, model={"part": "transformer_2"}, sampling={"schedule": {"first": 4}})
    write(root / "report/run.json", {"stages": {"transformer_2: build h100": {"facts": {"seconds": 5.0}}}})
    assert engine_facts(Bundle(root / "transformer_2", inner), "h100")["build"] == "5.0 s"
