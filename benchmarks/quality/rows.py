"""The rows of the study, read from rows.toml; every row becomes a recipe file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vditc.errors import InputError
from vditc.files import write_text
from vditc.recipe import Recipe, builtin_recipes
from vditc.toml_data import Table

FILE = Path(__file__).with_name("rows.toml")
FULL_PRECISION = "full-precision"  # a row that is always measured
BITS = re.compile(r"w([3468])a([3468]|16)")
RECIPE = """\
schema = 1
name = "{name}"
description = "{method} at {bits}: a row of the quality study"
method = "{method}"

[settings]
{settings}
[calibration]
prompts = {prompts}

[[rules]]
match = ["modulation", "patch_embed", "*_embed.*", "head"]
keep = "in every row"

[[rules]]
match = ["*"]
weight = {weight}
{activation}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe on one model; without a recipe the model in full precision."""

    model: str
    name: str
    method: str | None = None  # with `bits`
    bits: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    symmetric: bool = True  # weights
    prompts: int = 4  # sampled for the calibration
    recipe: str | None = None  # instead: a built-in recipe, or a file

    def write_recipe(self, folder: Path) -> str:
        """What `vditc calibrate --recipe` takes: the recipe that the row names, or a file that is written into `folder`."""
        if self.recipe is not None:
            return self.recipe
        assert self.method is not None and self.bits is not None
        path = folder / f"{self.name}.toml"
        write_text(path, recipe_text(self, self.method, self.bits))
        return str(path)


def recipe_text(row: Row, method: str, bits: str) -> str:
    """A recipe (`vditc.recipe`) that quantizes the same layers for every method: all linears of the blocks."""
    found = BITS.fullmatch(bits)
    if found is None:
        raise InputError(
            found=f"bits = {bits!r}",
            wanted="w3, w4, w6 or w8 with a3, a4, a6, a8 or a16",
            where=str(FILE),
            fix="correct it, or give a recipe",
        )
    weight, activation = (int(n) for n in found.groups())
    floating = activation == 16
    share = 'granularity = "per_group", group_size = 64' if floating else 'granularity = "per_channel"'
    grid = "" if row.symmetric else ", symmetric = false"
    tokens = f'activation = {{ qtype = "int{activation}", granularity = "per_token", dynamic = true }}\n'
    return RECIPE.format(
        name=row.name,
        method=method,
        bits=bits,
        settings="".join(f"{key} = {json.dumps(value)}\n" for key, value in row.settings.items()),  # JSON's numbers and strings are TOML's
        prompts=row.prompts,
        weight=f'{{ qtype = "int{weight}", {share}{grid} }}',
        activation="" if floating else tokens,
    )


def load_rows(path: Path = FILE) -> list[Row]:
    """All rows, model by model, each model in full precision first; InputError for what is wrong in the file."""
    table = Table.load(path)
    models = table.strings("models")
    parsed = [group for t in table.tables("rows") for group in _group(t, path)]
    table.done()
    rows = []
    for model in models:
        own = [row for row, only in parsed if not only or model in only]
        rows += [Row(model=model, name=FULL_PRECISION), *(dataclasses.replace(row, model=model) for row in own)]
    keys = [(row.model, row.name) for row in rows]
    if twice := sorted({name for model, name in keys if keys.count((model, name)) > 1}):
        raise InputError(found=f"rows {', '.join(twice)} twice", wanted="a name of its own for each", where=str(path), fix="give it a name")
    if strangers := sorted({m for _, only in parsed for m in only} - set(models)):
        raise InputError(found=f"models {', '.join(strangers)}", wanted=", ".join(models), where=str(path), fix="correct it")
    return rows


def _group(table: Table, path: Path) -> Iterable[tuple[Row, tuple[str, ...]]]:
    """Rows of one line, without their model, and the models that it is limited to."""
    name, recipe, only = table.take("name", str), table.take("recipe", str), table.strings("models")
    methods, bits = _one_or_more(table, "method"), _one_or_more(table, "bits")
    own: dict[str, Any] = {}
    for key, kind in (("settings", dict), ("symmetric", bool), ("prompts", int)):
        if (value := table.take(key, kind)) is not None:
            own[key] = value
    table.done()
    if (recipe is None) != bool(methods and bits) or (recipe and (methods or bits or own)) or (name and len(methods) * len(bits) > 1):
        raise InputError(
            found=str(table.data), wanted="method and bits, or recipe; name only for a single row", where=table.where, fix="correct it"
        )
    if recipe is not None:
        known = recipe if recipe in builtin_recipes() else str(path.parent / recipe)
        yield Row(model="", name=name or Recipe.load(known).name, recipe=known), only
    ending = "" if own.get("symmetric", True) else "-asymmetric"
    for bit, method in itertools.product(bits, methods):
        yield Row(model="", name=name or f"{method}-{bit}{ending}", method=method, bits=bit, **own), only


def _one_or_more(table: Table, key: str) -> tuple[str, ...]:
    if isinstance(table.data.get(key), str):
        return (table.need(key, str),)
    return table.strings(key)
