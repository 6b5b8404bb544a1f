"""From a model class to an ONNX graph without any weight: parameters are initialisers that have a shape but no value."""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vditc.adapter import InputSpec, Loop, ModelAdapter
from vditc.errors import InputError, VditcError
from vditc.export.scopes import MODEL
from vditc.export.weightless import weightless
from vditc.model_dir import ModelDir
from vditc.profile import Axis

OPSET = 21


class _Positional(torch.nn.Module):
    """The adapter's forward pass with positional inputs, as the exporter wants it."""

    def __init__(self, adapter: ModelAdapter, model: Any, specs: tuple[InputSpec, ...], axes: Mapping[str, Axis]) -> None:
        super().__init__()
        self.adapter, self.specs, self.axes = adapter, specs, axes
        setattr(self, MODEL, model)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes: dict[str, Any] = {}
        for spec, value in zip(self.specs, values, strict=True):
            for axis, size in zip(spec.dims, value.shape, strict=True):
                if isinstance(axis, str):  # what the tracer may take for granted
                    first = sizes.setdefault(axis, size)
                    torch._check(first == size)  # type: ignore[no-untyped-call]
                    torch._check(size % self.axes[axis].multiple == 0)  # type: ignore[no-untyped-call]
        feeds = dict(zip((s.name for s in self.specs), values, strict=True))
        return self.adapter.forward_all(getattr(self, MODEL), feeds)


def trace(source: ModelDir, adapter: ModelAdapter, *, whole: bool = False) -> ir.Model:
    """The forward pass as the exporter writes it: opset 21, named inputs and axes, outputs named as the adapter says.

    Loops over like blocks are cut to the few iterations that `stamp` needs, unless `whole`. Runs under FakeTensorMode, so memory
    does not grow with the model. Parameters become initialisers named as in the checkpoint, with `const_value` None; buffers that
    the module computes keep their values. VditcError when an axis is fixed by the model's code or a tensor is neither in the
    checkpoint nor computed.
    """
    specs, axes = adapter.inputs(source), adapter.axes(source)
    config = source.config
    loops = () if whole else adapter.loops(config)
    if loops:
        config = adapter.shortened(config, tuple(loop.traced for loop in loops))
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def parameter(shape: torch.Size) -> torch.Tensor:
        with fake:
            return torch.empty(shape)

    with weightless(parameter):
        model = adapter.build(config)
    wrapper = _Positional(adapter, model, specs, axes).eval()
    traced, proof = sizes_for(axes)
    dynamic = tuple({i: torch.export.Dim.DYNAMIC for i, d in enumerate(s.dims) if isinstance(d, str)} for s in specs)
    with torch.no_grad(), adapter.patched(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that a model may use but this one does not, and of torch about itself
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        with fake:
            example = tuple(_zeros(s, traced) for s in specs)
            try:
                program = torch.export.export(wrapper, example, dynamic_shapes=(dynamic,), strict=False)
            except Exception as error:  # whatever a model's own code raises when its sizes are symbols
                raise not_exportable(error, "code that torch.export can trace at axes of any size", source, traced) from error
            shapes = _prove_dynamic(program, specs, adapter.outputs, source, traced, proof)
        onnx_program = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert onnx_program is not None
    graph = onnx_program.model.graph
    for value, spec in zip(graph.inputs, specs, strict=True):
        value.name, value.shape = spec.name, ir.Shape(spec.dims)
    for output, (name, dims) in zip(graph.outputs, shapes.items(), strict=True):
        output.name, output.shape = name, ir.Shape(dims)
    empty_parameters(graph, source, loops)
    return onnx_program.model


def sizes_for(axes: Mapping[str, Axis]) -> tuple[dict[str, int], dict[str, int]]:
    """Two sizes for every axis, for the tracer and for the proof that nothing was fixed.

    None is 1, and every axis has another size, in steps and in patches, so that no two axes can be mistaken for each other. (A family
    with more axes than there are small sizes has some twice; every axis still changes from the one set to the other.)
    """
    both: tuple[dict[str, int], dict[str, int]] = {}, {}
    for sizes, counts in zip(both, ((2, 3, 4, 6, 5, 7, 9, 11, 13), (3, 5, 6, 2, 7, 4, 8, 10, 12)), strict=True):
        taken: set[int] = set()
        for name, axis in axes.items():
            fits = [n for n in counts if axis.low <= n * axis.multiple <= (axis.high or n * axis.multiple)]
            fits = [n for n in fits if n * axis.multiple != both[0].get(name)]
            free = [n for n in fits if not {n, n * axis.multiple} & taken]
            if not fits:
                raise ValueError(f"axis {name} {axis} has no two sizes above 1: give its inputs a fixed size")
            count = (free or fits)[0]
            taken |= {count, count * axis.multiple}
            sizes[name] = count * axis.multiple
    return both


def _zeros(spec: InputSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    return torch.zeros(spec.shape(sizes), dtype=getattr(torch, spec.dtype))


def _prove_dynamic(
    program: Any,
    specs: tuple[InputSpec, ...],
    outputs: Mapping[str, str],
    source: ModelDir,
    traced: Mapping[str, int],
    proof: Mapping[str, int],
) -> dict[str, tuple[int | str, ...]]:
    """Run the traced program, shapes only, with every axis changed: a baked size shows itself here.

    Returns the dims of each output: named axes are those of its input, and where that has a fixed size it may have another.
    """
    of = {spec.name: spec.dims for spec in specs}
    try:
        found = [tuple(value.shape) for value in program.module()(*(_zeros(s, proof) for s in specs))]
    except (RuntimeError, AssertionError) as error:
        raise not_exportable(error, f"a second shape, {dict(proof)}", source, traced) from error
    dims: dict[str, tuple[int | str, ...]] = {}
    for (name, like), shape in zip(outputs.items(), found, strict=True):
        wanted = [proof[d] for d in of[like] if isinstance(d, str)]
        if len(shape) != len(of[like]) or wanted != [size for d, size in zip(of[like], shape, strict=True) if isinstance(d, str)]:
            problem = RuntimeError(f"{name} {list(shape)}")
            raise not_exportable(problem, f"batch and sizes {wanted} at a second shape, {dict(proof)}", source, traced)
        dims[name] = tuple(d if isinstance(d, str) else int(size) for d, size in zip(of[like], shape, strict=True))
    return dims


def not_exportable(error: Exception, wanted: str, source: ModelDir, traced: Mapping[str, int]) -> InputError:
    """One line of what torch says, whose errors go on for pages, and the line of the model's code that it says it of."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename and f.filename != __file__]
    code = f"{source.model_class} at {frames[-1].filename}:{frames[-1].lineno}" if frames else source.model_class
    return InputError(
        found=said[0].split(" For more information")[0],
        wanted=wanted,
        where=f"{code}, traced at {dict(traced)}",
        fix="let the adapter's `patched` rewrite that code (docs/adding_a_model.md)",
    )


def empty_parameters(graph: ir.Graph, source: ModelDir, loops: Sequence[Loop]) -> None:
    """Give parameters, and buffers that the checkpoint holds, their checkpoint names and take their values away."""
    held = {*source.weights, *_last_names(source, loops)}
    lost = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        plain = name.removeprefix(f"{MODEL}.")
        if plain not in held:
            if isinstance(tensor.raw, FakeTensor):
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


def _last_names(source: ModelDir, loops: Sequence[Loop]) -> set[str]:
    """The checkpoint's tensors of iterations at the end of a loop, under the numbers that these have while the loop is short."""
    names = set()
    for loop in loops:
        for module, period in loop.modules.items():
            for name in source.weights:
                found = re.match(rf"{re.escape(module)}\.(\d+)\.", name)
                if found and int(found[1]) // period >= loop.count - loop.last:
                    names.add(f"{module}.{int(found[1]) - (loop.count - loop.traced) * period}.{name[found.end() :]}")
    return names
