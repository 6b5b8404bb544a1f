"""Values for the parameters of a traced graph: read from the checkpoint when the file is written, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.float_weight import Tensor, open_rows, own_bytes
from vditc.model_dir import ModelDir
from vditc.numerics import QType
from vditc.safetensors_file import TensorEntry
from vditc.threads import for_each
from vditc.transform import OutputTransform

Array = npt.NDArray[Any]
TRANSFORMED_BIAS = ".bias.transformed"  # behind a layer's name
_BLOCK = 256 << 10  # bytes of a block that is transposed at once: it stays in a core's cache


class StreamedTensor(ir.LazyTensor):
    """A tensor that is made when it is written. Nothing is kept: each use of its value makes it anew.

    `arrays` makes it, and maybe others: it is number `index`. Neighbours in the data file with the same `arrays` are made in one
    go. `copied`: the file has these very bytes.
    """

    def __init__(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        arrays: Callable[[], Sequence[Array]],
        index: int = 0,
        copied: TensorEntry | None = None,
    ) -> None:
        """Four-bit arrays come packed, two a byte; all are in C order."""

        def tensor() -> ir.TensorProtocol:
            array = arrays()[index]
            if dtype in (ir.DataType.INT4, ir.DataType.UINT4):
                return ir.PackedTensor(array, dtype, shape=shape, name=name)
            return ir.Tensor(array, dtype=dtype, name=name)

        super().__init__(tensor, dtype, ir.Shape(shape), cache=False, name=name)
        self.arrays, self.index, self.copied = arrays, index, copied


def stored_type(qtype: QType) -> ir.DataType:
    """Type of the initialiser that holds codes."""
    if qtype.integer:
        return ir.DataType.INT4 if qtype.bits <= 4 else ir.DataType.INT8
    return ir.DataType.UINT4 if qtype is QType.FP4_E2M1 else ir.DataType.FLOAT8E4M3FN


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a named tensor; the one of that name when it is there already."""
    assert tensor.name is not None
    if tensor.name not in graph.initializers:
        shape = ir.Shape(tensor.shape.numpy())
        graph.register_initializer(ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor))
    return graph.initializers[tensor.name]


def attach_weights(graph: ir.Graph, source: ModelDir, linears: Collection[str], outputs: Mapping[str, OutputTransform]) -> None:
    """Every parameter without a value gets the checkpoint's, in the checkpoint's dtype, and a Cast to float32 behind it.

    `linears`: layers whose weight is stored [K, N], the transpose of the checkpoint's. `outputs`: layers that give out something else than
    the checkpoint's; a bias of theirs is float32 and has a name of its own.
    """
    transposed = {f"{layer}.weight" for layer in linears}
    for layer, output in outputs.items():
        if (bias := graph.initializers.pop(f"{layer}.bias", None)) is not None:
            entry = source.weights[f"{layer}.bias"]
            bias.replace_all_uses_with(add_initializer(graph, _changed(f"{layer}{TRANSFORMED_BIAS}", entry, output)))
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
        value.const_value = _transposed(name, dtype, entry) if name in transposed else _plain(name, dtype, entry)


def _changed(name: str, entry: Tensor, output: OutputTransform) -> StreamedTensor:
    return StreamedTensor(name, ir.DataType.FLOAT, entry.shape, lambda: [output.bias(np.asarray(entry.read(), np.float32))])


def _plain(name: str, dtype: ir.DataType, entry: Tensor) -> StreamedTensor:
    return StreamedTensor(name, dtype, entry.shape, lambda: [np.asarray(entry.read(), order="C")], copied=own_bytes(entry))


def _transposed(name: str, dtype: ir.DataType, entry: Tensor) -> StreamedTensor:
    return StreamedTensor(name, dtype, entry.shape[::-1], lambda: [transpose(entry)])


def transpose(tensor: Tensor) -> Array:
    """A stored tensor [N, K] as [K, N], in blocks of rows on all cores."""
    n, k = tensor.shape
    # Plain integers of the same size: the copying of ml_dtypes' types holds the interpreter's lock.
    out = np.empty((k, n), f"u{tensor.dtype.itemsize}")
    step = max(1, min(_BLOCK // max(1, k * out.itemsize), n))
    with open_rows(tensor) as rows:

        def one(start: int) -> None:
            stop = min(start + step, n)
            out[:, start:stop] = rows(start, stop).view(out.dtype).T

        for_each(one, range(0, n, step))
    return out.view(tensor.dtype)
