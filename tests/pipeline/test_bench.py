"""How fast a bundle is: that all contestants are measured, and what is refused. Speeds themselves are no test."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cuda_stub import CudaStub
from tiny_model import save_tiny_model

from vditc.bundle import Bundle
from vditc.cli.app import main
from vditc.errors import InputError, VditcError
from vditc.pipeline.bench import BenchJob, bench
from vditc.pipeline.bench_worker import DeviceMemory
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.job import Job
from vditc.pipeline.report_data import report_bundles
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe
from vditc.runtimes.cuda_runtime import Cuda
from vditc.runtimes.layer_times import OTHERS, modules
from vditc.target import Target
from vditc.timing import FULL, Figures, Timing, calls_and_clips, kind_of, kinds


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
    bundle: Bundle, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed, what -o writes and what the report keeps are the same figures."""
    figures = tmp_path / "t.json"
    words = ["--runs", "3", "--warmup", "1", "--layers", "2", "-o", str(figures), "--report", "--json"]
    code, out, _ = run(capsys, monkeypatch, "bench", str(bundle.path), "--against", str(tiny_dir), *words)
    (kept,) = (bundle.path / "report" / "timing").iterdir()
    assert kept.read_text() == figures.read_text() and json.loads(out) == {"bundle": str(bundle.path), **json.loads(figures.read_text())}
    page = (bundle.path / "report" / "index.html").read_text()
    assert "<h2>Timing</h2>" in page and f"{FULL}, share" in page and "onnxruntime, share" in page
    Bundle.open(bundle.path)  # no hash covers the report
    kept.unlink()
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


def test_what_is_found_elsewhere_goes_into_the_report(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of two machines and costs of layers; what is of another model or recipe changes nothing."""
    path, figures, of = bundle.path, tmp_path / "t.json", bundle.manifest
    page = path / "report" / "index.html"
    own = dataclasses.replace(TIMING, model_digest=of.model["digest"], recipe_digest=of.recipe["digest"], machine={"cpu": "A CPU"})
    device, other = dataclasses.replace(own, machine={"gpu": "NVIDIA <H200>"}), dataclasses.replace(own, recipe_digest="0" * 64)
    own.write(tmp_path / "own.json")
    other.write(figures)
    before = page.read_bytes()
    words = ["report", str(path), "--timing", str(tmp_path / "own.json"), "--timing", str(figures)]
    code, _, err = run(capsys, monkeypatch, *words)
    assert code == 2 and "found times of Wan 1" not in err and "recipe w8a8 (000000000000…); wanted" in " ".join(err.split())
    assert page.read_bytes() == before and not list((path / "report").glob("timing/*"))
    device.write(figures)
    assert run(capsys, monkeypatch, *words)[0] == 0
    assert {p.name for p in (path / "report" / "timing").iterdir()} == {f"{n}-batch2-frames8.json" for n in ("a-cpu", "nvidia-h200")}
    assert "b, A CPU, share" in page.read_text() and "b, NVIDIA &lt;H200&gt;, share" in page.read_text()
    code, _, err = run(capsys, monkeypatch, "report", str(path), "--sensitivity", str(figures))
    assert code == 2 and "found no costs of layers" in " ".join(err.split())
    costs = {"layer": next(iter(bundle.manifest.layers)), "error": 0.125}
    said = {"model_class": "W", "model_digest": bundle.manifest.model["digest"], "recipe": "w8a8", "schema": 1, "layers": [costs]}
    figures.write_text(json.dumps({**said, "recipe_digest": bundle.manifest.recipe["digest"]}))
    code, _, _ = run(capsys, monkeypatch, "report", str(path), "--sensitivity", str(figures))
    assert code == 0 and page.read_text().count("1.2e-01") == 2  # among the most costly, and in its block
    shutil.rmtree(path / "report" / "timing")


def test_bundles_are_compared(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of one recipe have the names of their folders."""
    other = shutil.copytree(bundle.path, tmp_path / "u.bundle")
    code, _, err = run(capsys, monkeypatch, "report", str(bundle.path), str(other))
    assert code == 2 and "found 2 bundles; wanted -o FILE.html" in " ".join(err.split())
    code, _, _ = run(capsys, monkeypatch, "report", str(bundle.path), str(other), "-o", str(tmp_path / "both.html"))
    assert code == 0 and "<h1>vditc: t.bundle, u.bundle</h1>" in (tmp_path / "both.html").read_text()
    manifest = dataclasses.replace(bundle.manifest, quality={**(bundle.manifest.quality or {}), "prompts": ["a 3 moving up"]})
    with pytest.raises(InputError, match="wanted bundles of the same prompts"):
        report_bundles([bundle, Bundle(other, manifest)], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_memory_of_the_gpu_is_this_process_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others take between two of its steps is not counted."""
    stub = CudaStub()
    monkeypatch.setattr("vditc.runtimes.gpu.compute_capability", lambda: "sm_90")
    monkeypatch.setattr("vditc.runtimes.cuda_runtime.Cuda.load", lambda: Cuda(stub, "stub"))
    cuda = Cuda(stub, "stub")
    memory, stream = DeviceMemory(), cuda.stream()
    assert memory.peak is None
    for taken in (1000, 500):
        with memory.watched():
            address = cuda.allocate(taken, stream)
        cuda.allocate(7000, stream)
    assert memory.peak == 1500
    with memory.watched():
        cuda.free(address, stream)
    assert memory.peak == 1500
    monkeypatch.setattr("vditc.runtimes.gpu.compute_capability", lambda: None)
    without = DeviceMemory()
    with without.watched():
        pass
    assert without.peak is None


def test_apart(bundle: Bundle) -> None:
    """One process is gone before the next begins; a bundle's target for the CPU runs the portable graph as well."""
    found = bench(BenchJob(bundle=bundle, backends=("onnxruntime", "cpu"), runs=1, warmup=0, layers=0, apart=True), SILENT)
    assert [(figures.name, len(figures.step_seconds), figures.layers) for figures in found.of] == [
        ("onnxruntime", 1, None),
        ("cpu", 1, None),
    ]


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


SLOW = Figures(name="a", step_seconds=(1.0, 9.0, 2.0), first_seconds=20.0, open_seconds=0.5, peak_rss_bytes=1, modules=None)
FAST = dataclasses.replace(SLOW, name="b", step_seconds=(0.5,), modules={"blocks.0.ffn": 0.25}, device_bytes=4, context_bytes=2)
TIMING = Timing(
    model="Wan",
    model_digest="1" * 64,
    recipe="w8a8",
    recipe_digest="2" * 64,
    sizes={"batch": 2, "frames": 8},
    steps=10,
    calls=2,
    clips=3,
    runs=3,
    warmup=0,
    profiled=1,
    apart=False,
    machine={"cpu": "A CPU @ 2 GHz", "gpu": "NVIDIA H200", "clocks": {"cpu0": {"now": 3000.0}}},
    packages={"numpy": "2"},
    taken="2026-01-01T00:00:00+00:00",
    of=(SLOW, FAST),
)


def test_figures_are_medians_and_percentiles() -> None:
    slow, fast = TIMING.to_json()["of"]
    assert (slow["step_seconds"], slow["step_seconds_p10"], slow["step_seconds_p90"]) == (2.0, pytest.approx(1.2), pytest.approx(7.6))
    assert (slow["step_seconds_min"], slow["step_seconds_max"], slow["step_seconds_mean"], slow["ratio"]) == (1.0, 9.0, 4.0, 1.0)
    assert (fast["step_seconds"], fast["ratio"], fast["step_seconds_p90"], fast["steps_per_second"]) == (0.5, 4.0, 0.5, 2.0)
    assert (fast["clip_seconds"], fast["clips_per_second"], fast["first_step_seconds"]) == (10.0, 0.3, 20.0)
    assert (TIMING.name, TIMING.device) == ("nvidia-h200-batch2-frames8", "NVIDIA H200")


@pytest.mark.parametrize(
    ("guidance", "batch", "wanted"),
    [(1.0, 1, (1, 1)), (1.0, 4, (1, 4)), (5.0, 1, (2, 1)), (5.0, 2, (1, 1)), (5.0, 3, (1, 1)), (5.0, 4, (1, 2))],
)
def test_guidance_takes_two_predictions_of_a_clip(guidance: float, batch: int, wanted: tuple[int, int]) -> None:
    assert calls_and_clips(guidance, batch) == wanted


def test_a_file_of_times_is_read_as_it_was_written(tmp_path: Path) -> None:
    TIMING.write(tmp_path / "t.json")
    assert Timing.read(tmp_path / "t.json") == TIMING
    data = TIMING.to_json()
    for change, message in (
        ({"schema": 2}, "found schema 2; wanted what `vditc bench -o` writes, schema 1"),
        ({"of": []}, "no seconds of steps"),
        ({"of": [{**data["of"][0], "all_step_seconds": [0.0]}]}, "no seconds of steps"),
        ({"sizes": None}, "found no figures"),
        ({"of": [{"name": "a"}]}, "found no figures .*all_step_seconds"),
    ):
        with pytest.raises(InputError, match=message):
            Timing.from_json({**data, **change}, "t.json")
    (tmp_path / "t.json").write_text("{")
    for name, message in (("t.json", "found no JSON"), ("u.json", "found No such file")):
        with pytest.raises(InputError, match=message):
            Timing.read(tmp_path / name)


def test_times_by_module() -> None:
    kernels = [("blocks.0.attn1.to_q/MatMul", 2.0), ("blocks.11.attn1.to_q/MatMul+blocks.11.attn1.to_k/MatMul", 1.0), ("Memcpy", 0.5)]
    found = modules([*kernels, ("blocks.0.attn1.to_q/Div", 3.0)])
    assert list(found.items()) == [("blocks.0.attn1.to_q", 5.0), ("blocks.11.attn1.to_q", 1.0), (OTHERS, 0.5)]
    assert kinds(found) == {"blocks.*.attn1.to_q": 6.0, OTHERS: 0.5}
    assert [kind_of(m) for m in ("blocks.3.ffn.net.2", "7.ffn", "proj_out", "norm1")] == [
        ("blocks.*.ffn.net.2", 3),
        ("*.ffn", 7),
        ("proj_out", None),
        ("norm1", None),
    ]
