"""The passes of each backend, in order."""

from __future__ import annotations

from vditc.errors import InputError
from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.core import Pass
from vditc.graph_passes.eliminate_dead_nodes import EliminateDeadNodes
from vditc.graph_passes.fold_constants import FoldConstants
from vditc.graph_passes.legalize_for_target import LegalizeForTarget
from vditc.graph_passes.share_quantization import ShareQuantization
from vditc.graph_passes.spec import OPSET
from vditc.target import Target


def onnxruntime(target: Target) -> tuple[Pass, ...]:
    """ONNX Runtime runs the canonical graph; only what is superfluous goes."""
    return (
        FoldConstants(),
        ShareQuantization(),
        ConvertComputeType(to=target.compute),
        EliminateDeadNodes(),
    )


def tensorrt_rtx(target: Target) -> tuple[Pass, ...]:
    """TensorRT-RTX: strongly typed, in forms that it fuses."""
    return (
        FoldConstants(),
        ShareQuantization(),
        ConvertComputeType(to=target.compute),
        LegalizeForTarget(),  # after the conversion: it repeats scales in the type that they are then used in
        EliminateDeadNodes(),
    )


def tensorrt(target: Target) -> tuple[Pass, ...]:
    """TensorRT 10.3 and later read and fuse the same forms."""
    return tensorrt_rtx(target)


PIPELINES = {"onnxruntime": onnxruntime, "tensorrt_rtx": tensorrt_rtx, "tensorrt": tensorrt}


def pipeline(target: Target) -> tuple[Pass, ...]:
    """The passes for `target`; InputError when it asks for an opset that lowering does not write."""
    if target.opset != OPSET:
        raise InputError(
            found=f"opset = {target.opset}",
            wanted=f"opset = {OPSET}",
            where=f"target {target.name}",
            fix="lowered graphs keep the canonical opset",
        )
    return PIPELINES[target.backend](target)
