"""Inputs of an ONNX file, as the profile needs them, and its outputs."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir

from vditc.adapter import InputSpec
from vditc.axis import Sizes
from vditc.errors import InputError
from vditc.runtimes.step_table import StepTable


def input_specs(model: Path) -> tuple[InputSpec, ...]:
    """Name, type, dims and fill of every graph input, in order; InputError for one without type, shape or a name for an axis."""
    specs, graph = [], ir.load(model)
    fills = json.loads(graph.metadata_props.get("vditc", "{}")).get("fills", {})
    for value in graph.graph.inputs:
        dims = [d if isinstance(d, int) else d.value for d in value.shape] if value.shape is not None else [None]
        if value.dtype is None or not all(dims) or value.name is None:
            raise InputError(
                found=f"input {value.name} of type {value.dtype} and shape {value.shape}",
                wanted="a type and a size or name for every axis",
                where=str(model),
                fix="export the model with vditc",
            )
        known = tuple(d for d in dims if d is not None)
        specs.append(InputSpec(value.name, str(value.dtype.numpy()), known, fills.get(value.name, "normal")))
    return tuple(specs)


def graph_outputs(model: Path) -> tuple[str, ...]:
    """Names, the prediction for the latents first."""
    return tuple(str(value.name) for value in ir.load(model).graph.outputs)


def model_inputs(model: Path) -> tuple[InputSpec, ...]:
    """What the model behind the graph takes: `input_specs` without the step of per-step tables."""
    return tuple(spec for spec in input_specs(model) if spec.name != "step")


def step_table(model: Path) -> StepTable:
    """The schedule of a graph's per-step tables."""
    return StepTable.of_metadata(ir.load(model).metadata_props.get("vditc"), model)


def graph_sizes(model: Path) -> Sizes:
    """What sizes the graph's named axes may have, as its metadata says; any size where it says nothing. InputError as above."""
    names = tuple(dict.fromkeys(d for spec in input_specs(model) for d in spec.dims if isinstance(d, str)))
    about = json.loads(ir.load(model).metadata_props.get("vditc", "{}"))
    if "axes" not in about:
        return Sizes.unknown(names)
    said = Sizes.from_json(about)
    return Sizes({**Sizes.unknown(names).axes, **{n: a for n, a in said.axes.items() if n in names}}, said.presets)


def graph_timesteps(model: Path) -> tuple[float, ...]:
    """The schedule that the graph was calibrated for: the model's time at every step; () where the metadata says none."""
    about = json.loads(ir.load(model).metadata_props.get("vditc", "{}"))
    return tuple(float(t) for t in about.get("timesteps", ()))
