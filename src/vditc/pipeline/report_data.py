"""Fills the report from finished bundles."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.build_memory import gigabytes
from vditc.build_options import BuildOptions
from vditc.bundle import Bundle, rung_text
from vditc.metrics import ClipScores, Summary
from vditc.pipeline.compile import CLIPS
from vditc.report import BundleReport, Engine, GateLine, KeptLayer, Layer, ReportData, Variant, write_report
from vditc.safetensors_file import read_header

Array = npt.NDArray[Any]


def report_bundles(bundles: Sequence[Bundle], out: Path) -> None:
    """Write the HTML file `out` about one or more bundles of one model that were verified on the same prompts."""
    first = bundles[0].manifest
    quality = first.quality or {}
    s = first.sampling
    facts = {
        "model": f"{first.model['class']}, {first.model['weights'] / 1e6:.2f} M weights",
        "latent clip": " x ".join(map(str, s["latent_shape"])) + " (channels, frames, height, width)",
        "sampling": f"{s['steps']} Euler steps, guidance {s['guidance_scale']:g}",
        **{
            name: f"from step {e['first_step']} on, guidance {s.get('guidance_scale_2', s['guidance_scale']):g}"
            for name, e in first.experts.items()
        },
        "checked on": f"{quality.get('clips')} clips, sampled in ONNX Runtime from the same noise as the full-precision model's",
    }
    data = ReportData(
        title="vditc: " + ", ".join(b.manifest.recipe["name"] for b in bundles),
        facts=facts,
        prompts=quality.get("prompts", []),
        full_precision=_variant(bundles[0], "full_precision"),
        bundles=[report for b in bundles for report in (_bundle(b), *(_expert(b, name) for name in b.experts))],
    )
    write_report(out, data)


def clips_of(bundle: Bundle, name: str) -> Array | None:
    """Clips of the verification, "full_precision" or "quantized", float32 [clips, F, H, W]; None if they were removed."""
    file = bundle.path / CLIPS
    return np.array(read_header(file)[0][name].read()) if file.exists() else None


def _variant(bundle: Bundle, name: str) -> Variant | None:
    quality = bundle.manifest.quality
    if quality is None:
        return None
    pixels = clips_of(bundle, name) if quality["space"] == "pixels" else None
    return Variant(clips=pixels, summary=_summary(quality[name]))


def _summary(data: Mapping[str, Any]) -> Summary:
    return Summary(**{**data, "clips": tuple(ClipScores(**c) for c in data["clips"])})


def _bundle(bundle: Bundle) -> BundleReport:
    m = bundle.manifest
    quality = m.quality or {}
    errors = quality.get("layer_error", {})
    gate = [
        GateLine(name=n, threshold=t, measured=m.gate["measured"][n], passed=n not in m.gate["failed"])
        for n, t in m.gate.get("thresholds", {}).items()
    ]
    layers = [
        Layer(
            name=name,
            role=layer["role"],
            weight=layer["weight"],
            activation=None if layer["activation"] == "float" else layer["activation"],
            bits=layer["bits"],
            error=errors.get(name),
        )
        for name, layer in m.layers.items()
    ]
    return BundleReport(
        name=m.recipe["name"],
        description=m.recipe["description"],
        mean_bits=m.mean_bits,
        sampled=_variant(bundle, "quantized"),
        gate=gate,
        step_error=quality.get("step_error", []),
        layers=layers,
        kept=[KeptLayer(name=n, role=k["role"], reason=k["reason"]) for n, k in m.kept.items()],
        sizes=_sizes(bundle),
        engines=[Engine(target=n, facts=_engine(t)) for n, t in m.targets.items()],
        stage_seconds=_seconds(bundle),
    )


def _expert(bundle: Bundle, name: str) -> BundleReport:
    """The second of two experts, without what was measured of both."""
    report = _bundle(bundle.experts[name])
    return dataclasses.replace(report, name=f"{bundle.manifest.recipe['name']}, {name}", sampled=None, gate=[], step_error=[])


def _sizes(bundle: Bundle) -> dict[str, int]:
    m = bundle.manifest
    sizes = {"float32 weights": 4 * m.model["weights"], "checkpoint": m.model["checkpoint_bytes"]}
    sizes["model.onnx + data"] = sum(e.bytes for n, e in m.files.items() if n.startswith("model.onnx"))
    for name in m.targets:
        plan = m.files.get(f"engines/{name}/model.plan")
        if plan is not None:
            sizes[f"engine {name}"] = plan.bytes
    return sizes


def _engine(target: Mapping[str, Any]) -> dict[str, str]:
    engine = target["engine"]
    facts = {
        "status": engine["status"],
        "backend": target["backend"],
        "against the portable graph": f"{target['graph']['error']:.2g} relative error",
    }
    if "memory" in target:
        facts["memory, estimated"] = _memory(target["memory"])
    if target.get("build"):
        facts["built with"] = str(BuildOptions.from_json(target["build"]))
    if target.get("fallback"):
        facts["not as calibrated"] = "; ".join(rung_text(rung) for rung in target["fallback"])
    if "version" in engine:
        facts["builder"] = engine["version"]
    if "compute_capabilities" in engine:
        facts["one plan for"] = ", ".join(engine["compute_capabilities"])
    if "gemms" in engine:
        facts["matrix products"] = "; ".join(f"{n} × {kind}" for kind, n in engine["gemms"].items())
    if "attentions" in engine:
        facts["fused attentions"] = str(engine["attentions"])
    if "plugins" in engine:
        facts["plugins"] = str(engine["plugins"])
    for key, label in (("weight_bytes", "weights"), ("activation_bytes", "activations"), ("scratch_bytes", "scratch")):
        if key in engine:
            facts[label] = f"{engine[key] / 1e6:.2f} MB"
    return facts


def _memory(estimate: Mapping[str, int]) -> str:
    parts = f"{gigabytes(estimate['weights'])} of weights, {gigabytes(estimate['activations'])} of activations"
    return f"{gigabytes(estimate['total'])}: {parts} at {estimate['tokens']} tokens a clip"


def _seconds(bundle: Bundle) -> dict[str, float]:
    file = bundle.path / "report" / "run.json"
    if not file.exists():
        return {}
    return {name: stage["seconds"] for name, stage in json.loads(file.read_text())["stages"].items()}
