"""docs/graph_passes.md says what there is, and its example is a pass that works."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual import check_run, runs

import vditc.graph_passes
from vditc.graph_passes.catalogue import catalogue, markdown_table
from vditc.graph_passes.core import PASSES, Pass
from vditc.graph_passes.properties import PROPERTIES
from vditc.graph_passes.tolerances import KINDS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "graph_passes.md").read_text()


def test_the_list_of_passes_is_what_there_is() -> None:
    table = re.search(r"a test compares them -->\n(.*?)<!-- end", TEXT, re.DOTALL)
    assert table is not None and table[1] == markdown_table(), "replace the table by the output of `vditc passes --markdown`"


def test_properties_and_kinds_are_explained() -> None:
    for name, one in PROPERTIES.items():
        assert f"| `{name}` | {one.means} |" in TEXT
    for kind, meaning in KINDS.items():
        assert f"| `{kind}` | {meaning} |" in TEXT


def test_every_file_with_a_pass_is_known_to_the_command() -> None:
    before = set(PASSES)
    for module in pkgutil.iter_modules(vditc.graph_passes.__path__):
        importlib.import_module(f"vditc.graph_passes.{module.name}")
    assert set(PASSES) == before, "import it in pipelines.py"


def test_every_pass_explains_itself() -> None:
    for info in catalogue():
        assert "->" in info.example, f"{info.name}: its module's docstring shows no graph before and after"
        assert info.what.endswith("."), info.name
        made = PASSES[info.name]
        assert made.__module__.rsplit(".", 1)[1] == info.name.replace("-", "_")
        assert issubclass(made, Pass)


@pytest.fixture
def example() -> Iterator[None]:
    """The pass of the walk-through, as if it were a file."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    before, module = dict(PASSES), types.ModuleType("vditc.graph_passes.drop_unit_products")
    sys.modules[module.__name__] = module
    exec(compile(code, "docs/graph_passes.md", "exec"), module.__dict__)
    yield
    del sys.modules[module.__name__]
    PASSES.clear()
    PASSES.update(before)


def check(folder: Path, text: str) -> list[str]:
    """Run a text as a file of this folder is run; the prefixes of its runs."""
    path = folder / "example.onnxtxt"
    path.write_text(text)
    for prefix, passes in runs(text):
        check_run(path, prefix, passes)
    return [prefix for prefix, _ in runs(text)]


def test_the_example_works(tmp_path: Path, example: None) -> None:
    (graph,) = re.findall(r"```\n(# RUN.*?)```", TEXT, re.DOTALL)
    assert check(tmp_path, graph) == ["CHECK", "KEEP"]
    assert "drop-unit-products{slack=0.0}" in markdown_table()


def test_the_example_can_fail(tmp_path: Path, example: None) -> None:
    (graph,) = re.findall(r"```\n(# RUN.*?)```", TEXT, re.DOTALL)
    with pytest.raises(AssertionError):
        check(tmp_path, graph.replace("# CHECK: b = Relu (x)", "# CHECK: b = Relu (a)"))
