"""docs/graph_passes/folds.md quotes what `benchmarks/fold_value.py` measured, and what it counts is what folding comes to."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from vditc.model_dir import ModelDir

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, which import each other by plain name

import fold_value
import random_graphs

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURED: list[dict[str, Any]] = json.loads((REPOSITORY / "docs/measurements/fold_value.json").read_text())["rows"]
# (model, kind of layers): a balance or a divisor stays here, and folds.md says why.
STAYS = {
    ("hunyuan-13b", "qkv"),
    ("hunyuan-13b", "fc1"),
    ("hunyuan-13b", "out"),
}
SIZES = {"batch": 2, "frames": 21, "height": 16, "width": 16, "text_tokens": 64}


def test_the_documented_table_is_the_measured_one() -> None:
    text = (REPOSITORY / "docs/graph_passes/folds.md").read_text()
    table = re.search(r"a test compares them -->\n(.*?)<!-- end", text, re.DOTALL)
    assert table is not None and table[1] == fold_value.table(MEASURED), "replace the table by the output of fold_value.py --table"


def test_what_ought_to_fold_folds_in_every_family() -> None:
    left = {(row["model"], kind) for row in MEASURED for kind in fold_value.THEORY if row["after"]["passes"]["elementwise"].get(kind)}
    assert left == STAYS
    assert all(row["relative_l2"] < 1e-2 for row in MEASURED)


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
    assert before["passes"]["elementwise"] == {kind: each * n for kind, n in inputs.items()}
    assert before["passes"]["rotation"] == after["passes"]["rotation"] == ({k: 2 * n for k, n in inputs.items()} if parts.rotation else {})
    # Behind GELU a shift folds nowhere; the projected text is behind none of the bias-free products either.
    stay = {kind: n for kind, n in after["passes"]["elementwise"].items() if n}
    assert not stay.keys() & set(fold_value.THEORY)
    assert stay["fc2"] <= 2 * each
    wide = 2 * 21 * 8 * 8  # clips, frames, patches of 2 x 2
    assert before["bytes"]["elementwise"]["qkv"] == each * 2 * 2 * 2 * wide * 128
