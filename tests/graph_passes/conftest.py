"""Collects `*.onnxtxt`: ONNX text whose comments say which passes to run and what to find in the result.

# RUN: PASS PASS ...            checked by the `# CHECK` lines
# RUN[NAME]: PASS PASS ...      checked by the `# NAME` lines
# VDITC: {"timesteps": ...}      the graph's metadata
# REFUSED[NAME]: text           `text` must be in a refusal of that run; without such a line nothing may be refused
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from filecheck.main import main as filecheck_main

from vditc.graph_passes.core import run_passes
from vditc.graph_passes.pipelines import parse_pass
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.text import to_text


def filecheck(checks: Path, prefix: str, text: str) -> tuple[int, str]:
    """Exit status and messages of `filecheck CHECKS --check-prefix PREFIX`, run in this process."""
    said = io.StringIO()
    with tempfile.NamedTemporaryFile("w", suffix=".onnxtxt") as f, redirect_stdout(said), redirect_stderr(said):
        f.write(text)
        f.flush()
        try:
            filecheck_main(["filecheck", str(checks), "--check-prefix", prefix, "--input-file", f.name])
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    raise AssertionError("filecheck did not say how it ended")


def pytest_collect_file(parent: pytest.Collector, file_path: Path) -> pytest.Collector | None:
    if file_path.suffix == ".onnxtxt":
        collector: pytest.Collector = OnnxTextFile.from_parent(parent, path=file_path)
        return collector
    return None


class OnnxTextFile(pytest.File):
    """One graph."""

    def collect(self) -> Iterator[pytest.Item]:
        lines = self.path.read_text().splitlines()
        for line in lines:
            if line.startswith("# RUN"):
                head, _, passes = line.partition(":")
                prefix = head.removeprefix("# RUN").strip("[]") or "CHECK"
                about = next((x.partition(":")[2].strip() for x in lines if x.startswith("# VDITC:")), None)
                refused = [x.partition(":")[2].strip() for x in lines if x.startswith(f"# REFUSED[{prefix}]:")]
                name = f"{prefix}: {passes.strip()}"
                yield PassTest.from_parent(self, name=name, prefix=prefix, passes=passes.split(), refused=refused, about=about)


class PassTest(pytest.Item):
    """One RUN line."""

    def __init__(self, *, prefix: str, passes: list[str], refused: list[str], about: str | None, **kw: Any) -> None:
        super().__init__(**kw)
        self.prefix, self.passes, self.refused, self.about = prefix, passes, refused, about

    def runtest(self) -> None:
        model = ir.from_onnx_text(self.path.read_text())
        if self.about is not None:
            model.metadata_props["vditc"] = self.about
        _, facts = run_passes(model, [parse_pass(p) for p in self.passes], Spec.canonical())
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        text = to_text(model)
        code, said = filecheck(self.path, self.prefix, text)
        assert code == 0, f"{said}\n--- the passes made\n{text}"
        reasons = [f"{r.node}: {r.reason}" for f in facts for r in f.refusals]
        assert len(reasons) == len(self.refused), reasons
        assert all(any(want in r for r in reasons) for want in self.refused), reasons

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name} {self.name}"
