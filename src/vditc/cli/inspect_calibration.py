"""`vditc inspect calibration.safetensors`: what was quantized how, and what calibration found of attention."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from vditc.calibration import Calibration
from vditc.cli.app import console


def calibration_facts(path: Path) -> dict[str, Any]:
    """Plain data; InputError when the file is no calibration."""
    c = Calibration.load(path)
    return {
        "file": path.name,
        "model": {"class": c.model_class, "digest": c.model_digest},
        "recipe": {"name": c.recipe, "digest": c.recipe_digest, "method": c.method},
        "steps": len(c.timesteps),
        "mean_bits": round(c.mean_bits, 4),
        "schemes": dict(Counter(str(layer.scheme) for layer in c.layers.values())),
        "kept": dict(Counter(k.reason for k in c.kept.values())),
        "attention_output": _rotations(c.statistics.get("attention_output")),
        "training": c.statistics.get("training"),
        "attention": {name: {**found.to_json(), "scheme": str(found.scheme)} for name, found in c.attention.items()},
    }


def show_calibration(path: Path, facts: dict[str, Any]) -> None:
    """The facts, for people."""
    summary = Table(title=f"{path}", show_header=False, title_justify="left")
    recipe = facts["recipe"]
    for name, value in {
        "model": f"{facts['model']['class']}, digest {facts['model']['digest'][:16]}",
        "recipe": f"{recipe['name']} ({recipe['method']}), {facts['steps']} steps",
        "bits per weight": f"{facts['mean_bits']:.2f} on average",
        "quantized": "\n".join(f"{count} layers {escape(scheme)}" for scheme, count in facts["schemes"].items()) or "nothing",
        "kept": "\n".join(f"{count} layers: {reason}" for reason, count in facts["kept"].items()) or "nothing",
        **({} if facts["attention_output"] is None else {"rotations behind attention": _told(facts["attention_output"])}),
        **({} if facts["training"] is None else {"trained": _loss(facts["training"]["loss"])}),
    }.items():
        summary.add_row(name, value)
    console.print(summary)
    if not facts["attention"]:
        return
    scheme = next(iter(facts["attention"].values()))["scheme"]
    columns = ("error", "worst step", "tokens", "max |q|", "max |k|", "smoothed", "max |v|")
    title = f"attention, {escape(scheme)}: measured"
    table = Table(Column("module", no_wrap=True), *columns, title=title, title_justify="left")
    for name, found in facts["attention"].items():
        step, worst = max(found["errors"], key=lambda pair: float(pair[1]))
        ranges = (f"{max(found['absmax'][part]):.3g}" for part in ("q", "k", "k_smooth", "v"))
        table.add_row(name, f"{found['error']:.2%}", f"{step}: {worst:.2%}", " x ".join(map(str, found["tokens"])), *ranges)
    console.print(table)


def _loss(history: list[tuple[int, float]]) -> str:
    """The first and the last of the losses."""
    (_, first), (iterations, last) = history[0], history[-1]
    return f"{iterations} iterations, loss {first:.3g} at first, {last:.3g} at last"


def _rotations(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """How many layers behind attention read what v has rotated, and why others do not; None where that was not asked."""
    return None if found is None else {"made_by_v": len(found["made_by_v"]), "explicit": dict(Counter(found["explicit"].values()))}


def _told(found: dict[str, Any]) -> str:
    return "\n".join([f"{found['made_by_v']} made by v", *(f"{count} when it runs: {why}" for why, count in found["explicit"].items())])
