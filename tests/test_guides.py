"""Commands of the guides, executed as they stand on models that are small enough.

README.md, docs/edge.md, docs/datacenter.md (tests/pipeline/test_engine_jobs.py) and docs/sampling.md (tests/pipeline/test_solvers.py) have
tests of their own.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command import vditc
from tiny_model import SAMPLING, save_tiny_model

from vditc.bundle import Bundle
from vditc.errors import VditcError

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Code of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Words of every `vditc` line of its shell blocks, comments removed."""
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    assert all(words[0] == "vditc" for words in lines if words)
    return [words[1:] for words in lines if words]


def ran(words: list[str], *extra: str) -> None:
    run = vditc(*words, *extra)
    assert run.code == 0, f"vditc {' '.join(words)}\n{run.stderr}"


@pytest.mark.slow
def test_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = save_tiny_model(tmp_path / "model")
    (model / "sampling.json").write_text(json.dumps({**SAMPLING, "semantics": "digits"}))
    monkeypatch.chdir(tmp_path)
    (compiled,) = commands("engines.md")
    ran(["model" if w == "MODEL_DIR" else w for w in compiled], "--no-gate", "--clips", "1")
    targets = Bundle.open(tmp_path / "wan.bundle").manifest.targets
    assert {name: about["build"] for name, about in targets.items()} == {
        "rtx-ada": {"weight-streaming": "auto"},
        "h100": {"weight-streaming": "auto", "level": 5, "workspace": 8 << 30},
    }


@pytest.mark.slow
def test_pipelines_and_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/pipelines.md, and docs/python.md with that bundle: the published checkpoint is a small one, and clips are as small."""
    pytest.importorskip("tensorrt_rtx")
    import diffusers
    from tiny_pipeline import save_tiny_wan

    save_tiny_wan(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat bakes a cake\n")
    compiled, played = commands("pipelines.md")
    sizes = ["--steps", "2", "--size", "5x32x48", "--profile", "frames=3", "--clips", "1", "--no-gate", "--keep-time-path"]
    ran(["model" if w == "MODEL_DIR" else w for w in compiled], *sizes)
    ran(played)
    assert (tmp_path / "clip.mp4").stat().st_size > 0
    real = diffusers.WanPipeline.from_pretrained

    def small(name: str, **parts: Any) -> Any:
        assert name == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        pipe = real(tmp_path / "model", **parts)
        pipe.set_progress_bar_config(disable=True)
        return functools.partial(pipe, height=32, width=48, num_frames=5)

    monkeypatch.setattr(diffusers.WanPipeline, "from_pretrained", small)
    code, *_ = blocks("python.md", "python")  # the others: tests/pipeline/test_sampler.py
    found: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), found)
    assert found["frames"].shape == (5, 32, 48, 3)
    with pytest.raises(VditcError, match="a transformer that was closed"):
        found["transformer"](None)


def test_messages_of_the_troubleshooting_page_are_those_of_the_program() -> None:
    """What stands between the dots of each row stands in the source."""
    page = (DOCS / "troubleshooting.md").read_text().partition("## Messages of vditc")[2]
    rows = re.findall(r"^\| `([^`]*)`", page, re.MULTILINE)
    source = "".join(path.read_text() for folder in ("src/vditc", "runtimes") for path in (ROOT / folder).rglob("*.py"))
    assert len(rows) >= 10
    for row in rows:
        for phrase in re.split(r"\s*(?:(?:sm_)?\.\.\.?|; wanted|;|^found|: )\s*", row):
            assert phrase in source, (row, phrase)


def test_every_reported_problem_has_a_row() -> None:
    """37 of them, each with where it was reported and what vditc does; pages that rows point to are there."""
    page = (DOCS / "troubleshooting.md").read_text().partition("## Messages of vditc")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ") and not line.startswith("| symptom")]
    assert len(rows) == 37 and all(len(row) == 3 for row in rows)
    assert all(re.search(r"#\d+", row[1]) and len(row[2]) > 20 for row in rows)
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", page):
        assert (DOCS / target).is_file(), target
