"""Exports of the tiny model, traced once for all tests: tracing takes seconds, the rest does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.calibration import Calibration, Kept, LayerCalibration
from vditc.correction import NONE, Correction
from vditc.export.adapters.wan import Wan
from vditc.export.describe import describe_inputs
from vditc.export.simplify import simplify
from vditc.export.stage import insert_weights
from vditc.export.trace import trace
from vditc.export.write import write_model
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.schedule import Schedule
from vditc.scheme import QuantSpec, Scheme, quantize_weight
from vditc.transform import IDENTITY, Transform

STEPS = 3
SIGMAS = (1.0, 0.8, 0.5, 0.0)  # of the calibration's schedule
INT8 = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)
SCHEMES: dict[str, Scheme | None] = {
    "fp16": None,
    "w8a8": Scheme(weight=INT8, activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True)),
    "w8a8-static": Scheme(weight=INT8, activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True)),
    "w8a8-tensor": Scheme(weight=INT8, activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR)),
    "w8a6": Scheme(weight=INT8, activation=QuantSpec(qtype=QType.INT6, granularity=Granularity.PER_TOKEN, dynamic=True)),
    "w4a8": Scheme(
        weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL),
        activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
    ),
    "w4a16": Scheme(weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=64)),
    "w3a8": Scheme(
        weight=QuantSpec(qtype=QType.INT3, granularity=Granularity.PER_CHANNEL),
        activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
    ),
}
FP8 = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_CHANNEL)
FP8_TENSOR = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TENSOR)
NVFP4 = QuantSpec(qtype=QType.FP4_E2M1, granularity=Granularity.PER_GROUP, group_size=16)
FLOATS: dict[str, Scheme | None] = {
    "fp8": Scheme(weight=FP8, activation=QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TOKEN, dynamic=True)),
    "fp8-static": Scheme(weight=FP8, activation=QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TENSOR, per_step=True)),
    "fp8-tensor": Scheme(weight=FP8_TENSOR, activation=FP8_TENSOR),
    "fp8-weights": Scheme(weight=FP8),
    "fp8-blocks": Scheme(weight=QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_GROUP, group_size=64)),
    "nvfp4": Scheme(
        weight=NVFP4,
        activation=QuantSpec(qtype=QType.FP4_E2M1, granularity=Granularity.PER_GROUP, group_size=16, dynamic=True),
    ),
    "nvfp4-weights": Scheme(weight=NVFP4),
}
FEW_BITS: dict[str, Scheme | None] = {  # one flipped code is seen at the output: with tolerances of their own
    "w8a4": Scheme(weight=INT8, activation=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_TOKEN, dynamic=True)),
    "w8a4-tensor": Scheme(weight=INT8, activation=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_TENSOR)),
}


def calibration(
    source: ModelDir,
    scheme: Scheme | None,
    layers: str = "blocks.",
    scales: Mapping[str, float] | None = None,
    transform: Callable[[str, str, tuple[int, ...]], Transform] = lambda *_: IDENTITY,
    correction: Callable[[str, str, tuple[int, ...]], Correction] = lambda *_: NONE,
    clip: bool = False,
) -> Calibration:
    """Round-to-nearest weights of every layer whose name starts with `layers`; static scales are 0.04 unless `scales` says.

    `transform` and `correction`: of a layer's name, role and shape. `clip`: with a table of clips.
    """
    quantized: dict[str, LayerCalibration] = {}
    kept: dict[str, Kept] = {}
    for name, role in Wan().layer_roles(source).items():
        entry = source.weights[f"{name}.weight"]
        if scheme is None or not name.startswith(layers):
            kept[name] = Kept(role=role, reason="test", shape=entry.shape)
            continue
        act, table = scheme.activation, None
        if act is not None and act.ranged:
            scale = np.float32((scales or {}).get(name, 0.04))
            table = scale * np.linspace(1, 1.5, STEPS, dtype=np.float32) if act.per_step else np.asarray(scale)
        scale_dtype = np.float32 if act else np.float16
        change = transform(name, role, entry.shape)
        weight = quantize_weight(change.weight(np.asarray(entry.read(), np.float32)), scheme.weight, scale_dtype=scale_dtype)
        quantized[name] = LayerCalibration(
            role=role,
            scheme=scheme,
            weight=weight,
            activation_scale=table,
            transform=change,
            activation_clip=np.linspace(0.7, 1, STEPS, dtype=np.float32) if clip else None,
            correction=correction(name, role, entry.shape),
        )
    return Calibration(
        model_class=source.model_class,
        model_digest=source.digest,
        recipe="test",
        recipe_digest="0",
        method="rtn",
        schedule=Schedule.flow(np.array(SIGMAS)),
        guidance_scale=2.0,
        layers=quantized,
        kept=kept,
        statistics={},
    )


_TRACED: dict[str, ir.Model] = {}  # by the model's digest


def traced(source: ModelDir) -> ir.Model:
    """The simplified graph without weights, a fresh copy."""
    if source.digest not in _TRACED:
        _TRACED[source.digest] = trace(source, Wan())
        simplify(_TRACED[source.digest])
    return _TRACED[source.digest].clone()


def export(source: ModelDir, calibrated: Calibration, out: Path) -> Path:
    """What `export_model` writes."""
    model = traced(source)
    insert_weights(model, source, calibrated)
    describe_inputs(model, Wan().inputs(source), Wan().sizes(source))
    write_model(model, out, lambda: None)
    return out


def feeds(seed: int, batch: int, frames: int, height: int, width: int, tokens: int) -> dict[str, npt.NDArray[Any]]:
    """Random inputs of the tiny model."""
    rng = np.random.default_rng(seed)
    return {
        "hidden_states": rng.standard_normal((batch, 4, frames, height, width), np.float32),
        "timestep": np.linspace(37.25, 900, batch, dtype=np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, tokens, 16), np.float32),
    }


def feeds_at(path: Path, step: int, seed: int, *sizes: int) -> dict[str, npt.NDArray[Any]]:
    """Random inputs of a graph of `calibration` at one step of its schedule: those that it takes, timestep and step among them or not."""
    inputs = feeds(seed, *sizes)
    inputs |= {"timestep": np.full_like(inputs["timestep"], SIGMAS[step] * 1000), "step": np.array([step])}
    return {str(v.name): inputs[str(v.name)] for v in ir.load(path).graph.inputs}


SHAPES = ((2, 2, 8, 12, 5), (1, 3, 10, 4, 8))  # every axis differs
