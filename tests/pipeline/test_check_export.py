"""`vditc export --check`: an export that is the model passes, one that is not does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import load as load_proto
from tiny_export import FEW_BITS, FLOATS, SCHEMES, SHAPES, calibration, export, feeds
from tolerances import relative_l2

from vditc.errors import PrecisionError
from vditc.export.adapters.wan import Wan
from vditc.model_dir import ModelDir
from vditc.pipeline.check_export import check_export
from vditc.progress import SILENT
from vditc.runtimes.graph_slices import run_in_slices


@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "w8a4", "w4a16", "fp8", "nvfp4"])
@pytest.mark.parametrize("memory", [None, 0], ids=["in memory", "block by block"])
def test_a_true_export_passes(tiny: ModelDir, tmp_path: Path, scheme: str, memory: int | None) -> None:
    known = calibration(tiny, {**SCHEMES, **FEW_BITS, **FLOATS}[scheme])
    graph = export(tiny, known, tmp_path / "model.onnx")
    found = check_export(graph, source=tiny, adapter=Wan(), calibration=known, progress=SILENT, memory=memory)
    assert len(found) == 3 and len({tuple(p.sizes.items()) for p in found}) == 3
    assert found[2].sizes["frames"] == found[2].sizes["batch"] == 1
    assert all(0 < p.distance < p.tolerance for p in found)


def test_a_damaged_weight_is_found(tiny: ModelDir, tmp_path: Path) -> None:
    known = calibration(tiny, None)
    graph = export(tiny, known, tmp_path / "model.onnx")
    entry = next(t for t in load_proto(graph, load_external_data=False).graph.initializer if t.name == "blocks.1.ffn.net.2.weight")
    place = {e.key: int(e.value) for e in entry.external_data if e.key != "location"}
    with (tmp_path / "model.onnx.data").open("r+b") as file:
        file.seek(place["offset"])
        file.write(np.full(256, 3.0, np.float16).tobytes())
    with pytest.raises(
        PrecisionError, match=r"found relative distance .* from WanTransformer3DModel at {'batch': 2, .*; wanted at most 0\.0001"
    ):
        check_export(graph, source=tiny, adapter=Wan(), calibration=known, progress=SILENT)


@pytest.mark.parametrize("budget", [1 << 30, 100_000, 1])
def test_slices_compute_what_the_whole_graph_does(tiny: ModelDir, tmp_path: Path, budget: int) -> None:
    graph = export(tiny, calibration(tiny, None), tmp_path / "model.onnx")
    inputs = [feeds(seed, *shape) for seed, shape in enumerate(SHAPES)]
    whole = [run_in_slices(graph, [i])[0] for i in inputs]
    sliced = run_in_slices(graph, inputs, budget)
    # Not bit for bit: ONNX Runtime packs constant factors, and sums in another order, where it sees that they are constant.
    assert all(relative_l2(a, b) < 1e-6 for (a,), (b,) in zip(sliced, whole, strict=True))
