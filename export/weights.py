"""Values for the parameters of a traced graph: read from the checkpoint when the file is written, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.model_dir import ModelDir
from vditc.safetensors_file import TensorEntry


def lazy(name: str, dtype: ir.DataType, shape: tuple[int, ...], read: Callable[[], npt.NDArray[Any]]) -> ir.LazyTensor:
    """A tensor whose bytes `read` makes anew each time; INT4 codes come packed, two a byte."""

    def tensor() -> ir.TensorProtocol:
        array = np.ascontiguousarray(read())
        if dtype is ir.DataType.INT4:
            return ir.PackedTensor(array, dtype, shape=shape, name=name)
        return ir.Tensor(array, dtype=dtype, name=name)

    return ir.LazyTensor(tensor, dtype, ir.Shape(shape), cache=False, name=name)


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a named tensor; the one of that name when it is there already."""
    assert tensor.name is not None
    if tensor.name not in graph.initializers:
        shape = ir.Shape(tensor.shape.numpy())
        graph.register_initializer(ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor))
    return graph.initializers[tensor.name]


def attach_weights(graph: ir.Graph, source: ModelDir, linears: Collection[str]) -> None:
    """Every parameter without a value gets the checkpoint's, in the checkpoint's dtype, and a Cast to float32 behind it.

    `linears`: layers whose weight is stored [K, N], the transpose of the checkpoint's.
    """
    transposed = {f"{layer}.weight" for layer in linears}
    order = {node: i for i, node in enumerate(graph)}
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None:
            continue
        entry = source.weights[name]
        shape = entry.shape[::-1] if name in transposed else entry.shape
        dtype = ir.DataType.from_numpy(entry.dtype)
        if dtype is not ir.DataType.FLOAT:
            first = min((use.node for use in value.uses()), key=order.__getitem__)
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
            cast.outputs[0].name = cast.name
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            graph.insert_before(first, cast)
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        value.const_value = lazy(name, dtype, shape, partial(_transposed, entry) if name in transposed else entry.read)


def _transposed(entry: TensorEntry) -> npt.NDArray[Any]:
    return entry.read().T
