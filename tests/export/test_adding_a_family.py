"""The family that docs/adding_a_model.md adds in one file passes what every family must pass."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import family_checks as checks
import pytest
from family_case import Case

import vditc.export.adapters as package
from vditc.export.adapters.registry import adapters

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_model.md"
SHAPES = (
    {"batch": 2, "frames": 3, "height": 8, "width": 10, "text_tokens": 16},
    {"batch": 1, "frames": 1, "height": 2, "width": 14, "text_tokens": 1},
    {"batch": 3, "frames": 5, "height": 12, "width": 6, "text_tokens": 7},
)


def test_a_family_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "foo.py").write_text(code)
    assert "FooTransformer3DModel" not in adapters()
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, "vditc.export.adapters.foo", None)
    monkeypatch.delitem(sys.modules, "vditc.export.adapters.foo")
    assert adapters()["FooTransformer3DModel"].name == "foo"

    config = {"_class_name": "FooTransformer3DModel", "channels": 4, "width": 64, "text_width": 32, "num_blocks": 5}
    case = Case(name="foo", config=config, shapes=SHAPES)
    prepared = checks.PreparedCase.make(case, tmp_path / "model")
    checks.check_roles(prepared)
    checks.check_patches(prepared)
    checks.check_streamed(prepared)
    checks.check_float(prepared)
    checks.check_quantized(prepared, checks.W8A8)
    checks.check_stamped(prepared)
