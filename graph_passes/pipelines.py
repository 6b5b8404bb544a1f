"""The passes of each backend, in order, and how a user names one."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

from vditc.errors import InputError
from vditc.graph_passes.convert_compute_type import ConvertComputeType
from vditc.graph_passes.core import PASSES, Pass
from vditc.graph_passes.eliminate_dead_nodes import EliminateDeadNodes
from vditc.graph_passes.flatten_attention_outputs import FlattenAttentionOutputs
from vditc.graph_passes.fold_constants import FoldConstants
from vditc.graph_passes.legalize_for_target import Blocks, LegalizeForTarget
from vditc.graph_passes.precompute_time_path import PrecomputeTimePath
from vditc.graph_passes.share_quantization import ShareQuantization
from vditc.graph_passes.spec import OPSET
from vditc.target import Target


def onnxruntime(target: Target) -> tuple[Pass, ...]:
    """ONNX Runtime runs the canonical graph; only what is superfluous goes."""
    return (
        FoldConstants(),
        PrecomputeTimePath(),
        ShareQuantization(),
        ConvertComputeType(to=target.compute),
        EliminateDeadNodes(),
    )


def tensorrt_rtx(target: Target) -> tuple[Pass, ...]:
    """TensorRT-RTX: strongly typed, in forms that it fuses."""
    return (
        FoldConstants(),
        PrecomputeTimePath(store="fp16" if target.compute == "fp16" else "fp32"),  # a row is rounded once more than the data it meets
        ShareQuantization(),
        ConvertComputeType(to=target.compute),
        FlattenAttentionOutputs(),
        LegalizeForTarget(
            blocks=Blocks.of(target.int4_blocks)
        ),  # after the conversion: it repeats scales in the type that they are then used in
        EliminateDeadNodes(),
    )


def tensorrt(target: Target) -> tuple[Pass, ...]:
    """TensorRT 10.3 and later read and fuse the same forms."""
    return tensorrt_rtx(target)


PIPELINES = {"onnxruntime": onnxruntime, "tensorrt_rtx": tensorrt_rtx, "tensorrt": tensorrt}


def pipeline(target: Target, *, keep_time_path: bool = False) -> tuple[Pass, ...]:
    """The passes for `target`, those that replace the time path left out if it is to stay.

    InputError when the target does not read the opset that lowering writes.
    """
    least, greatest = target.opsets
    if not least <= OPSET <= greatest:
        raise InputError(
            found=f"opsets {least} to {greatest}",
            wanted=f"opset {OPSET} among them",
            where=f"target {target.name}",
            fix="lowered graphs keep the canonical opset",
        )
    passes = PIPELINES[target.backend](target)
    return tuple(p for p in passes if not (keep_time_path and isinstance(p, PrecomputeTimePath)))


def parse_pass(text: str) -> Pass:
    """`fold-constants{size_limit=1024}` -> FoldConstants(size_limit=1024); InputError when it cannot be read."""
    name, brace, rest = text.strip().partition("{")
    if name not in PASSES:
        raise InputError(found=f"pass {name!r}", wanted=f"one of {', '.join(sorted(PASSES))}", where="--passes", fix="correct the name")
    made = PASSES[name]
    hints = get_type_hints(made)
    known = [f.name for f in dataclasses.fields(made)]
    options: dict[str, object] = {}
    for item in filter(None, rest.removesuffix("}").split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in known or not value or not rest.endswith("}"):
            raise InputError(
                found=repr(text),
                wanted=f"{name}{{option=value,...}} with options {', '.join(known) or '(it has none)'}",
                where="--passes",
                fix="correct the option",
            )
        try:
            options[key] = hints[key](value)
        except ValueError as error:
            raise InputError(
                found=f"{key}={value}", wanted=f"{key} of type {hints[key].__name__}", where=f"--passes {name}", fix="correct the value"
            ) from error
    if brace and not rest.endswith("}"):
        raise InputError(found=repr(text), wanted="a closing brace", where="--passes", fix="write name{option=value}")
    return made(**options)
