"""What is known of a bundle's engine, in words for people: for the report and for `vditc inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.build_jobs import FILE as JOBS
from vditc.build_memory import gigabytes
from vditc.build_options import BuildOptions
from vditc.bundle import Bundle, rung_text
from vditc.device.facts import UNKNOWN

Words = str | list[str]  # one line or several
RUN = "report/run.json"  # times of the stages of a compile; manifests hold none, so that equal jobs give equal bytes


def engine_facts(bundle: Bundle, name: str) -> dict[str, Words]:
    """Label -> words, of the target `name`; what is not known of it is left out."""
    target = bundle.manifest.targets[name]
    engine, graph = target["engine"], target.get("graph", {})
    version = f" {engine['version']}" if "version" in engine else f" ({target['runtime']})" if "runtime" in target else ""
    compute, attention = target.get("compute", ""), target.get("attention", "")
    facts: dict[str, Words] = {
        "status": engine["status"],
        "backend": f"{target['backend']}{version}",
        "GPUs": ", ".join(engine.get("compute_capabilities", target.get("arch", ()))) or "none",
        "computes in": compute + (f", attention in {attention}" if attention != compute else ""),
        "build options": str(BuildOptions.from_json(target.get("build", {}))) or "defaults",
    }
    if "device" in target:
        facts["built on"] = device_words(target["device"])
    if build := _build(bundle, name):
        facts["build"] = build
    if "segments" in engine:
        facts["segments"] = [
            f"{s['name']}: {', '.join(s['blocks'][:: max(1, len(s['blocks']) - 1)]).replace(', ', ' to ')}" for s in engine["segments"]
        ]
    if sizes := _sizes(bundle, name):
        facts["files"] = sizes
    memory = [f"{_bytes(engine[key])} of {what}" for key, what in _MEMORY.items() if key in engine]
    if memory:
        facts["memory, of the builder's log"] = ", ".join(memory)
    if "memory" in target:
        facts["memory, estimated"] = memory_words(target["memory"])
    if constants := engine.get("constant_bytes"):
        facts["constants"] = ", ".join(f"{_bytes(count)} of {kind}" for kind, count in constants.items())
    if graph:
        error = f", {graph['error']:.2g} relative error against the portable graph" if graph.get("error") is not None else ""
        facts["lowered graph"] = f"{graph['nodes']} nodes{error}"
    facts |= _landed(bundle, engine)
    facts["plugins"] = _plugins(target)
    facts["fallback"] = [rung_text(rung) for rung in target.get("fallback", ())] or (
        "none: every layer as it was calibrated" if "layers" in engine else ""
    )
    return {label: words for label, words in facts.items() if words}


_MEMORY = {"weight_bytes": "weights", "activation_bytes": "activations", "scratch_bytes": "scratch"}
_BEHIND = {"norm": "a norm", "gelu": "GELU", "silu": "SiLU", "rest": "attention, a residual stream or a text"}


def memory_words(estimate: Mapping[str, int]) -> str:
    """ "1.43 GB: 0.9 GB of weights, 0.5 GB of activations at 32760 tokens a clip; 4.7 GB to build"."""
    parts = f"{gigabytes(estimate['weights'])} of weights, {gigabytes(estimate['activations'])} of activations"
    build = f"; {gigabytes(estimate['builder'])} to build" if estimate.get("builder") else ""
    return f"{gigabytes(estimate['total'])}: {parts} at {estimate['tokens']} tokens a clip{build}"


def device_words(device: Mapping[str, Any]) -> str:
    """ "NVIDIA Jetson AGX Orin Developer Kit, JetPack 6.2+b77, L4T 36.4.3, MAXN_SUPER (2), driver 540.4.0": what is known."""
    named = {"board": "", "jetpack": "JetPack ", "l4t": "L4T ", "power_mode": "power mode ", "driver": "driver ", "cuda": "CUDA "}
    known = [f"{words}{device[key]}" for key, words in named.items() if key in device and not str(device[key]).startswith(UNKNOWN)]
    return ", ".join(known) or "a machine that is no Jetson"


def _landed(bundle: Bundle, engine: Mapping[str, Any]) -> dict[str, Words]:
    """How layers and attentions landed; {} for what is not built."""
    if "layers" not in engine:
        return {}
    quantized = bundle.manifest.layers
    there = [layer for layer in quantized if layer in engine["layers"]]
    found: dict[str, Words] = {
        "quantized layers": f"{len(there)} of {len(quantized)} in the engine as its lowered graph asks",
        "matrix products": [f"{n} × {kind}" for kind, n in engine.get("gemms", {}).items()],
    }
    if merged := engine.get("merged"):
        found["products of several layers"] = f"{len(merged)}, for example {' + '.join(merged[0])}"
    if (attentions := engine.get("attentions")) is not None:
        found["fused attentions"] = str(attentions)
    if fused := engine.get("fused"):
        found["inputs quantized where they are made"] = ", ".join(f"{n} behind {_BEHIND.get(what, what)}" for what, n in fused.items())
    if cut := engine.get("cut"):
        found["inputs quantized by kernels of their own"] = f"{len(cut)}, for example {next(iter(cut))}"
    return found


def _plugins(target: Mapping[str, Any]) -> Words:
    said = target.get("plugins", {})
    lines = [f"{n} × {operator}" for operator, n in said.get("operators", {}).items()]
    if "library" in said:
        lines.append(f"{said['library']}, sha256 {said['sha256'][:16]}")
    if "attention" in said:
        lines.append(f"attention in {said['attention']['computed']}")
        lines += [f"{n} attentions left: {why}" for why, n in said["attention"].get("left", {}).items()]
    return lines or f"none: {said.get('reason', 'unknown')}"


def _sizes(bundle: Bundle, name: str) -> Words:
    """Plans, and the whole folder where a device is still to build."""
    inside = {n.rpartition("/")[2]: e.bytes for n, e in bundle.manifest.files.items() if n.startswith(f"engines/{name}/")}
    return [f"{file} {_bytes(size)}" for file, size in sorted(inside.items()) if file.endswith((".plan", ".cache", ".pyz"))]


def _bytes(count: int) -> str:
    """ "12 MB", "227 KB"."""
    return gigabytes(count) if count >= 1e6 else f"{count / 1e3:.0f} KB"


def _build(bundle: Bundle, name: str) -> str:
    """How long the builder ran and what it took, of a device, of `vditc build`, or of the compile; "" where nobody wrote it down."""
    built = bundle.path / "engines" / name / "built.json"
    if built.is_file():
        return _took(json.loads(built.read_text())["engine"])
    # Notes of an expert are with those of the whole model.
    inner = bundle.manifest.sampling["schedule"].get("first", 0) > 0
    root, stage_name = (bundle.path.parent, f"{bundle.path.name}: build {name}") if inner else (bundle.path, f"build {name}")
    jobs = _read(root / JOBS).get("jobs", ())
    for job in jobs:
        if (job["part"], job["target"], job["state"]) == (bundle.manifest.model["part"], name, "done") and job.get("seconds") is not None:
            return f"{job['seconds']:.0f} s by {job['where'] or 'this machine'}"
    stage = _read(root / RUN).get("stages", {}).get(stage_name)
    return _took(stage["facts"]) if stage else ""


def _took(facts: Mapping[str, Any]) -> str:
    if "seconds" not in facts:
        return ""
    peak = f", {gigabytes(facts['peak_rss_bytes'])} at peak" if facts.get("peak_rss_bytes") else ""
    return f"{facts['seconds']:.1f} s{peak}"


def _read(file: Path) -> Mapping[str, Any]:
    """What a file of times says; {} where there is none."""
    found: Mapping[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found
