"""`vditc recipes | targets | models`: what there is."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from vditc.cli.app import app, console
from vditc.cli.options import JsonOption
from vditc.recipe import Recipe, builtin_recipes
from vditc.target import Target, builtin_targets


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows as a table, or as JSON."""
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(", ".join(v) if isinstance(v, list | tuple) else str(v) for v in row.values()))
    console.print(table)


@app.command("recipes")
def recipes_command(as_json: JsonOption = False) -> None:
    """The built-in recipes."""
    found = [Recipe.load(name) for name in builtin_recipes()]
    show([{"recipe": r.name, "method": r.method, "what": r.description} for r in found], as_json)


@app.command("targets")
def targets_command(as_json: JsonOption = False) -> None:
    """The built-in targets."""
    found = [Target.load(name) for name in builtin_targets()]
    rows = [
        {"target": t.name, "arch": t.arch, "builds with": t.runtime, "where": t.builds, "low precision": t.low_precision} for t in found
    ]
    show(rows, as_json)


@app.command("models")
def models_command(as_json: JsonOption = False) -> None:
    """The model families that can be compiled."""
    from vditc.export.adapters.registry import adapters

    found = adapters().values()
    show([{"family": a.name, "class": a.model_class, "what": a.description} for a in found], as_json)
