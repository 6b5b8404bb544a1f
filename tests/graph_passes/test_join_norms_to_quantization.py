"""Tokens with a leading axis have the same codes: in float32, outputs are equal bit for bit."""

from __future__ import annotations

from pathlib import Path

import family_checks as checks
import numpy as np
import pytest
import tiny_export

from vditc.graph_passes.core import PassFacts
from vditc.graph_passes.join_norms_to_quantization import JoinNormsToQuantization
from vditc.graph_passes.pipelines import pipeline
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.progress import SILENT
from vditc.target import Target

# The passes of rtx-ada, in float32: float16 is computed in float32 here, between casts that ONNX Runtime puts in and leaves out.
CPU = Target.load("cpu")
PASSES = [str(p).replace("=fp16", "=fp32") for p in pipeline(Target.load("rtx-ada")) if not p.name.startswith("legalize")]


def lowered(tiny: ModelDir, scheme: str, folder: Path, passes: list[str]) -> tuple[Path, PassFacts | None]:
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES[scheme]), folder / "model.onnx")
    facts = lower(model=model, target=CPU, out=folder / "lowered" / f"{len(passes)}.onnx", progress=SILENT, passes=passes)
    return facts.files[0], next((f for f in facts.passes if f.name == JoinNormsToQuantization.name), None)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a6", "w4a8"])
def test_same_bits(tiny: ModelDir, tmp_path: Path, scheme: str) -> None:
    joined, facts = lowered(tiny, scheme, tmp_path, PASSES)
    assert facts is not None and facts.modified and not facts.refusals
    apart, _ = lowered(tiny, scheme, tmp_path, [p for p in PASSES if p != JoinNormsToQuantization.name])
    for shape in tiny_export.SHAPES:
        feeds = tiny_export.feeds_at(joined, 1, 0, *shape)
        for found, wanted in zip(checks.run(joined, feeds), checks.run(apart, feeds), strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("scheme", ["fp16", "w8a8-static"])
def test_nothing_to_do(tiny: ModelDir, tmp_path: Path, scheme: str) -> None:
    _, facts = lowered(tiny, scheme, tmp_path, PASSES)
    assert facts is not None and not facts.modified and not facts.refusals
