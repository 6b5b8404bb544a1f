"""`vditc recipes | targets | models`: what there is."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vditc.cli.app import app, console
from vditc.cli.options import JsonOption
from vditc.recipe import Recipe, builtin_recipes
from vditc.recipe_distance import nearest
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
def targets_command(
    name: Annotated[str | None, typer.Argument(help="all about this target, or about a .toml file")] = None, as_json: JsonOption = False
) -> None:
    """The built-in targets; of one of them its products, which recipes run, and every quirk with its source."""
    if name is not None:
        facts = target_facts(Target.load(name))
        if as_json:
            print(json.dumps(facts))
        else:
            show_target(facts)
        return
    found = [Target.load(name) for name in builtin_targets()]
    rows = [
        {"target": t.name, "arch": t.arch, "builds with": t.runtime, "where": t.builds, "low precision": t.low_precision} for t in found
    ]
    show(rows, as_json)


def target_facts(target: Target) -> dict[str, Any]:
    """Plain data: what the target's file says, and what follows for the built-in recipes."""
    recipes = [Recipe.load(known) for known in builtin_recipes()]
    return {
        "target": target.name,
        "description": target.description,
        "arch": list(target.arch),
        "backend": target.backend,
        "runtime": target.runtime,
        "builds": target.builds,
        "compute": [target.compute, *(c for c in target.computes if c != target.compute)],
        "opsets": list(target.opsets),
        "opset": target.opset,
        "low_precision": target.low_precision,
        "products": [str(row) for row in target.products],
        "recipes": {r.name: "runs" if (best := instead_of(r, target)) is None else f"instead: {best}" for r in recipes},
        "quirks": [{"name": q.name, "says": q.says, "source": q.source, "follows": q.effects} for q in target.quirks],
    }


def instead_of(recipe: Recipe, target: Target) -> str | None:
    """The nearest recipe that runs, "none" without one; None if `recipe` runs."""
    if target.runs(recipe):
        return None
    found = nearest(recipe, target.runs)
    return "none" if found is None else found[0].name


def show_target(facts: dict[str, Any]) -> None:
    """The facts, for people."""
    table = Table(title=f"{facts['target']}: {facts['description']}", show_header=False, title_justify="left")
    for key in ("arch", "backend", "runtime", "builds", "compute", "low_precision"):
        table.add_row(key.replace("_", " "), ", ".join(facts[key]) if isinstance(facts[key], list) else facts[key])
    table.add_row("opsets", f"{' to '.join(map(str, facts['opsets']))}; lowering writes {facts['opset']}")
    table.add_row("products", "\n".join(escape(row) for row in facts["products"]))
    table.add_row("recipes", "\n".join(f"{name}: {what}" for name, what in facts["recipes"].items()))
    console.print(table)
    for quirk in facts["quirks"]:
        lines = [f"{quirk['name']}: {quirk['says']}", f"    source: {quirk['source']}", *(f"    {line}" for line in quirk["follows"])]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


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
