"""docs/graph_passes/folds.md quotes what `benchmarks/fold_value.py` measured, and what it counts is what folding comes to."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import family_checks as checks
import pytest
from family_case import Case, cases

from vditc.calibration import Calibration
from vditc.export.stage import traced_graph
from vditc.model_dir import ModelDir
from vditc.recipe import Recipe

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, which import each other by plain name

import fold_value
import random_graphs

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURED: list[dict[str, Any]] = json.loads((REPOSITORY / "docs/measurements/fold_value.json").read_text())["rows"]
ROTATE = {form for form in fold_value.FORM_NAMES if random_graphs.FORMS[form].rotation}
# (method, model, kind of layers): a balance or a divisor stays here, and folds.md says why.
STAYS = {(form, "hunyuan-13b", "out") for form in fold_value.FORM_NAMES if form not in ROTATE}
SIZES = {"batch": 2, "frames": 21, "height": 16, "width": 16, "text_tokens": 64}


def test_the_documented_table_is_the_measured_one() -> None:
    text = (REPOSITORY / "docs/graph_passes/folds.md").read_text()
    table = re.search(r"a test compares them -->\n(.*?)<!-- end", text, re.DOTALL)
    assert table is not None and table[1] == fold_value.table(MEASURED), "replace the table by the output of fold_value.py --table"


def test_what_ought_to_fold_folds_in_every_family() -> None:
    left = {
        (row["form"], row["model"], kind)
        for row in MEASURED
        for kind in fold_value.THEORY
        if row["after"]["passes"]["elementwise"].get(kind)
    }
    assert left == STAYS
    assert {(row["form"], row["model"]) for row in MEASURED} == set(itertools.product(fold_value.FORM_NAMES, fold_value.CASES.values()))
    for row in MEASURED:
        before = {what for what, found in row["before"]["passes"].items() if "out" in found and what != "behind"}
        assert before == (set() if row["form"] in ROTATE else {"elementwise"}), row["model"]  # v makes what rotating methods put there
    assert all(row["relative_l2"] < 1e-2 for row in MEASURED)


def random_calibration(source: ModelDir, form: str) -> Calibration:
    adapter, parts = fold_value.adapter_of(source), random_graphs.FORMS[form]
    same = random_graphs.groups(traced_graph(source, adapter), source)
    return random_graphs.random_calibration(source, adapter, Recipe.load(parts.recipe), parts, same, 4, False)


# Tracing takes seconds; HunyuanVideo has streams that attend together, and single blocks.
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c.name == "wan" else pytest.mark.slow) for c in cases() if c.name in fold_value.CASES],
    ids=str,
)
def test_transforms_are_where_calibration_has_them(case: Case, tmp_path: Path) -> None:
    """One balance for what calibration makes a group of, and rotations made by the v layers that calibration would choose."""
    p = checks.PreparedCase.make(case, tmp_path)
    ours, wanted = random_calibration(p.source, "ViDiT-Q w4a8"), p.rotated(checks.W8A8)
    behind = {name for name, layer in ours.layers.items() if layer.transform.made_by}
    assert behind
    for name, layer in ours.layers.items():
        other = wanted.layers[name]
        assert (layer.transform.made_by, layer.transform.rotation) == (other.transform.made_by, other.transform.rotation), name
        given = [None if o is None else (o.rotation, o.start, len(o.balance)) for o in (layer.output, other.output)]
        assert given[0] == given[1], name
    groups: dict[bytes, set[str]] = {}
    for name, layer in random_calibration(p.source, "SmoothQuant w8a8").layers.items():
        groups.setdefault(layer.transform.input_key(), set()).add(p.groups[name])
        assert not layer.transform.made_by and layer.output is None
    assert all(len(tensors) == 1 for tensors in groups.values())
    assert len(groups) == len(set().union(*groups.values()))


@pytest.mark.parametrize("form", fold_value.FORM_NAMES)
def test_counts_of_a_small_model(tiny: ModelDir, form: str) -> None:
    """Two blocks: q, k, v and both projections once a block, the text once for both where every block wants the same."""
    parts = random_graphs.FORMS[form]
    roles = fold_value.adapter_of(tiny).layer_roles(tiny)
    model = random_graphs.random_graph(tiny, parts, codes=False)
    fold_value.prepared(model)
    before = fold_value.counted(model, SIZES, roles, {"blocks": 1})
    fold_value.folded(model)
    after = fold_value.counted(model, SIZES, roles, {"blocks": 1})
    steps = form in ("static w8a8", "QVD w8a8")
    each = int(parts.shift) + int(parts.balance or parts.rotation) + int(steps)
    text = 2 if parts.balance else 1
    inputs = {"qkv": 2, "out": 4, "cross q": 2, "text kv": text, "fc1": 2, "fc2": 2}
    assert before["inputs"] == after["inputs"] == inputs
    made = {"out"} if parts.rotation else set()  # by v, before it was rounded
    assert before["passes"]["elementwise"] == {kind: each * n for kind, n in inputs.items() if kind not in made}
    rotated = {kind: 2 * n for kind, n in inputs.items() if kind not in made} if parts.rotation else {}
    assert before["passes"]["rotation"] == after["passes"]["rotation"] == rotated
    # Behind GELU a shift folds nowhere; the projected text is behind none of the bias-free products either.
    stay = {kind: n for kind, n in after["passes"]["elementwise"].items() if n}
    assert not stay.keys() & set(fold_value.THEORY)
    assert stay["fc2"] <= 2 * each
    wide = 2 * 21 * 8 * 8  # clips, frames, patches of 2 x 2
    assert before["bytes"]["elementwise"]["qkv"] == each * 2 * 2 * 2 * wide * 128
