"""From a model class to an ONNX graph without any weight: parameters are initialisers that have a shape but no value."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vditc.adapter import InputSpec, ModelAdapter
from vditc.errors import VditcError
from vditc.model_dir import ModelDir

OPSET = 21
OUTPUT = "velocity"
MODEL = "model"  # the wrapper's attribute, hence the first part of every traced name
# Every axis has another size and none is 1, so that no two axes can be mistaken for each other; sizes of latents are even.
_TRACED = {"batch": 2, "frames": 3, "height": 8, "width": 12, "text_tokens": 5}
_PROOF = {"batch": 3, "frames": 5, "height": 12, "width": 4, "text_tokens": 7}


class _Positional(torch.nn.Module):
    """The adapter's forward pass with positional inputs, as the exporter wants it."""

    def __init__(self, adapter: ModelAdapter, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.adapter, self.names = adapter, names
        setattr(self, MODEL, model)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        velocity: torch.Tensor = self.adapter.forward(getattr(self, MODEL), dict(zip(self.names, values, strict=True)))
        return velocity


def trace(source: ModelDir, adapter: ModelAdapter) -> ir.Model:
    """The forward pass as the exporter writes it: opset 21, named inputs and axes, one output `velocity`.

    Runs under FakeTensorMode, so memory does not grow with the model. Parameters become initialisers named as in the
    checkpoint, with `const_value` None; buffers that the adapter computes keep their values. VditcError when an axis
    is fixed by the model's code or a tensor is neither in the checkpoint nor computed.
    """
    specs = adapter.inputs(source)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        model = adapter.skeleton(source)
    wrapper = _Positional(adapter, model, tuple(s.name for s in specs)).eval()
    dynamic = tuple({i: torch.export.Dim.DYNAMIC for i, d in enumerate(s.dims) if isinstance(d, str)} for s in specs)
    with torch.no_grad(), adapter.patched(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that a model may use but this one does not
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        with fake:
            example = tuple(_zeros(s, _TRACED) for s in specs)
            try:
                program = torch.export.export(wrapper, example, dynamic_shapes=(dynamic,), strict=False)
            except RuntimeError as error:  # torch's own errors about sizes are all of this kind
                raise _not_dynamic(str(error).strip().splitlines()[0], "axes of any size", source) from error
            _prove_dynamic(program, specs, source)
        onnx_program = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert onnx_program is not None
    graph = onnx_program.model.graph
    for value, spec in zip(graph.inputs, specs, strict=True):
        value.name, value.shape = spec.name, ir.Shape(spec.dims)
    (velocity,) = graph.outputs
    latents = specs[0].dims
    assert velocity.shape is not None
    velocity.name = OUTPUT
    # The velocity has the axes of the latents, but maybe another number of channels.
    velocity.shape = ir.Shape([d if isinstance(d, str) else velocity.shape[i] for i, d in enumerate(latents)])
    _empty_parameters(graph, source)
    return onnx_program.model


def _zeros(spec: InputSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    return torch.zeros(spec.shape(sizes), dtype=getattr(torch, spec.dtype))


def _prove_dynamic(program: Any, specs: tuple[InputSpec, ...], source: ModelDir) -> None:
    """Run the traced program, shapes only, with every axis changed: a baked size shows itself here."""
    shape = specs[0].shape(_PROOF)
    wanted = (shape[0], *shape[2:])
    problem = None
    try:
        found = tuple(program.module()(*(_zeros(s, _PROOF) for s in specs)).shape)
        if (found[0], *found[2:]) != wanted:
            problem = f"velocity {list(found)}"
    except (RuntimeError, AssertionError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        raise _not_dynamic(problem, f"batch and sizes {list(wanted)} at a second shape, {_PROOF}", source)


def _not_dynamic(found: str, wanted: str, source: ModelDir) -> VditcError:
    return VditcError(
        found=found,
        wanted=wanted,
        where=f"{source.model_class} traced at {_TRACED}",
        fix="let the adapter's `patched` rewrite the code that fixes a size",
    )


def _empty_parameters(graph: ir.Graph, source: ModelDir) -> None:
    """Give parameters their checkpoint names and take their (fake) values away."""
    lost = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if not isinstance(tensor.raw, FakeTensor):
            continue
        plain = name.removeprefix(f"{MODEL}.")
        if plain not in source.weights:
            lost.append(plain)
            continue
        value.const_value = None
        value.name = plain
    if lost:
        raise VditcError(
            found=f"{len(lost)} tensors without values, first {lost[0]}",
            wanted="every tensor in the checkpoint or computed by the adapter",
            where=str(source.transformer),
            fix="let the adapter's `patched` compute buffers that the checkpoint does not hold",
        )
