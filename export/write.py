"""Write a graph and its weights: `model.onnx` and one file of external data beside it, streamed one tensor at a time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.errors import InputError
from vditc.export.weights import StreamedTensor
from vditc.files import copy_range, room_for, whole_file, write_at
from vditc.threads import ahead

Array = npt.NDArray[Any]

ALIGNMENT = 64  # bytes; a cache line, so that a memory map can feed vector loads
INLINE_BELOW = 1024  # bytes; smaller tensors stay in model.onnx, but for those that are made together with larger ones


def external_tensors(graph: ir.Graph) -> list[ir.Value]:
    """Initialisers whose bytes go to the data file, in file order: that of the nodes that read them first."""
    order = {node: i for i, node in enumerate(graph)}
    values = [v for v in graph.initializers.values() if v.const_value is not None and _external(v.const_value)]
    return sorted(values, key=lambda value: min(((order[use.node], use.idx) for use in value.uses()), default=(len(order), 0)))


def _external(tensor: ir.TensorProtocol) -> bool:
    if isinstance(tensor, ir.ExternalTensor):  # of a graph that was written before, whose file this one shares
        return False
    return tensor.nbytes >= INLINE_BELOW or (isinstance(tensor, StreamedTensor) and tensor.index > 0)


def write_model(model: ir.Model, out: Path, advance: Callable[[], None]) -> tuple[int, int]:
    """Write `out` and `out.name + ".data"`, both or none; calls `advance` after each external tensor.

    Returns the bytes of the two files. Same model, same bytes. The model's initialisers point into the data file afterwards. While
    a tensor is written, the next is made; what the checkpoint holds byte for byte is copied from file to file. VditcError when the
    disk is full.
    """
    data = out.with_name(f"{out.name}.data")
    values = external_tensors(model.graph)
    tensors = [value.const_value for value in values if value.const_value is not None]
    places: list[ir.ExternalTensor] = []
    end = 0
    for value, tensor in zip(values, tensors, strict=True):
        offset = end + -end % ALIGNMENT
        end = offset + tensor.nbytes
        shape = ir.Shape(tensor.shape.numpy())
        places.append(
            ir.ExternalTensor(data.name, offset, tensor.nbytes, tensor.dtype, shape=shape, name=str(value.name), base_dir=out.parent)
        )
    with whole_file(out) as graph_file, whole_file(data) as data_file, room_for(data, end):
        file = os.open(data_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            groups = [list(group) for _, group in itertools.groupby(zip(tensors, places, strict=True), key=lambda t: _maker(t[0]))]
            for group, arrays in zip(groups, ahead(partial(_arrays, group[0][0]) for group in groups), strict=True):
                for tensor, place in group:
                    _write(file, tensor, arrays, place)
                    advance()
        finally:
            os.close(file)
        for value, place in zip(values, places, strict=True):
            value.const_value = place
        for value in (*model.graph.inputs, *model.graph.initializers.values(), *(v for node in model.graph for v in node.outputs)):
            value.metadata_props.clear()
            if not (value.is_graph_input() or value.is_graph_output()):
                value.type = value.shape = None  # a reader infers them; written down they double the file
        graph_file.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
        sizes = graph_file.stat().st_size, data_file.stat().st_size
        out.unlink(missing_ok=True)  # a kill between the two renames leaves no graph rather than an old one with new weights
    return sizes


def _maker(tensor: ir.TensorProtocol) -> int:
    """What tensors that are made in one go have in common."""
    return id(tensor.arrays) if isinstance(tensor, StreamedTensor) else id(tensor)


def _arrays(tensor: ir.TensorProtocol) -> Sequence[Array]:
    """Everything that is made together with a tensor; nothing for one that is copied."""
    if isinstance(tensor, StreamedTensor):
        return () if tensor.copied is not None else tensor.arrays()
    return (np.frombuffer(tensor.tobytes(), np.uint8),)


def _write(file: int, tensor: ir.TensorProtocol, arrays: Sequence[Array], place: ir.ExternalTensor) -> None:
    assert place.offset is not None and place.length is not None
    if isinstance(tensor, StreamedTensor) and (entry := tensor.copied) is not None:
        source = os.open(entry.path, os.O_RDONLY)
        try:
            copy_range(source, entry.offset, file, place.offset, entry.nbytes)
        except EOFError as error:
            raise InputError(
                found=str(error), wanted="the checkpoint as it was", where=str(entry.path), fix="restore the file; it has changed"
            ) from error
        finally:
            os.close(source)
        return
    array = arrays[tensor.index if isinstance(tensor, StreamedTensor) else 0]
    if array.nbytes != place.length:
        raise ValueError(f"tensor {tensor.name}: {array.nbytes} bytes where {place.length} were announced")
    write_at(file, array.reshape(-1).view(np.uint8), place.offset)
