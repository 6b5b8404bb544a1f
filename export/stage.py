"""The export stage: model directory and calibration -> `model.onnx`, a portable Q/DQ graph, and its weights beside it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vditc.adapter import InputSpec, ModelAdapter
from vditc.calibration import Calibration
from vditc.errors import InputError
from vditc.export.describe import describe_inputs
from vditc.export.linears import normalise_linears
from vditc.export.qdq import quantize_linears
from vditc.export.refit import refit_file, refit_map, to_text
from vditc.export.simplify import simplify
from vditc.export.trace import trace
from vditc.export.weights import attach_weights
from vditc.export.write import external_tensors, write_model
from vditc.files import room_for, whole_file
from vditc.model_dir import ModelDir
from vditc.progress import Progress
from vditc.schedule import Schedule

SCHEMA = 1
IR_VERSION = 10
FRAMES = "frames"  # the axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What an export wrote."""

    nodes: int
    graph_bytes: int  # of model.onnx
    data_bytes: int  # of model.onnx.data
    layers: dict[str, int]  # scheme -> number of quantized layers
    inputs: dict[str, tuple[int | str, ...]]  # graph input -> dimensions; names are dynamic axes


@dataclasses.dataclass(frozen=True)
class _Request:
    """What a trace depends on; the objects themselves are only along for the ride."""

    config: str
    family: type[ModelAdapter]
    inputs: tuple[InputSpec, ...]  # some are told by model_index.json, not by the config
    whole: bool
    source: ModelDir = dataclasses.field(compare=False)
    adapter: ModelAdapter = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=1)  # tracing takes most of an export: a model compiled with several recipes is traced once
def _traced(request: _Request) -> ir.Model:
    model = trace(request.source, request.adapter, whole=request.whole)
    simplify(model, () if request.whole else request.adapter.loops(request.source.config))
    return model


def traced_graph(source: ModelDir, adapter: ModelAdapter, *, whole: bool = False) -> ir.Model:
    """The simplified graph of the whole model, without weights. `whole` traces every block instead of stamping like ones."""
    return _traced(
        _Request(json.dumps(source.config, sort_keys=True), type(adapter), adapter.inputs(source), whole, source, adapter)
    ).clone()


def export_model(
    *,
    source: ModelDir,
    adapter: ModelAdapter,
    calibration: Calibration | Callable[[], Calibration],
    out: Path,
    progress: Progress,
    schedule: Schedule | None = None,
) -> ExportFacts:
    """Write `out`, `out.name + ".data"` and the refit map (`vditc.export.refit`), whole or not at all; same inputs, same bytes.

    opset 21, IR 10, float32 compute, standard operators only. Memory holds two weights at a time: they go from the checkpoint or
    the calibration file to the data file. A calibration may be a function that makes it when the graph has been traced: one that
    waits for the checkpoint's digest. `schedule`: that the graph is for, where the calibration has none. InputError when the checkpoint
    does not fit its config.json, the calibration is not of this model, or a weight is not finite; PrecisionError when a calibrated layer
    cannot be quantized in the graph.
    """
    adapter.check(source)
    with progress.task("trace the model", 1) as advance:
        model = traced_graph(source, adapter)
        advance()
    calibration = calibration if isinstance(calibration, Calibration) else calibration()
    check_calibration(source, adapter, calibration)  # now, since it waits for the checkpoint's digest
    if calibration.attention:
        scheme = next(iter(calibration.attention.values())).scheme
        progress.note(
            f"attention of {len(calibration.attention)} modules is calibrated as {scheme}; this graph computes it in floating point, "
            "what is lowered from it with the plugin library may not"
        )
    refit = insert_weights(model, source, calibration, schedule)
    sizes = adapter.sizes(source)
    if calibration.latent_frames is not None:
        sizes = sizes.pinned(FRAMES, calibration.latent_frames)
    describe_inputs(model, adapter.inputs(source), sizes)
    text = to_text(refit).encode()
    weights = progress.task("write weights", len(external_tensors(model.graph)))
    with whole_file(refit_file(out)) as refit_map_file, room_for(out, len(text)), weights as advance:
        refit_map_file.write_bytes(text)
        graph_bytes, data_bytes = write_model(model, out, advance)
    return ExportFacts(
        nodes=len(model.graph),
        graph_bytes=graph_bytes,
        data_bytes=data_bytes,
        layers=dict(Counter(str(layer.scheme) for layer in calibration.layers.values())),
        inputs={str(v.name): tuple(d if isinstance(d, int) else str(d.value) for d in v.shape or ()) for v in model.graph.inputs},
    )


def insert_weights(model: ir.Model, source: ModelDir, calibration: Calibration, schedule: Schedule | None = None) -> dict[str, Any]:
    """Give a traced, simplified graph its weights, quantized as the calibration says, and its metadata; returns the refit map."""
    linears = normalise_linears(model.graph, source)
    quantize_linears(model.graph, linears, calibration.layers)
    outputs = {name: layer.output for name, layer in calibration.layers.items() if layer.output is not None}
    attach_weights(model.graph, source, linears, outputs)
    if calibration.latent_frames is not None:
        _pin(model.graph, calibration.latent_frames)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "vditc", version("vditc")
    model.graph.name = source.model_class
    model.metadata_props.clear()
    model.metadata_props["vditc"] = json.dumps(_metadata(source, calibration, schedule), sort_keys=True, separators=(",", ":"))
    return refit_map(model.graph, source, calibration, linears)


def _pin(graph: ir.Graph, frames: int) -> None:
    """Clips of one length only: with another, frames would get each other's factors, and nothing would tell."""
    for value in graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([frames if isinstance(d, ir.SymbolicDim) and d.value == FRAMES else d for d in value.shape])


def check_calibration(source: ModelDir, adapter: ModelAdapter, calibration: Calibration) -> None:
    """InputError unless the calibration is of this checkpoint and speaks of each of its layers."""

    def bad(found: str, wanted: str) -> InputError:
        return InputError(
            found=found,
            wanted=wanted,
            where=f"calibration for {source.path}",
            fix="calibrate this model again, or give the --lora options that it was calibrated with",
        )

    if calibration.model_digest != source.digest:
        raise bad(f"model digest {calibration.model_digest[:12]}", source.digest[:12])
    known, said = set(adapter.layer_roles(source)), {*calibration.layers, *calibration.kept}
    if missing := sorted(known - said):
        raise bad(f"nothing about {len(missing)} layers of the model: {', '.join(missing)}", "the model's layers, each quantized or kept")
    if strangers := sorted(said - known):
        raise bad(f"{len(strangers)} layers that the model has not: {', '.join(strangers)}", "the model's layers, each quantized or kept")
    calibration.check_outputs()
    for name, layer in calibration.layers.items():
        shape = source.weights[f"{name}.weight"].shape
        if layer.weight.shape != shape:
            raise bad(f"codes {list(layer.weight.shape)} of layer {name}", f"{list(shape)}")
        for table in (layer.activation_scale, layer.activation_clip):
            if table is not None and table.ndim == 1 and len(table) != len(calibration.timesteps):
                raise bad(f"{len(table)} activation scales or clips of layer {name}", f"one for each of {len(calibration.timesteps)} steps")


def _metadata(source: ModelDir, calibration: Calibration, schedule: Schedule | None) -> dict[str, object]:
    schedule = calibration.schedule or schedule
    timesteps = () if schedule is None else tuple(schedule.timesteps.tolist())
    first = {} if schedule is None or not schedule.first else {"first_step": schedule.first}
    schemes: dict[str, list[str]] = {}
    for name, layer in calibration.layers.items():
        schemes.setdefault(str(layer.scheme), []).append(name)
    attention = next((found.scheme.to_json() for found in calibration.attention.values()), None)  # one for the whole model
    return {
        "schema": SCHEMA,
        "model_class": calibration.model_class,
        "model_digest": calibration.model_digest,
        "recipe": calibration.recipe,
        "recipe_digest": calibration.recipe_digest,
        "calibration_digest": calibration.digest,  # of the calibration file; null when the recipe needed none
        "timesteps": list(timesteps),
        "layers": schemes,
        **({} if attention is None else {"attention": attention}),  # that lowering goes by where there is the plugin library
        **({} if source.boundary_ratio is None else {"expert": {**source.expert(timesteps), **first}}),
    }
