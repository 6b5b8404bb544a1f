"""Fills the report from finished bundles."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.bundle import CLIPS, Bundle
from vditc.engine_facts import RUN, engine_facts
from vditc.errors import InputError
from vditc.metrics import ClipScores, Summary
from vditc.pipeline.report_notes import PAGE, costs_of, timings_of
from vditc.report import BundleReport, Engine, GateLine, ReportData, Variant, write_report
from vditc.report_layers import Layer
from vditc.safetensors_file import read_header

Array = npt.NDArray[Any]


def report_bundle(bundle: Bundle) -> Path:
    """Write the page of one bundle, in it, with all that is known of it by now; returns its path."""
    report_bundles([bundle], bundle.path / PAGE)
    return bundle.path / PAGE


def report_bundles(bundles: Sequence[Bundle], out: Path) -> None:
    """Write the HTML file `out` about one or more bundles of one model that were verified on the same prompts.

    InputError when they are of several models, or were verified otherwise.
    """
    _check_alike(bundles)
    first = bundles[0].manifest
    quality = first.quality or {}
    s = first.sampling
    names = _names(bundles)
    facts = {
        "model": f"{first.model['class']}, {first.model['weights'] / 1e6:.2f} M weights",
        "latent clip": " x ".join(map(str, s["latent_shape"])) + " (channels, frames, height, width)",
        "sampling": f"{s['steps']} steps of {s.get('solver', {}).get('class', 'Euler')}, guidance {s['guidance_scale']:g}",
        **{
            name: f"from step {e['first_step']} on, guidance {s.get('guidance_scale_2', s['guidance_scale']):g}"
            for name, e in first.experts.items()
        },
        "profile": ", ".join(f"{a} {lo}:{best}:{hi}" for a, (lo, best, hi) in first.profile.items()),
        "checked on": f"{quality.get('clips')} clips, sampled in ONNX Runtime from the same noise as the full-precision model's",
    }
    data = ReportData(
        title="vditc: " + ", ".join(names),
        facts=facts,
        prompts=quality.get("prompts", []),
        full_precision=_variant(bundles[0], "full_precision"),
        bundles=[r for b, n in zip(bundles, names, strict=True) for r in (_bundle(b, n), *(_expert(b, n, e) for e in b.experts))],
    )
    write_report(out, data)


def _check_alike(bundles: Sequence[Bundle]) -> None:
    models = {str(b.path): str(b.manifest.model["digest"])[:12] for b in bundles}
    prompts = {str(b.path): ", ".join((b.manifest.quality or {}).get("prompts", ["none"])) for b in bundles}
    for what, found in (("one model", models), ("the same prompts", prompts)):
        if len(set(found.values())) > 1:
            raise InputError(
                found="; ".join(f"{path}: {value[:80]}" for path, value in found.items()),
                wanted=f"bundles of {what}",
                where="report",
                fix="compile them from the same model with the same --prompts and --clips, or write a report for each",
            )


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Of their recipes; where these repeat, of their folders."""
    recipes = [b.manifest.recipe["name"] for b in bundles]
    return recipes if len(set(recipes)) == len(recipes) else [b.path.resolve().name for b in bundles]


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


def _bundle(bundle: Bundle, name: str) -> BundleReport:
    m = bundle.manifest
    quality = m.quality or {}
    errors = quality.get("layer_error", {})
    gate = [
        GateLine(name=n, threshold=t, measured=m.gate["measured"][n], passed=n not in m.gate["failed"])
        for n, t in m.gate.get("thresholds", {}).items()
    ]
    costs = costs_of(bundle)
    engines = {target: about["engine"].get("layers", {}) for target, about in m.targets.items()}
    landed = {n: {target: of[n] for target, of in engines.items() if n in of} for n in (*m.layers, *m.kept)}
    layers = [
        Layer(
            name=n,
            role=layer["role"],
            weight=layer["weight"],
            activation=None if layer["activation"] == "float" else layer["activation"],
            bits=layer["bits"],
            error=errors.get(n),
            cost=costs.get(n),
            landed=landed[n],
        )
        for n, layer in m.layers.items()
    ]
    layers += [
        Layer(name=n, role=k["role"], weight=None, activation=None, bits=None, landed=landed[n], reason=k["reason"])
        for n, k in m.kept.items()
    ]
    return BundleReport(
        name=name,
        description=m.recipe["description"],
        mean_bits=m.mean_bits,
        sampled=_variant(bundle, "quantized"),
        gate=gate,
        step_error=quality.get("step_error", []),
        layers=layers,
        sizes=_sizes(bundle),
        engines=[Engine(target=n, facts=engine_facts(bundle, n)) for n in m.targets],
        stage_seconds=_seconds(bundle),
        timings=timings_of(bundle),
    )


def _expert(bundle: Bundle, name: str, expert: str) -> BundleReport:
    """The second of two experts, without what was measured of both."""
    report = _bundle(bundle.experts[expert], name)
    return dataclasses.replace(report, name=f"{name}, {expert}", sampled=None, gate=[], step_error=[])


def _sizes(bundle: Bundle) -> dict[str, int]:
    m = bundle.manifest
    sizes = {"float32 weights": 4 * m.model["weights"], "checkpoint": m.model["checkpoint_bytes"]}
    sizes["model.onnx + data"] = sum(e.bytes for n, e in m.files.items() if n.startswith("model.onnx"))
    for name in m.targets:
        plans = [e.bytes for n, e in m.files.items() if n.startswith(f"engines/{name}/") and n.endswith(".plan")]
        if plans:
            sizes[f"engine {name}"] = sum(plans)
    return sizes


def _seconds(bundle: Bundle) -> dict[str, float]:
    file = bundle.path / RUN
    if not file.exists():
        return {}
    return {name: stage["seconds"] for name, stage in json.loads(file.read_text())["stages"].items()}
