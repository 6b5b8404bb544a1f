"""How fast a bundle is: that all contestants are measured, and what is refused. Speeds themselves are no test."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_model import save_tiny_model

from vditc.bundle import Bundle
from vditc.cli.app import main
from vditc.errors import InputError, VditcError
from vditc.pipeline.bench import FULL, BenchJob, Figures, bench
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.job import Job
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe
from vditc.runtimes.layer_times import OTHERS, kinds, modules
from vditc.target import Target


@pytest.fixture(scope="module")
def bundle(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    recipe = dataclasses.replace(Recipe.load("w8a8"), gate=Gate())
    folder, prompts = tmp_path_factory.mktemp("bench"), ("a 7 moving left",)
    job = Job(model_dir=tiny_dir, recipe=recipe, targets=(Target.load("cpu"),), out=folder / "t.bundle", prompts=prompts, clips=1)
    return compile_bundle(job, SILENT)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["vditc", *words])
    with pytest.raises(SystemExit) as done:
        main()
    said = capsys.readouterr()
    return int(done.value.code or 0), said.out, said.err


def test_against_the_full_precision_model(
    bundle: Bundle, tiny_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--against", str(tiny_dir), "--runs", "3", "--warmup", "1", "--layers", "2", "--json"]
    code, out, _ = run(capsys, monkeypatch, "bench", str(bundle.path), *words)
    found = json.loads(out)
    first, second = found["of"]
    assert (code, first["name"], second["name"], found["runs"]) == (0, FULL, "onnxruntime", 3)
    assert first["ratio"] == 1 and second["ratio"] == pytest.approx(first["step_seconds"] / second["step_seconds"])
    for row in found["of"]:
        assert 0 < row["step_seconds_p10"] <= row["step_seconds"] <= row["step_seconds_p90"] < 60
        assert row["peak_rss_bytes"] > 30e6 and row["open_seconds"] > 0
        # every linear of the blocks, in one row for all blocks
        assert {"blocks.*.attn1.to_q", "blocks.*.ffn.net.0.proj"} <= set(row["layers"])
        assert not any(re.search(r"\.\d+\.attn", name) for name in row["layers"])
        assert sum(row["layers"].values()) < 20 * row["step_seconds"]


def test_apart(bundle: Bundle) -> None:
    """One process is gone before the next begins; a bundle's target for the CPU runs the portable graph as well."""
    found = bench(BenchJob(bundle=bundle, backends=("onnxruntime", "cpu"), runs=1, warmup=0, layers=0, apart=True), SILENT)
    assert [(figures.name, len(figures.step_seconds), figures.layers) for figures in found] == [("onnxruntime", 1, None), ("cpu", 1, None)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {"frame": 3}}, "found sizes of frame; wanted batch, frames"),
        ({"sizes": {"height": 7}}, "--sizes: found height of 7"),
        ({"backends": ("rtx-ada",)}, "found --backend rtx-ada; wanted onnxruntime, cpu"),
    ],
)
def test_what_cannot_run(bundle: Bundle, change: dict[str, Any], message: str) -> None:
    with pytest.raises(VditcError, match=message):
        bench(BenchJob(bundle=bundle, **change), SILENT)


def test_another_model(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wanted the bundle's model [0-9a-f]{16}"):
        bench(BenchJob(bundle=bundle, against=save_tiny_model(tmp_path, seed=9)), SILENT)


def test_a_process_that_dies(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vditc.pipeline.bench.sys.executable", "/bin/false")
    with pytest.raises(VditcError, match=r"found a process that ended with 1 \(it wrote nothing\).*measure --apart"):
        bench(BenchJob(bundle=bundle), SILENT)


def test_figures_are_medians() -> None:
    slow = Figures(name="a", step_seconds=(1.0, 9.0, 2.0), open_seconds=0, peak_rss_bytes=1, layers=None)
    fast = dataclasses.replace(slow, step_seconds=(0.5,))
    row = fast.to_json(slow)
    assert (row["step_seconds"], row["ratio"], row["step_seconds_p90"]) == (0.5, 4.0, 0.5)


def test_times_by_module() -> None:
    kernels = [("blocks.0.attn1.to_q/MatMul", 2.0), ("blocks.11.attn1.to_q/MatMul+blocks.11.attn1.to_k/MatMul", 1.0), ("Memcpy", 0.5)]
    found = modules([*kernels, ("blocks.0.attn1.to_q/Div", 3.0)])
    assert list(found.items()) == [("blocks.0.attn1.to_q", 5.0), ("blocks.11.attn1.to_q", 1.0), (OTHERS, 0.5)]
    assert kinds(found) == {"blocks.*.attn1.to_q": 6.0, OTHERS: 0.5}
