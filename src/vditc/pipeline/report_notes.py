"""What becomes known of a bundle after it was compiled: kept in its folder `report`, which is not hashed, for its page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vditc.bundle import Bundle, Manifest
from vditc.errors import InputError
from vditc.files import write_text
from vditc.timing import Timing

PAGE = "report/index.html"
TIMINGS = "report/timing"  # a file for each machine and each choice of sizes
SENSITIVITY = "report/sensitivity.json"


def check_timing(bundle: Bundle, timing: Timing) -> None:
    """InputError for what `vditc bench` measured of another bundle."""
    of = bundle.manifest
    if (timing.model_digest, timing.recipe_digest) != (of.model["digest"], of.recipe["digest"]):
        raise InputError(
            found=f"times of {timing.model} {timing.model_digest[:12]}…, recipe {timing.recipe} ({timing.recipe_digest[:12]}…)",
            wanted=_words(of),
            where=str(bundle.path),
            fix="give times that `vditc bench` measured of this bundle",
        )


def add_timing(bundle: Bundle, timing: Timing) -> None:
    """Keep it, in place of what the same machine measured of the same sizes; InputError as above."""
    check_timing(bundle, timing)
    timing.write(bundle.path / TIMINGS / f"{timing.name}.json")


def timings_of(bundle: Bundle) -> list[Timing]:
    """By name of the machine; InputError for a file that is none."""
    return [Timing.read(path) for path in sorted((bundle.path / TIMINGS).glob("*.json"))]


def analysed(bundles: Sequence[Bundle], file: Path) -> list[Bundle]:
    """Bundles and experts whose model and recipe `vditc sensitivity` has analysed in `file`; InputError where there is none."""
    said = _read(file)
    every = [one for bundle in bundles for one in (bundle, *bundle.experts.values())]
    fitting = [
        b for b in every if (b.manifest.model["digest"], b.manifest.recipe["digest"]) == (said["model_digest"], said["recipe_digest"])
    ]
    if not fitting:
        raise InputError(
            found=f"the sensitivity of {said['model_class']} {said['model_digest'][:12]}… to recipe {said['recipe']}",
            wanted=" or ".join(_words(b.manifest) for b in every),
            where=str(file),
            fix="analyse the model and the recipe of the bundle",
        )
    return fitting


def add_sensitivity(bundles: Sequence[Bundle], file: Path) -> None:
    """Keep it; InputError as above."""
    for bundle in analysed(bundles, file):
        write_text(bundle.path / SENSITIVITY, file.read_text())


def costs_of(bundle: Bundle) -> Mapping[str, float]:
    """Layer -> relative squared error of the prediction when it alone is quantized; {} where nobody analysed the bundle."""
    file = bundle.path / SENSITIVITY
    costs: Mapping[str, float] = _read(file)["layers"] if file.is_file() else {}
    return costs


def check_report(bundle: Bundle) -> None:
    """InputError unless something can be written into the bundle's report."""
    page = bundle.path / PAGE
    there = next(p for p in (page, *page.parents) if p.exists())
    if not os.access(there, os.W_OK):
        raise InputError(
            found=f"{there}, which cannot be written to",
            wanted="a bundle that a report can be added to",
            where="--report",
            fix="write the figures elsewhere with -o, and give them to `vditc report --timing` where the bundle can be written to",
        )


def _words(of: Manifest) -> str:
    return f"{of.model['class']} {of.model['digest'][:12]}…, recipe {of.recipe['name']} ({of.recipe['digest'][:12]}…)"


def _read(file: Path) -> dict[str, Any]:
    """What `vditc sensitivity` wrote."""
    try:
        data: dict[str, Any] = json.loads(file.read_text())
        if data["schema"] != 1:
            raise ValueError(f"schema {data['schema']}")
        layers = {str(row["layer"]): float(row["error"]) for row in data["layers"]}
        return {**{name: str(data[name]) for name in ("model_class", "model_digest", "recipe", "recipe_digest")}, "layers": layers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            found=f"no costs of layers ({error!r})", wanted="what `vditc sensitivity` writes", where=str(file), fix="check the path"
        ) from error
