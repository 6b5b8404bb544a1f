"""`vditc export --check`: is the graph that was written the model that was read?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from vditc.adapter import ModelAdapter
from vditc.calibration import Calibration
from vditc.errors import PrecisionError
from vditc.export.block_streaming import float32_bytes, memory_for_weights
from vditc.export.trace import sizes_for
from vditc.graph_passes.spec import Spec
from vditc.model_dir import ModelDir
from vditc.numerics import QType
from vditc.progress import Progress
from vditc.runtimes.graph_slices import SLICE_BYTES, run_in_slices
from vditc.runtimes.reference import QuantizedLinear

# Relative L2 distance from the module's output.
# The same float32 sums in another order: 1e-6 a layer, adding up over up to 60 blocks.
FLOAT_TOLERANCE = 1e-4
# A float32 rounding next to a tie moves a code by one, 1/127 of a token's greatest value for INT8, in a few elements of every layer.
STEPS_TOLERANCE = 2.5
# The gaps between floating-point codes are as wide as their values are large, so a flip costs less than the widest of them, at most:
# 0.018 with FP8 and 0.005 with NVFP4 on the bundled model.
FLOAT_CODES_TOLERANCE = 0.06


def _tolerance(qtype: QType) -> float:
    """Of activations in these codes."""
    return STEPS_TOLERANCE / qtype.high if qtype.integer else FLOAT_CODES_TOLERANCE


@dataclasses.dataclass(frozen=True)
class Parity:
    """The graph against the module at one set of sizes."""

    sizes: Mapping[str, int]
    distance: float  # relative L2, of the output that is furthest away
    tolerance: float


def check_export(
    model: Path, *, source: ModelDir, adapter: ModelAdapter, calibration: Calibration, progress: Progress, memory: int | None = None
) -> list[Parity]:
    """Run ONNX's full checker, the dialect's rules and ONNX Runtime against the module on random inputs at three sets of sizes.

    The first two differ in every axis, the third is the least clip. `memory`: bytes that weights may take, by default half of what is free;
    a larger model is compared slice by slice, with the weights of a block at a time. PrecisionError when a rule is broken or an
    output is further away than the tolerance.
    """
    with progress.task("check the graph", 2) as advance:
        onnx.checker.check_model(str(model), full_check=True)
        advance()
        Spec.canonical().verify(ir.load(model), where=str(model))
        advance()
    axes = adapter.axes(source)
    first, second = sizes_for(axes)
    shapes = [first, second, {**first, **{n: axes[n].least for n in ("batch", "frames") if n in axes}}]
    if calibration.latent_frames is not None:  # the graph takes no other number
        shapes = [{**sizes, "frames": calibration.latent_frames} for sizes in shapes]
    specs, random = adapter.inputs(source), np.random.default_rng(0)
    feeds = [{s.name: s.example(sizes, random) for s in specs} for sizes in shapes]

    budget = memory_for_weights() if memory is None else memory
    module = adapter.load(source, budget)
    resident = float32_bytes(source) <= budget
    quantized = {n: QuantizedLinear(c, module.get_submodule(n).bias, resident=resident) for n, c in calibration.layers.items()}
    for name, linear in quantized.items():
        module.set_submodule(name, linear)
    wanted = []
    with progress.task("run the module", len(feeds)) as advance, torch.no_grad():
        for arrays in feeds:
            for linear in quantized.values():
                linear.clips = len(arrays[specs[0].name])
            outputs = adapter.forward_all(module, {n: torch.from_numpy(a) for n, a in arrays.items()})
            wanted.append([output.numpy() for output in outputs])
            advance()
    del module
    with_step = [{**arrays, "step": np.zeros(1, np.int64)} for arrays in feeds]
    found = run_in_slices(model, with_step, min(budget, SLICE_BYTES), progress)
    schemes = {layer.scheme.activation for layer in calibration.layers.values()}
    tolerance = max([FLOAT_TOLERANCE, *(_tolerance(spec.qtype) for spec in schemes if spec is not None)])
    results = [
        Parity(sizes, max(float(np.linalg.norm(f - w) / np.linalg.norm(w)) for f, w in zip(ours, theirs, strict=True)), tolerance)
        for sizes, ours, theirs in zip(shapes, found, wanted, strict=True)
    ]
    if wrong := [r for r in results if not r.distance <= r.tolerance]:
        raise PrecisionError(
            found=f"relative distance {wrong[0].distance:.2g} from {source.model_class} at {dict(wrong[0].sizes)}",
            wanted=f"at most {tolerance:g}",
            where=str(model),
            fix="report the model's config.json: its adapter does not fit it",
        )
    return results
