"""Runs ONNX text whose comments say which passes to run and what to find in the result.

# RUN: PASS PASS ...            checked by the `# CHECK` lines
# RUN[NAME]: PASS PASS ...      checked by the `# NAME` lines
# VDITC: {"timesteps": ...}     the graph's metadata
# REFUSED[NAME]: text           `text` must be in a refusal of that run; without such a line nothing may be refused
"""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import onnx_ir as ir
from filecheck.main import main as filecheck_main

from vditc.graph_passes.claims import CheckClaims
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


def runs(text: str) -> list[tuple[str, list[str]]]:
    """Prefix and passes of every RUN line."""
    found = []
    for line in text.splitlines():
        if line.startswith("# RUN"):
            head, _, passes = line.partition(":")
            found.append((head.removeprefix("# RUN").strip("[]") or "CHECK", passes.split()))
    return found


def check_run(path: Path, prefix: str, names: list[str]) -> None:
    """Run one line of a file; AssertionError unless the result is what it says."""
    text = path.read_text()
    refused = [x.partition(":")[2].strip() for x in text.splitlines() if x.startswith(f"# REFUSED[{prefix}]:")]
    model = ir.from_onnx_text(text)
    for about in (x.partition(":")[2].strip() for x in text.splitlines() if x.startswith("# VDITC:")):
        model.metadata_props["vditc"] = about
    _, facts = run_passes(model, [parse_pass(p) for p in names], Spec.canonical(), observers=[CheckClaims()])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    result = to_text(model)
    code, said = filecheck(path, prefix, result)
    assert code == 0, f"{said}\n--- the passes made\n{result}"
    reasons = [f"{r.node}: {r.reason}" for f in facts for r in f.refusals]
    assert len(reasons) == len(refused), reasons
    assert all(any(want in r for r in reasons) for want in refused), reasons
