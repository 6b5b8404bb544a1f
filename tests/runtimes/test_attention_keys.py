"""Keys of float16 attentions, from the graph alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import tiny_export
from attention_graph import save_attention
from lowered_graphs import save_blocks

from vditc.export.adapters.wan import Wan
from vditc.graph_passes.stage import lower
from vditc.memory import attention_keys
from vditc.model_dir import ModelDir
from vditc.progress import SILENT
from vditc.runtimes.attention_keys import float16_keys
from vditc.target import Target

RTX = Target.load("rtx-ada")
LATER = dataclasses.replace(RTX, opset=23)  # with operators Attention


@pytest.mark.parametrize(
    ("target", "half"),
    [
        (RTX, True),
        (Target.load("rtx-ada-bf16"), False),
        (Target.load("cpu"), False),
        (RTX.attending("bf16"), False),
        (LATER, True),
        (LATER.attending("bf16"), False),
    ],
    ids=["fp16", "bf16", "fp32", "bf16 attention", "fp16 operator", "bf16 operator"],
)
def test_keys_of_a_model(tiny: ModelDir, tmp_path: Path, target: Target, half: bool) -> None:
    """Video tokens of the self-attention; text is apart, in the cross-attention."""
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, tiny_export.SCHEMES["w8a8"]), tmp_path / "model.onnx")
    lowered = lower(model=model, target=target, out=tmp_path / "lowered.onnx", progress=SILENT).files[0]
    sizes = {"batch": 2, "frames": 21, "height": 60, "width": 64, "text_tokens": 512}
    assert float16_keys(lowered, sizes) == (21 * 30 * 32 if half else 0)
    assert attention_keys(Wan().layer_roles(tiny).values(), Wan().sizes(tiny), sizes) == 21 * 30 * 32
    assert float16_keys(lowered, {**sizes, "frames": 1, "height": 2, "width": 4}) == (512 if half else 0)


def test_text_is_a_key_where_nothing_else_reads_it(tiny: ModelDir) -> None:
    sizes, largest = Wan().sizes(tiny), {"batch": 1, "frames": 6, "height": 8, "width": 12, "text_tokens": 100}
    assert attention_keys(["self_attn.q", "text_attn.q"], sizes, largest) == 6 * 4 * 6 + 100
    assert attention_keys(["self_attn.q", "cross_attn.q"], sizes, largest) == 6 * 4 * 6
    assert attention_keys(["self_attn.q", "temporal_attn.q", "cross_attn.q"], sizes, largest) == 4 * 6
    assert attention_keys(["self_attn.q", "temporal_attn.q"], sizes, {**largest, "frames": 90}) == 90


def test_a_graph_without_sizes_of_its_own(tmp_path: Path) -> None:
    """Blocks whose inputs are tokens already."""
    sizes = {"batch": 1, "tokens": 70_000, "text_tokens": 8}
    assert float16_keys(save_blocks(tmp_path / "half.onnx", "w8a8"), sizes) == 70_000
    assert float16_keys(save_blocks(tmp_path / "wide.onnx", "w8a8", wide_attention=True), sizes) == 0
    assert float16_keys(save_attention(tmp_path / "canonical.onnx"), {"batch": 1, "text_tokens": 70_000}) == 0


def test_shapes_that_cannot_be_inferred(tiny: ModelDir, tmp_path: Path) -> None:
    """All tokens together stand for them."""
    made = tiny_export.export(tiny, tiny_export.calibration(tiny, None), tmp_path / "model.onnx")
    lowered = lower(model=made, target=Target.load("rtx-ada"), out=tmp_path / "lowered.onnx", progress=SILENT).files[0]
    model = onnx.load(lowered, load_external_data=False)
    at = next(i for i, n in enumerate(model.graph.node) if n.op_type == "Softmax")
    softmax = model.graph.node[at]
    model.graph.node.insert(at, onnx.helper.make_node("Unheard", [softmax.input[0]], ["scores"], domain="no.such"))
    model.opset_import.append(onnx.helper.make_opsetid("no.such", 1))
    softmax.input[0] = "scores"
    onnx.save(model, lowered)
    sizes = {"batch": 2, "frames": 21, "height": 60, "width": 64, "text_tokens": 512}
    assert float16_keys(lowered, sizes) == 21 * 30 * 32 + 512
