"""Write a graph and its weights: `model.onnx` and one file of external data beside it, streamed one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from vditc.files import whole_file

ALIGNMENT = 64  # bytes; a cache line, so that a memory map can feed vector loads
INLINE_BELOW = 1024  # bytes; smaller tensors stay in model.onnx


def external_tensors(graph: ir.Graph) -> list[ir.Value]:
    """Initialisers whose bytes go to the data file, in file order."""
    return [v for v in graph.initializers.values() if v.const_value is not None and v.const_value.nbytes >= INLINE_BELOW]


def write_model(model: ir.Model, out: Path, advance: Callable[[], None]) -> tuple[int, int]:
    """Write `out` and `out.name + ".data"`, both or none; calls `advance` after each external tensor.

    Returns the bytes of the two files. Same model, same bytes. The model's initialisers point into the data file afterwards.
    """
    data = out.with_name(f"{out.name}.data")
    with whole_file(out) as graph_file, whole_file(data) as data_file:
        with data_file.open("wb") as stream:
            for value in external_tensors(model.graph):
                tensor = value.const_value
                assert tensor is not None
                stream.write(bytes(-stream.tell() % ALIGNMENT))
                offset = stream.tell()
                stream.write(tensor.tobytes())
                value.const_value = ir.ExternalTensor(
                    data.name,
                    offset,
                    stream.tell() - offset,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=str(value.name),
                    base_dir=out.parent,
                )
                advance()
        for value in (*model.graph.inputs, *model.graph.initializers.values(), *(v for node in model.graph for v in node.outputs)):
            value.metadata_props.clear()
            if not (value.is_graph_input() or value.is_graph_output()):
                value.type = value.shape = None  # a reader infers them; written down they double the file
        graph_file.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
        sizes = graph_file.stat().st_size, data_file.stat().st_size
    return sizes
