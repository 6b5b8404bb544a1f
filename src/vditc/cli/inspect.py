"""`vditc inspect`: what is in a bundle, a graph or an engine, without PyTorch; what a model directory takes, with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vditc.build_memory import gigabytes
from vditc.build_options import BuildOptions
from vditc.bundle import MANIFEST, Bundle, rung_text
from vditc.cli.app import app, console
from vditc.cli.inspect_components import show_components
from vditc.cli.options import JsonOption
from vditc.engine_facts import device_words, engine_facts
from vditc.errors import InputError
from vditc.pipeline.report_notes import timings_of

# Of `engine_facts`, what the table and the lines above it do not say.
_TOLD = (
    *(
        "GPUs",
        "computes in",
        "build",
        "segments",
        "files",
        "memory, estimated",
        "memory, of the builder's log",
        "constants",
        "lowered graph",
    ),
    *("quantized layers", "products of several layers", "inputs quantized where they are made", "inputs quantized by kernels of their own"),
)


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE | PACKAGE | MODEL_DIR | CALIBRATION.safetensors | MODEL.onnx | MODEL.plan")],
    hashes: Annotated[bool, typer.Option("--sha256/--no-sha256", help="check the hash of every file of a bundle")] = True,
    as_json: JsonOption = False,
) -> None:
    """Show what is in it, what precision landed, and which plugins it needs; of a model its sizes and what engines need in memory."""
    if path.is_dir() and not (path / MANIFEST).exists():  # no bundle, which is shown without what these load
        from vditc.cli.device import is_package, package_facts, show_package
        from vditc.cli.inspect_model import is_model, model_facts, show_model

        if is_model(path):
            model = model_facts(path)
            if as_json:
                print(json.dumps(model))
            else:
                show_model(path, model)
            return
        if path.is_dir() and is_package(path):
            known = package_facts(path)
            if as_json:
                print(json.dumps(known))
            else:
                show_package(path, known)
            return
    if path.is_dir():
        bundle = Bundle.open(path, hashes=hashes)
        if as_json:
            print(bundle.manifest.to_text(), end="")
        else:
            for one in (bundle, *bundle.experts.values()):
                _show_bundle(one)
        return
    if path.suffix not in (".onnx", ".plan", ".safetensors") or not path.is_file():
        wanted = "a bundle, a model directory, a calibration, a .onnx or a .plan file"
        raise InputError(found=str(path), wanted=wanted, where="vditc inspect", fix="check the path")
    facts_of, show = _reader(path.suffix)
    facts = facts_of(path)
    if as_json:
        print(json.dumps(facts))
    else:
        show(path, facts)


def _reader(suffix: str) -> tuple[Callable[[Path], dict[str, Any]], Callable[[Path, dict[str, Any]], None]]:
    """What reads a file, and what shows what was read; a bundle is shown without what they load."""
    if suffix == ".safetensors":
        from vditc.cli.inspect_calibration import calibration_facts, show_calibration

        return calibration_facts, show_calibration
    from vditc.cli.inspect_file import graph_facts, plan_facts, show_graph, show_plan

    return (graph_facts, show_graph) if suffix == ".onnx" else (plan_facts, show_plan)


def _show_bundle(bundle: Bundle) -> None:
    """The manifest, for people."""
    m = bundle.manifest
    mb = 1e6
    summary = Table(title=f"{bundle.path}", show_header=False, title_justify="left")
    sizes = {n: e.bytes for n, e in m.files.items()}
    model = sum(v for n, v in sizes.items() if n.startswith("model.onnx"))
    s = m.sampling
    for name, value in {
        "model": f"{m.model['class']}, {m.model['weights'] / 1e6:.2f} M weights, digest {m.model['digest'][:16]}",
        "recipe": f"{m.recipe['name']} ({m.recipe['method']}): {m.recipe['description']}",
        "bits per weight": f"{m.mean_bits:.2f} on average; {len(m.layers)} layers quantized, {len(m.kept)} kept",
        "sampling": f"{s['steps']} steps, guidance {s['guidance_scale']}, latent {' x '.join(map(str, s['latent_shape']))}",
        **_expert(bundle),
        "profile": ", ".join(f"{a} {lo}:{best}:{hi}" for a, (lo, best, hi) in m.profile.items()),
        "model.onnx": f"{model / mb:.2f} MB, {model / (4 * m.model['weights']):.3f} of the float32 weights",
        "bundle": f"{sum(sizes.values()) / mb:.2f} MB in {len(sizes)} files",
        "quality": _quality(m.quality),
        "gate": "failed: " + ", ".join(m.gate["failed"]) if m.gate.get("failed") else f"passed {m.gate.get('thresholds')}",
    }.items():
        summary.add_row(name, value)
    console.print(summary)

    columns = ("target", "backend", "engine", "GEMMs", "fused attentions", "plugins", "memory (estimate)")
    targets = Table(*columns, title="targets", title_justify="left")
    for name, target in m.targets.items():
        engine = target["engine"]
        memory = gigabytes(target["memory"]["total"]) if "memory" in target else "-"
        built = f"{engine['status']}" + (f", {engine['plan_bytes'] / mb:.2f} MB" if "plan_bytes" in engine else "")
        gemms = "\n".join(f"{n} x {kind}" for kind, n in engine.get("gemms", {}).items())
        operators = "\n".join(f"{n} x {op}" for op, n in target.get("plugins", {}).get("operators", {}).items())
        plugins = operators or str(engine.get("plugins", "-"))
        targets.add_row(name, target["backend"], built, gemms or "-", str(engine.get("attentions", "-")), plugins, memory)
    console.print(targets)
    for name, target in m.targets.items():
        said = target.get("plugins", {})
        needs = (
            f"needs {said['library']} (sha256 {said['sha256'][:16]})"
            if "library" in said
            else f"no plugins: {said.get('reason', 'unknown')}"
        )
        lines = [needs]
        if target.get("build"):
            lines.append(f"is built with {BuildOptions.from_json(target['build'])}")
        if "device" in target:
            lines.append(f"built by {target['backend']} {target['engine'].get('version')} on {device_words(target['device'])}")
        lines += [rung_text(rung) for rung in target.get("fallback", ())]
        facts = engine_facts(bundle, name)
        lines += [f"{label}: {words if isinstance(words, str) else ', '.join(words)}" for label, words in facts.items() if label in _TOLD]
        for line in lines:
            console.print(f"{name} {line}", markup=False, highlight=False, soft_wrap=True)

    for timing in timings_of(bundle):
        for f in timing.of:
            speed = f"{f.median * 1e3:.2f} ms a step, {timing.clip_seconds(f):.3g} s a clip"
            console.print(f"{f.name} takes {speed} on {timing.device}", markup=False, highlight=False, soft_wrap=True)
    show_components(m.components)

    layers = Table("layers", "role", "weight", "activation", "bits", title="layers", title_justify="left")
    groups: dict[tuple[str, str, str, float], list[str]] = {}
    for name, layer in m.layers.items():
        groups.setdefault((layer["role"], layer["weight"], layer["activation"], layer["bits"]), []).append(name)
    for (role, weight, activation, bits), names in groups.items():
        layers.add_row(str(len(names)), role, weight, activation, f"{bits:.2f}")
    for name, layer in m.kept.items():
        layers.add_row(name, layer["role"], "float", layer["reason"], "16")
    console.print(layers)


def _expert(bundle: Bundle) -> dict[str, str]:
    """What the bundle, one of two experts, walks."""
    m = bundle.manifest
    part, first, steps = m.model["part"], m.sampling["schedule"].get("first", 0), m.sampling["steps"]
    if first:
        return {"expert": f"{part}, steps {first} to {first + steps - 1}"}
    then = [f"steps 0 to {e['first_step'] - 1}, then {name}" for name, e in m.experts.items()]
    return {"expert": f"{part}, {'; '.join(then)}"} if then else {}


def _quality(quality: Any) -> str:
    if quality is None:
        return "not measured"
    ours = quality["quantized"]
    numbers = {"PSNR dB": "psnr_db", "SSIM": "ssim", "digits read": "digit_accuracy", "directions right": "motion_accuracy"}
    return (
        ", ".join(f"{label} {ours[key]:.4g}" for label, key in numbers.items() if ours.get(key) is not None)
        + f" over {quality['clips']} clips"
    )
