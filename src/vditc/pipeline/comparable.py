"""The two graphs that are run in ONNX Runtime to see that lowering kept the numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vditc.graph_passes.core import Pass
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.graph_passes.stage import lower
from vditc.pipeline.plugin_choice import PluginChoice
from vditc.progress import SILENT
from vditc.target import Target


def portable_twin(model: Path, rungs: list[str], scratch: Path) -> Path:
    """The portable graph with the layers of a fallback as the target has them: what the lowered graph is compared with."""
    if not rungs:
        return model
    return lower(model=model, target=Target.load("cpu"), out=scratch / "portable.onnx", passes=rungs, progress=SILENT).files[0]


def runnable_twin(
    model: Path,
    lowered: Path,
    target: Target,
    scratch: Path,
    *,
    choice: PluginChoice,
    keep_time_path: bool,
    attention: QuantizeAttention | None,
    fallback: tuple[Pass, ...],
) -> Path:
    """The lowered graph, or the nearest that ONNX Runtime runs on a CPU.

    It has no kernels for bfloat16, and no masks that hold for all queries in the operator Attention: then what the same passes make in
    float32, or with attention in the type of the rest and in opset 21. It runs the bodies of plugin operators, which a target's graph may
    not have. In float32 attention has no INT8 scores, which are of the operator's 16-bit types.
    """
    plugins = choice.library is not None
    if target.compute != "bf16" and target.attention is None and target.opset <= 21 and (target.functions or not plugins):
        return lowered
    wide = dataclasses.replace(
        target,
        compute="fp32" if target.compute == "bf16" else target.compute,
        attention=None,
        opset=21,
        quirks=tuple(q for q in target.quirks if q.functions),
    )
    return lower(
        model=model,
        target=wide,
        out=scratch / f"{wide.compute}.onnx",
        keep_time_path=keep_time_path,
        plugins=choice.layers,
        attention=attention,
        first=fallback,
        progress=SILENT,
    ).files[0]
