"""Element types of every value of a graph, from the types of its inputs and the operators' schemas."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from vditc.plugins.catalogue import operator_of
from vditc.plugins.plugin_op import DOMAIN

# Operators whose output type is an attribute's, not an input's.
_FROM_ATTRIBUTE = {"Cast": "to", "QuantizeLinear": "output_dtype", "DequantizeLinear": "output_dtype"}
_BY_SCHEMA_NAME = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(bfloat16)": ir.DataType.BFLOAT16,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(int64)": ir.DataType.INT64,
    "tensor(int32)": ir.DataType.INT32,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(int8)": ir.DataType.INT8,
}


@dataclass(frozen=True)
class Mixed:
    """A node that reads two types where its operator wants one."""

    node: ir.Node
    parameter: str  # type parameter of the schema
    types: tuple[ir.DataType, ir.DataType]


@dataclass(frozen=True)
class ElementTypes:
    """Type of each value (absent where the schema does not tell), and the nodes that mix types."""

    of: dict[ir.Value, ir.DataType]
    mixed: tuple[Mixed, ...]


def element_types(graph: ir.Graph) -> ElementTypes:
    """One walk in topological order; what the file says about intermediate values is not trusted."""
    types: dict[ir.Value, ir.DataType] = {}
    mixed: list[Mixed] = []
    for value in (*graph.inputs, *graph.initializers.values()):
        found = value.const_value.dtype if value.const_value is not None else value.dtype
        if found is not None:
            types[value] = found
    opset = graph.opset_imports.get("", 21)
    for node in graph:
        if node.domain == DOMAIN:
            types |= _of_plugin(node, types)
            continue
        bound: dict[str, ir.DataType] = {}
        inputs, outputs = _signature(node.op_type, opset, node.domain)
        for read, parameter in zip(node.inputs, _extended(inputs, len(node.inputs)), strict=True):
            if read is None or read not in types:
                continue
            if bound.setdefault(parameter, types[read]) != types[read] and parameter not in _BY_SCHEMA_NAME:
                mixed.append(Mixed(node, parameter, (bound[parameter], types[read])))
        for value, parameter in zip(node.outputs, _extended(outputs, len(node.outputs)), strict=True):
            if (found := _declared(node) or _of_scale(node, types)) is not None:
                types[value] = found
            elif parameter in bound:
                types[value] = bound[parameter]
            elif parameter in _BY_SCHEMA_NAME:
                types[value] = _BY_SCHEMA_NAME[parameter]
    return ElementTypes(types, tuple(mixed))


def _of_plugin(node: ir.Node, types: dict[ir.Value, ir.DataType]) -> dict[ir.Value, ir.DataType]:
    """Of the plugin library's operators; none where the node is not as it should be, which the dialect's rules say."""
    try:
        found = operator_of(node).types([types.get(v) if v is not None else None for v in node.inputs])
    except ValueError:
        return {}
    return dict(zip(node.outputs, found, strict=True))


def _declared(node: ir.Node) -> ir.DataType | None:
    """The output type where the node itself tells it."""
    if (name := _FROM_ATTRIBUTE.get(node.op_type)) and name in node.attributes:
        return ir.DataType(node.attributes[name].as_int())
    if node.op_type in ("Constant", "ConstantOfShape"):
        value = node.attributes.get("value")
        if value is not None:
            return value.as_tensor().dtype
        if node.op_type == "ConstantOfShape" or "value_float" in node.attributes or "value_floats" in node.attributes:
            return ir.DataType.FLOAT
        return ir.DataType.INT64
    if node.op_type == "QuantizeLinear" and len(node.inputs) == 3 and node.inputs[2] is not None and node.inputs[2].const_value is not None:
        return node.inputs[2].const_value.dtype
    return None


def _of_scale(node: ir.Node, types: dict[ir.Value, ir.DataType]) -> ir.DataType | None:
    """What DequantizeLinear gives; from opset 23 on its schema has a type of its own for that."""
    scale = node.inputs[1] if node.op_type == "DequantizeLinear" else None
    return types.get(scale) if scale is not None else None


@functools.cache
def _signature(op_type: str, opset: int, domain: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Type parameters of inputs and outputs; a parameter with one possible type (Shape's int64) is that type's name."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:  # unknown, or of a later opset; the dialect's rules say so
        return (), ()

    def name(parameter: onnx.defs.OpSchema.FormalParameter) -> str:
        return next(iter(parameter.types)) if len(parameter.types) == 1 else parameter.type_str

    return tuple(name(p) for p in schema.inputs), tuple(name(p) for p in schema.outputs)


def _extended(parameters: tuple[str, ...], count: int) -> Iterator[str]:
    """A variadic operator's last parameter repeats."""
    for i in range(count):
        yield parameters[min(i, len(parameters) - 1)] if parameters else f"unknown {i}"
