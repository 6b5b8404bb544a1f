"""The bundled model through the main job: sizes, precision that landed, quality gates. The fixture compiles it for real."""

from __future__ import annotations

from pathlib import Path

import pytest

import vditc
from vditc.bundle import Bundle
from vditc.model_dir import ModelDir
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.job import Job
from vditc.pipeline.report_data import report_bundles
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.target import Target

MODEL = Path(vditc.__path__[0]) / "assets" / "digits"
LIMIT = {"w8a8": 0.30, "w4a16": 0.18}  # bytes of model.onnx with data, over those of the float32 weights
CLIPS = 4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Both demo recipes, for the CPU and for RTX GPUs."""
    pytest.importorskip("tensorrt_rtx")
    root = tmp_path_factory.mktemp("demo")
    targets = (Target.load("rtx-ada"), Target.load("cpu"))
    jobs = [
        Job(model_dir=MODEL, recipe=Recipe.load(r), targets=targets, out=root / f"{r}.bundle", clips=CLIPS, references=root / "references")
        for r in LIMIT
    ]
    return {job.recipe.name: compile_bundle(job, SILENT) for job in jobs}


@pytest.mark.demo
@pytest.mark.parametrize("recipe", LIMIT)
def test_size(bundles: dict[str, Bundle], recipe: str) -> None:
    m = bundles[recipe].manifest
    size = sum(e.bytes for n, e in m.files.items() if n.startswith("model.onnx"))
    assert size <= LIMIT[recipe] * 4 * m.model["weights"]


@pytest.mark.demo
def test_precision_landed(bundles: dict[str, Bundle]) -> None:
    w8a8 = bundles["w8a8"].manifest.targets["rtx-ada"]["engine"]
    quantized = list(bundles["w8a8"].manifest.layers)
    assert len(quantized) == 60 and {w8a8["layers"][name] for name in quantized} == {"int8 x int8 -> float"}
    # Six products a block (q, k, v merged), less the cross-attention's k and v, which are one product for all blocks.
    assert w8a8["gemms"]["int8 x int8 -> float"] == 6 * 6 + 1
    w4a16 = bundles["w4a16"].manifest.targets["rtx-ada"]["engine"]
    assert {w4a16["layers"][name] for name in quantized} == {"half x half from int4 -> half"}
    for engine in (w8a8, w4a16):
        assert engine["attentions"] == 12 and engine["plugins"] == 0
        assert engine["compute_capabilities"] == ["sm_80", "sm_86", "sm_89", "sm_120"]


@pytest.mark.demo
@pytest.mark.parametrize(("recipe", "psnr"), [("w8a8", 30.0), ("w4a16", 20.0)])
def test_quality(bundles: dict[str, Bundle], recipe: str, psnr: float) -> None:
    m = bundles[recipe].manifest
    assert m.quality is not None and m.gate["failed"] == []
    assert m.quality["quantized"]["psnr_db"] >= psnr
    assert m.quality["full_precision"]["digit_accuracy"] == 1.0
    assert m.quality["full_precision"]["motion_accuracy"] == 1.0
    assert m.quality["step_error"][0] < m.quality["step_error"][-1]  # errors add up along the trajectory


@pytest.mark.demo
def test_report_shows_both(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    report_bundles(list(bundles.values()), tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    for word in ("w8a8", "w4a16", "data:image/gif", "int8 x int8", "fused attentions", "QVD, arXiv 2407.11585"):
        assert word in text


def test_model_is_small_enough() -> None:
    source = ModelDir.open(MODEL)
    assert source.model_class == "WanTransformer3DModel"
    assert sum(p.stat().st_size for p in MODEL.rglob("*") if p.is_file()) <= 25_000_000
    config, s = source.config, source.sampling
    assert s is not None and config["num_layers"] >= 6 and config["num_attention_heads"] * config["attention_head_dim"] >= 192
    _, rows, columns = config["patch_size"]
    assert s.frames * (s.height // rows) * (s.width // columns) >= 512
