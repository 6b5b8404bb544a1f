"""The plugin library's operators as schemas of the onnx package, so that its shape inference goes on behind their nodes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from vditc.plugins.catalogue import OPERATORS
from vditc.plugins.plugin_op import DOMAIN, DOMAIN_VERSION, NAMED, Dims, PluginOp

_ATTRIBUTES = {
    "int": OpSchema.AttrType.INT,
    "bool": OpSchema.AttrType.INT,
    "float": OpSchema.AttrType.FLOAT,
    "str": OpSchema.AttrType.STRING,
}
_TYPES = [f"tensor({name})" for name in ("int8", "float16", "bfloat16", "float")]


@functools.cache
def register() -> None:
    """Make them known to this process."""
    for operator in OPERATORS.values():
        onnx.defs.register_schema(_schema(operator))


def _schema(operator: type[PluginOp]) -> OpSchema:
    fields = {f.name: _ATTRIBUTES[str(f.type)] for f in dataclasses.fields(operator)} | dict.fromkeys(NAMED, OpSchema.AttrType.STRING)
    variadic = OpSchema.FormalParameterOption.Variadic
    values = [OpSchema.FormalParameter(name, "T", param_option=variadic, is_homogeneous=False) for name in ("inputs", "outputs")]
    made = OpSchema(
        operator.op_type,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=values[:1],
        outputs=values[1:],
        type_constraints=[("T", _TYPES, "")],
        attributes=[OpSchema.Attribute(name, kind, "", required=True) for name, kind in fields.items()],
    )
    made.set_type_and_shape_inference_function(functools.partial(_infer, operator))
    return made


def _infer(operator: type[PluginOp], context: Any) -> None:
    """Types and shapes of a node's outputs; none where its attributes are not the operator's."""
    said = {f.name: context.get_attribute(f.name) for f in dataclasses.fields(operator)}
    values = {name: onnx.helper.get_attribute_value(one) for name, one in said.items() if one is not None}
    try:
        op = operator.of_values({name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()})
    except (ValueError, TypeError):
        return
    given = [context.get_input_type(i) for i in range(context.get_num_inputs())]
    if len(given) != len(op.inputs) or context.get_num_outputs() > len(op.outputs) or None in given:
        return
    try:
        types = op.types([ir.DataType(one.tensor_type.elem_type) for one in given])
    except ValueError:  # for who counts types of 16 bits as float32, since other schemas have no bfloat16
        types = tuple(ir.DataType.INT8 if name == "codes" else ir.DataType.FLOAT for name in op.outputs)
    for i, (dtype, dims) in enumerate(zip(types, op.shapes([_dims(one) for one in given]), strict=True)):
        if i < context.get_num_outputs():
            context.set_output_type(i, onnx.helper.make_tensor_type_proto(int(dtype), dims))


def _dims(kind: onnx.TypeProto) -> Dims | None:
    shape = kind.tensor_type.shape.dim if kind.tensor_type.HasField("shape") else None
    return None if shape is None else tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in shape)
