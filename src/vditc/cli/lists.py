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
    """The model families that can be compiled: sizes that they take, named clips, blocks. Sizes are in frames and pixels."""
    from vditc.export.catalogue import families
    from vditc.export.not_exported import NOT_EXPORTED

    found = families()
    if as_json:
        print(json.dumps(found))
        return
    table = Table(show_lines=True)
    table.add_column("family")
    table.add_column("sizes", min_width=25)
    table.add_column("presets (frames, pixels)", no_wrap=True)
    table.add_column("blocks", no_wrap=True)
    for row in found:
        same: dict[str, list[str]] = {}
        for axis, rule in row["short"].items():
            same.setdefault(rule, []).append(axis)
        table.add_row(
            f"{row['family']}: {row['what']}\n{row['class']}",
            "\n".join(f"{', '.join(axes)}: {rule}" for rule, axes in same.items()) or f"unknown: {row['missing']}",
            "\n".join(f"{name}: {'x'.join(map(str, clip))}" for name, clip in row["presets"].items()),
            "\n".join(f"{count} {name}" for name, count in row["blocks"].items()),
        )
    console.print(table)
    console.print("Not exported:")
    for name, reason in NOT_EXPORTED.items():
        console.print(f"  {name}: {reason}")
