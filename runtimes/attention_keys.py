"""How many keys the float16 attentions of a lowered graph have at given sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_node_outputs

from vditc.plugins.schemas import register
from vditc.runtimes.graph_inputs import graph_sizes

Array = npt.NDArray[Any]
SMALL = 4096  # elements: what shapes are computed of has fewer
# Operators by which graphs compute shapes, small enough to be run.
_SHAPES = [
    *("Add", "Cast", "Ceil", "Concat", "Div", "Equal", "Expand", "Floor", "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Range"),
    *("ReduceProd", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
]


def float16_keys(lowered: Path, sizes: Mapping[str, int]) -> int:
    """Most keys of an attention that is computed in float16, 0 without one. `sizes`: of every named axis, in steps.

    Shapes are inferred node by node at these sizes; where they cannot be, the tokens of clip and text together stand for them.
    """
    register()  # the operators of the plugin library
    model = onnx.load(lowered, load_external_data=False)
    types = _types(model, sizes)
    most, together = 0, graph_sizes(lowered).tokens(sizes) + sizes.get("text_tokens", 0)
    for node in model.graph.node:
        if node.op_type == "Softmax":
            found = types.get(node.output[0])
            if found is None or found.elem_type == TensorProto.FLOAT16:
                dims = found.shape.dim if found is not None else ()
                most = max(most, (dims[-1].dim_value if dims else 0) or together)
        elif node.op_type == "Attention":
            found = types.get(node.input[1])  # keys [batch, heads, keys, width]
            if found is None or found.elem_type == TensorProto.FLOAT16:
                sizes_of_keys = list(found.shape.dim) if found is not None else []
                most = max(most, (sizes_of_keys[2].dim_value if len(sizes_of_keys) == 4 else 0) or together)
    return most


def _types(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, TypeProto.Tensor]:
    """Element type and, where it can be told, shape of every value.

    bfloat16 counts as float32: the schemas of some operators, Gelu for one, have it not, though TensorRT computes them.
    """
    types: dict[str, TypeProto] = {}
    data: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        wide = tensor.data_type == TensorProto.BFLOAT16
        types[tensor.name] = helper.make_tensor_type_proto(TensorProto.FLOAT if wide else tensor.data_type, tensor.dims)
        if not wide and tensor.data_location != TensorProto.EXTERNAL and np.prod(tensor.dims) <= SMALL:
            data[tensor.name] = numpy_helper.to_array(tensor)
    for value in model.graph.input:
        types[value.name] = value.type
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    opset = next(o.version for o in model.opset_import if not o.domain)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
        data |= _data(node, types, data, opset)
        try:
            schema = defs.get_schema(node.op_type, opset, node.domain)
            known = {name: types[name] for name in node.input if name in types}
            fed = {name: numpy_helper.from_array(data[name]) for name in node.input if name in data}
            made = infer_node_outputs(schema, node, known, fed, opset_imports=list(model.opset_import), ir_version=model.ir_version)
            for kind in made.values():
                if kind.tensor_type.elem_type == TensorProto.BFLOAT16:  # of an operator of the plugin library
                    kind.tensor_type.elem_type = TensorProto.FLOAT
            types |= made
        except (defs.SchemaError, InferenceError, ValidationError, KeyError):
            # Sizes that the model has not, or an operator without a rule: the shape is lost, the element type mostly goes on.
            if node.input and node.input[0] in types:
                same = types[node.input[0]].tensor_type.elem_type
                types |= {name: helper.make_tensor_type_proto(same, None) for name in node.output}
    return {name: kind.tensor_type for name, kind in types.items()}


def _data(node: NodeProto, types: Mapping[str, TypeProto], data: Mapping[str, Array], opset: int) -> dict[str, Array]:
    """The node's output where it belongs to a shape."""
    if node.op_type == "Shape" and node.input[0] in types:
        kind = types[node.input[0]].tensor_type
        if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
            return {}
        ends: dict[str, int] = {a.name: a.i for a in node.attribute}
        return {node.output[0]: np.array([d.dim_value for d in kind.shape.dim][ends.get("start", 0) : ends.get("end")], np.int64)}
    if node.op_type not in _SHAPES or not all(name in data for name in node.input if name):
        return {}
    model = helper.make_model(_graph(node, data), opset_imports=[helper.make_opsetid("", opset)])
    (result,) = ReferenceEvaluator(model).run(None, {name: data[name] for name in node.input if name})
    found = np.asarray(result)
    return {node.output[0]: found} if found.size <= SMALL else {}


def _graph(node: NodeProto, data: Mapping[str, Array]) -> onnx.GraphProto:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(data[name].dtype), None)
        for name in dict.fromkeys(node.input)
        if name
    ]
    return helper.make_graph([node], "one", inputs, [helper.make_value_info(node.output[0], TypeProto())])
