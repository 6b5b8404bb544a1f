"""From a part of a pipeline to ONNX graphs without weights, as `vditc.export.trace` does it for the transformer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vditc.adapter import InputSpec
from vditc.export.parts.part import Part
from vditc.export.scopes import MODEL
from vditc.export.trace import OPSET, empty_parameters, not_exportable, sizes_for
from vditc.export.weightless import weightless
from vditc.part_graph import PartGraph, axis_size, unscaled


class _Positional(torch.nn.Module):
    """One graph's forward pass with positional inputs, as the exporter wants it."""

    def __init__(self, part: Part, model: Any, graph: PartGraph) -> None:
        super().__init__()
        self.part, self.graph = part, graph
        setattr(self, MODEL, model)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        feeds = dict(zip((s.name for s in self.graph.all_inputs), values, strict=True))
        return self.part.forward(getattr(self, MODEL), self.graph, feeds)


def trace_part(part: Part, graph: PartGraph) -> ir.Model:
    """The exporter's raw graph: named inputs, outputs and axes; parameters are named as in the checkpoint and have no value.

    Runs under FakeTensorMode, so memory does not grow with the model. The traced program is run once more, shapes only, with every axis
    changed: InputError when a size was fixed by the model's code.
    """
    specs, axes = graph.all_inputs, part.axes()
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def parameter(shape: torch.Size) -> torch.Tensor:
        with fake:
            return torch.empty(shape)

    with weightless(parameter):
        model = part.build()
    wrapper = _Positional(part, model, graph).eval()
    named = {unscaled(d)[0] for spec in specs for d in spec.dims if isinstance(d, str)}
    traced, proof = sizes_for({name: axis for name, axis in axes.items() if name in named})
    symbols = {name: torch.export.Dim(name, min=axes[name].least, max=axes[name].greatest) for name in traced}
    dynamic = tuple({i: _symbol(d, symbols) for i, d in enumerate(s.dims) if isinstance(d, str)} for s in specs)
    with torch.no_grad(), part.patched(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        with fake:
            example = tuple(_zeros(s, traced) for s in specs)
            try:
                program = torch.export.export(wrapper, example, dynamic_shapes=(dynamic,), strict=False)
                found = [tuple(value.shape) for value in program.module()(*(_zeros(s, proof) for s in specs))]
            except Exception as error:  # whatever a model's own code raises when its sizes are symbols
                raise not_exportable(error, f"graph {graph.name}, at any size", part.source, traced) from error
            wanted = [tuple(axis_size(d, proof) for d in dims) for dims in graph.all_outputs.values()]
            if found != wanted:
                raise not_exportable(RuntimeError(f"outputs {found}"), f"{wanted} at a second shape, {proof}", part.source, traced)
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert exported is not None
    onnx = exported.model.graph
    for value, spec in zip(onnx.inputs, specs, strict=True):
        value.name, value.shape = spec.name, ir.Shape(spec.dims)
    empty_parameters(onnx, part.named, ())
    return exported.model


def _symbol(dim: str, symbols: Mapping[str, Any]) -> Any:
    axis, factor, _ = unscaled(dim)  # inputs are multiples
    return symbols[axis] if factor == 1 else factor * symbols[axis]


def _zeros(spec: InputSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    return torch.zeros([axis_size(d, sizes) for d in spec.dims], dtype=getattr(torch, spec.dtype))
