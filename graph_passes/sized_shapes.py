"""Shapes of everything that a graph computes at given sizes of its axes, where ONNX's inference over a whole graph loses them.

Nodes are looked at one by one. What shapes are computed of is run, so that lengths that a model computes (of a Reshape, Range or Slice)
are numbers. float16 and bfloat16 count as float32 here: the schemas of some operators have no bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.checker import ValidationError
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_node_outputs

from vditc.graph_passes.patterns import SMALL
from vditc.plugins.schemas import register

Array = npt.NDArray[Any]
Sizes = tuple[int, ...]
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# By which graphs compute shapes, small enough to be run.
_RUN = (
    *("Add", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather", "Identity", "Max"),
    *("Min", "Mod", "Mul", "Neg", "Range", "ReduceProd", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
)


def sized_shapes(graph: ir.Graph, sizes: Mapping[str, int]) -> dict[ir.Value, Sizes]:
    """Value -> its shape, with `sizes` of the named axes of the graph's inputs; a value whose shape is not known is missing."""
    register()  # the operators of the plugin library
    work = _Walk(dict(graph.opset_imports))
    for value in graph.initializers.values():
        if value.const_value is not None:
            work.know(value, value.const_value.dtype, value.const_value.shape.numpy())
            if value.const_value.size <= SMALL and value.const_value.dtype not in _HALF:
                work.data[value] = value.const_value.numpy()
    for value in graph.inputs:
        dims = [_size(d, sizes) for d in value.shape or ()]
        if value.shape is not None and value.dtype is not None:
            work.know(value, value.dtype, dims)
    for node in graph:
        work.visit(node)
    return work.shapes()


def _size(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | None:
    return dim if isinstance(dim, int) else sizes.get(str(dim.value))


class _Walk:
    """What is known of the values so far."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.opsets = opsets
        self.types: dict[ir.Value, onnx.TypeProto] = {}
        self.data: dict[ir.Value, Array] = {}

    def know(self, value: ir.Value, dtype: ir.DataType, dims: Any) -> None:
        self.types[value] = onnx.helper.make_tensor_type_proto(int(ir.DataType.FLOAT if dtype in _HALF else dtype), list(dims))

    def shapes(self) -> dict[ir.Value, Sizes]:
        """Those that are numbers."""
        return {value: found for value, kind in self.types.items() if (found := _dims(kind)) is not None}

    def visit(self, node: ir.Node) -> None:
        """Types of a node's outputs, and its numbers where shapes may be made of them."""
        proto = ir.serde.serialize_node(node)
        for attribute in proto.attribute:
            if attribute.name == "to" and attribute.i in map(int, _HALF):
                attribute.i = int(ir.DataType.FLOAT)
        read = [v for v in node.inputs if v is not None]
        self._run(node, proto, read)
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
            known = {str(v.name): self.types[v] for v in read}
            fed = {str(v.name): onnx.numpy_helper.from_array(self.data[v]) for v in read if v in self.data}
            imports = [onnx.helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
            made = infer_node_outputs(schema, proto, known, fed, opset_imports=imports, ir_version=10)
        except (onnx.defs.SchemaError, InferenceError, ValidationError, KeyError):
            made = dict[str, onnx.TypeProto]()
            # Sizes that the model has not, such as more rows than a table of positions has: as many as it asks for.
            if node.op_type == "Expand" and len(read) == 2 and read[0] in self.types and read[1] in self.data:
                have, asked = _dims(self.types[read[0]]) or (), self.data[read[1]].tolist()
                if len(have) == len(asked):
                    dims = [h if n == 1 else n for h, n in zip(have, asked, strict=True)]
                    self.know(node.outputs[0], ir.DataType(self.types[read[0]].tensor_type.elem_type), dims)
        for value in node.outputs:
            if value.name in made:
                self.types[value] = made[value.name]
                if self.types[value].tensor_type.elem_type in map(int, _HALF):  # of an operator of the plugin library
                    self.types[value].tensor_type.elem_type = int(ir.DataType.FLOAT)

    def _run(self, node: ir.Node, proto: onnx.NodeProto, read: list[ir.Value]) -> None:
        if node.op_type == "Shape" and read[0] in self.types:
            if (dims := _dims(self.types[read[0]])) is not None:
                ends = (node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims)))
                self.data[node.outputs[0]] = np.array(dims[slice(*ends)], np.int64)
        elif node.op_type in _RUN and not node.domain and all(v in self.data for v in read):
            try:
                result = _evaluated(proto, {str(v.name): self.data[v] for v in read}, self.opsets[""])
            except (ValueError, IndexError, RuntimeError):  # sizes that the model has not
                return
            if result.size <= SMALL:
                self.data[node.outputs[0]] = result


def _evaluated(proto: onnx.NodeProto, feeds: Mapping[str, Array], opset: int) -> Array:
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), None) for name, a in feeds.items()]
    graph = onnx.helper.make_graph([proto], "one", inputs, [onnx.helper.make_empty_tensor_value_info(proto.output[0])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    (result,) = ReferenceEvaluator(model).run(None, dict(feeds))
    return np.asarray(result)


def _dims(kind: onnx.TypeProto) -> Sizes | None:
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return tuple(d.dim_value for d in tensor.shape.dim)
