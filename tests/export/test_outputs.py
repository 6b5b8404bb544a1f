"""Families that predict more than the latents' velocity."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from family_case import Case, cases
from family_checks import PreparedCase
from tolerances import relative_l2

SEVERAL = [case for case in cases() if case.name == "ltx-2"]


@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_every_output_equals_the_module(case: Case, tmp_path: Path) -> None:
    prepared = PreparedCase.make(case, tmp_path)
    session = ort.InferenceSession(str(prepared.export(None)), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == list(prepared.adapter.outputs) == ["velocity", "audio"]
    assert session.get_outputs()[1].shape == ["batch", "audio_tokens", 5]
    for shape in case.shapes:
        feeds = prepared.feeds(shape)
        with torch.no_grad():
            wanted = prepared.adapter.forward_all(prepared.model, {n: torch.from_numpy(a) for n, a in feeds.items()})
        for found, value in zip(session.run(None, feeds), wanted, strict=True):
            assert found.shape == tuple(value.shape)
            assert relative_l2(found, value.numpy()) <= case.tolerance
