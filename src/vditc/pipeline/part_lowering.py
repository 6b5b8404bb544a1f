"""How an exported part of a pipeline, a text encoder or a VAE decoder, is lowered for a target: from its graphs alone, without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from vditc.axis import CLIP
from vditc.errors import PrecisionError
from vditc.graph_passes.stage import lower
from vditc.memory import BUILDER, BUILDER_PER_WEIGHT, BYTES
from vditc.part_graph import axis_size, unscaled
from vditc.profile import Profile, Range
from vditc.progress import Progress
from vditc.runtimes.graph_inputs import graph_sizes, input_specs
from vditc.target import Target
from vditc.video_plan import Tiles

# Relative error of a lowered graph's output, on random inputs, against the portable one: float16 keeps 11 bits, and a decoder is some
# thirty layers deep. What overflows is not finite, or far beyond.
LOWERED_TOLERANCE = 0.05
_PASSES = ("fold-constants", "convert-compute-type{{to={}}}", "eliminate-dead-nodes")
_CHECKED_SIDE = 8  # latent rows and columns of the inputs on which a lowered graph is checked


class LoweredPart(NamedTuple):
    """`error`: relative, None where nothing was compared. `files`: the graph first, then the data that it points to."""

    nodes: int
    error: float | None
    files: tuple[Path, ...]


def lower_part(portable: Path, out: Path, target: Target, label: str, *, compare: bool, progress: Progress) -> LoweredPart:
    """Lower a graph into its own folder, whose weights it shares. `label`: the target's name, where `target` computes as the part does.

    PrecisionError where the numbers changed; ONNX Runtime has nothing in bfloat16 to compare with.
    """
    found = lower(model=portable, target=target, out=out, progress=progress, passes=[p.format(target.compute) for p in _PASSES])
    error = _error(portable, out) if compare and target.compute != "bf16" else None
    if error is not None and not error <= LOWERED_TOLERANCE:
        raise PrecisionError(
            found=f"a relative error of {error:.3g}",
            wanted=f"at most {LOWERED_TOLERANCE}",
            where=f"{portable.parent.name}/{portable.stem} in {target.compute} for {label}",
            fix=f"compile for {label}-bf16" if "bf16" in target.computes else "leave the part out with --parts transformer",
        )
    return LoweredPart(found.nodes_after, None if error is None else round(error, 6), found.files)


def lowered_name(graph: str, label: str) -> str:
    """Of the lowered graph's file."""
    return f"{graph}.{label}.onnx"


def part_target(target: Target, *, text: bool) -> Target:
    """The target as a part computes in it: sums of a `text` encoder overflow float16, so it has bfloat16, else float32."""
    compute = next((c for c in ("bf16", "fp32") if c in target.computes), target.compute) if text else target.compute
    return target.computing(compute) if compute != target.compute else target


def part_memory(weights: int, compute: str, *, eight_bits: bool) -> dict[str, int]:
    """Estimates in bytes for a part of so many weights: of the weights in an engine, and of the builder's peak."""
    count = weights * (1 if eight_bits else BYTES[compute])
    return {"weights": count, "builder": BUILDER + int(BUILDER_PER_WEIGHT * count)}


def clip_profile(profile: Profile, size: Sequence[int]) -> Profile:
    """The transformer's profile, with the latent frames, height and width of a clip for what it does not name: the model has that fixed."""
    return Profile({**{axis: Range(n, n, n) for axis, n in zip(CLIP, size, strict=True)}, **profile.axes})


def part_profile(graph: Path, profile: Profile, tiles: Tiles | None) -> Profile:
    """Ranges of a graph's axes: those of the transformer's profile, or of a tile; texts of any length up to the longest."""
    ranges: dict[str, Range] = {}
    for axis, about in graph_sizes(graph).axes.items():
        base, factor, _ = unscaled(axis)
        if base == "text_tokens":
            longest = profile.axes[base].max if base in profile.axes else about.default
            own = Range(1, longest, longest)
        elif base == "prompt_tokens":  # with a template, or of a second encoder: not the transformer's
            own = Range(1, about.default, about.default)
        else:
            own = _tile_range(profile.axes[base], None if tiles is None or base == "frames" else tiles.latent[base == "width"])
        ranges[axis] = Range(own.min * factor, own.opt * factor, own.max * factor)
    return Profile(ranges)


def _tile_range(own: Range, tile: int | None) -> Range:
    """The last tile of a row may have any width."""
    return own if tile is None or own.max <= tile else Range(1, tile, tile)


def _error(portable: Path, lowered: Path) -> float:
    """Relative error of the output on random inputs, both in ONNX Runtime; infinite for numbers that are not finite."""
    from vditc.runtimes.parts.session import OrtPart  # here, so that nothing else needs onnxruntime

    random = np.random.default_rng(0)
    sizes = {"text_tokens": 16, "prompt_tokens": 16, "frames": 2, "height": _CHECKED_SIDE, "width": _CHECKED_SIDE}
    specs, output = input_specs(portable), str(ir.load(portable).graph.outputs[0].name)
    whole = {d: axis_size(d, sizes) for s in specs for d in s.dims if isinstance(d, str)}
    feeds: dict[str, Any] = {s.name: s.example(whole, random) for s in specs}
    want, got = (OrtPart(p)(feeds)[output] for p in (portable, lowered))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want)) if np.isfinite(got).all() else float("inf")
