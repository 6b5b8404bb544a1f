"""Engines for one clip at a time: with a batch of 1 TensorRT-RTX merges what it keeps apart otherwise."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from tiny_export import SCHEMES, calibration, export

from vditc.errors import PrecisionError
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.registry import backend
from vditc.target import Target

SIZES = {"batch": 1, "frames": 2, "height": 8, "width": 8, "text_tokens": 8}


@pytest.mark.demo
def test_int4_weights_stay_int4_behind_attention(tiny: ModelDir, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = dataclasses.replace(Target.load("rtx-ada"), arch=("sm_89",))
    model, lowered = export(tiny, calibration(tiny, SCHEMES["w4a16"]), tmp_path / "model.onnx"), tmp_path / "lowered.onnx"

    def build() -> dict[str, str]:
        facts = backend(target.backend).build(
            lowered=lowered,
            target=target,
            profile=Profile({axis: Range(size, size, size) for axis, size in SIZES.items()}),
            inputs=input_specs(lowered),
            out=tmp_path / "engine",
            work=tmp_path / "work",
            progress=SILENT,
        )
        return dict(facts.layers)

    lower(model=model, target=target, out=lowered, progress=SILENT)
    assert Counter(build().values())["half x half from int4 -> half"] == 20
    without = ["convert-compute-type{to=fp16}", "legalize-for-target", "eliminate-dead-nodes"]
    lower(model=model, target=target, out=lowered, progress=SILENT, passes=without)
    with pytest.raises(PrecisionError, match=r"attn1\.to_out\.0: weight stored as half, wanted int4"):  # else the pass can go
        build()
