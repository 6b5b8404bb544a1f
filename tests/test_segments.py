from __future__ import annotations

import json
from pathlib import Path

import pytest

from vditc.errors import InputError
from vditc.segments import NAME, Segments, block_of_name, check_count

CHAIN = Segments({"segment_00": ("blocks.0", "blocks.1"), "segment_01": ("blocks.2",)}, ("velocity", "sound"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert Segments.read(tmp_path) is None
    (tmp_path / NAME).write_text(CHAIN.to_text())
    assert Segments.read(tmp_path) == CHAIN and CHAIN.plans == ("segment_00.plan", "segment_01.plan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "found schema 2; wanted schema 1"),
        ({"segments": []}, "found unreadable"),
        ({"outputs": []}, "found unreadable"),
        ({"segments": [{"name": "../x", "blocks": []}]}, "found unreadable"),
        ({"segments": [{"name": "a"}]}, r"found unreadable \(KeyError\('blocks'\)\); wanted the segments of an engine"),
        (None, "found unreadable"),
    ],
)
def test_a_file_that_says_no_segments(change: dict[str, object] | None, words: str, tmp_path: Path) -> None:
    text = CHAIN.to_text()
    (tmp_path / NAME).write_text(text[:-9] if change is None else json.dumps({**json.loads(text), **change}))
    with pytest.raises(InputError, match=words):
        Segments.read(tmp_path)


def test_blocks_by_name() -> None:
    names = (
        "blocks.7.attn1.to_q/MatMul",
        "single_transformer_blocks.12/Add",
        "patch_embedding/Conv",
        "text.refiner.blocks.0.ff/MatMul",
        "Shape_2",
    )
    assert [block_of_name(name) for name in names] == ["blocks.7", "single_transformer_blocks.12", None, None, None]


def test_more_segments_than_blocks() -> None:
    layers = ["blocks.0.q", "blocks.0.k", "blocks.1.q", "proj_out"]
    for asked in (None, "auto", 1, 2):
        check_count(asked, layers, "target l4")
    with pytest.raises(InputError, match="target l4: found segments=3; wanted at most 2, as many as the model has blocks"):
        check_count(3, layers, "target l4")
