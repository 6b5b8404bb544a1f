"""Collects `*.onnxtxt`; `textual` says how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual import check_run, runs


def pytest_collect_file(parent: pytest.Collector, file_path: Path) -> pytest.Collector | None:
    if file_path.suffix == ".onnxtxt":
        collector: pytest.Collector = OnnxTextFile.from_parent(parent, path=file_path)
        return collector
    return None


class OnnxTextFile(pytest.File):
    """One graph."""

    def collect(self) -> Iterator[pytest.Item]:
        for prefix, passes in runs(self.path.read_text()):
            yield PassTest.from_parent(self, name=f"{prefix}: {' '.join(passes)}", prefix=prefix, passes=passes)


class PassTest(pytest.Item):
    """One RUN line."""

    def __init__(self, *, prefix: str, passes: list[str], **kw: Any) -> None:
        super().__init__(**kw)
        self.prefix, self.passes = prefix, passes

    def runtest(self) -> None:
        check_run(self.path, self.prefix, self.passes)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name} {self.name}"
