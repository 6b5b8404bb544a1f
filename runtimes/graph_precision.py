"""Reads out of a lowered graph which precision its layers have."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir

from vditc.errors import InputError, PrecisionError
from vditc.plugins.catalogue import operator_of
from vditc.plugins.domain import DOMAIN
from vditc.plugins.qlinear.op import QLinear
from vditc.runtimes.precision import Expectation, QuantizedLayer
from vditc.runtimes.quantized_inputs import quantized_inputs

_ENGINE_TYPES = {ir.DataType.INT8: "int8", ir.DataType.INT4: "int4", ir.DataType.FLOAT8E4M3FN: "fp8_e4m3"}
_PASS_THROUGH = ("Cast", "Identity", "Reshape", "Transpose")


def expected_precision(lowered: Path, *, plugins: bool = False) -> Expectation:
    """Read the quantized layers and attentions of an ONNX file; weights stay on disk.

    PrecisionError for a product whose activation is quantized and whose weight is not: no engine computes it in low precision.
    `plugins`: whether there is a plugin library; InputError for its operators without it, and for operators of others.
    """
    quantized: list[QuantizedLayer] = []
    floating: dict[str, str] = {}
    attentions: list[str] = []
    handed_over: dict[str, str] = {}
    layers: dict[str, tuple[str, str]] = {}
    model = ir.load(lowered)
    graph = model.graph
    # Text encoders and VAEs run once a clip. Some of their attention no kernel fuses (heads of 384 channels, biases), and matrices that are
    # stored in 8 bits may be dequantized in front of their product: both are recorded, neither is asked for.
    free = "part" in json.loads(model.metadata_props.get("vditc", "{}"))
    for node in graph:
        name = node.name or ""
        if node.domain:
            handed_over[name] = _plugin(node, lowered, plugins=plugins)
            if isinstance(op := operator_of(node), QLinear):
                layers[name] = (name.removesuffix("/QLinear"), f"plugin QLinear w{op.bits}a{op.activation_bits} -> {op.output}")
            continue
        if node.op_type in ("Softmax", "Attention") and not free:
            attentions.append(name)
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        activation, weight = (_dequantized(value) for value in node.inputs[:2])
        layer = name.removesuffix("/MatMul")
        if weight is not None and weight.const_value is not None and free and activation is None:
            floating[name] = layer
        elif weight is not None and weight.const_value is not None:
            kind = _engine_type(weight, name)
            quantized.append(QuantizedLayer(layer, name, kind, _engine_type(activation, name) if activation is not None else None))
        elif activation is not None:
            raise PrecisionError(
                found="a quantized activation with a weight that is not quantized",
                wanted="both, or the weight alone",
                where=f"node {name} of {lowered}",
                fix="give the layer's rule a weight type",
            )
        elif _source(node.inputs[1]).const_value is not None:
            floating[name] = layer
    return Expectation(tuple(quantized), floating, tuple(attentions), quantized_inputs(graph), handed_over, layers)


def weight_bytes(lowered: Path) -> int:
    """Of all initialisers of a graph."""
    tensors = (value.const_value for value in ir.load(lowered).graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _plugin(node: ir.Node, lowered: Path, *, plugins: bool) -> str:
    """The operator of a node that is not ONNX's own; InputError where no engine can have it."""
    known = node.domain == DOMAIN
    if known and plugins:
        try:
            operator_of(node)
        except ValueError as error:
            fix = "lower the model again with this version of vditc"
            raise InputError(
                found=str(error), wanted="an operator of this plugin library", where=f"{lowered}, node {node.name}", fix=fix
            ) from error
        return node.op_type
    raise InputError(
        found=f"operator {node.domain}.{node.op_type} at node {node.name}" + (" and no plugin library" if known else ""),
        wanted="the plugin library for this target" if known else f"operators of ONNX and of {DOMAIN}",
        where=str(lowered),
        fix="build it (vditc plugins build) or name it (--plugins LIB), or lower the model again without --plugins"
        if known
        else "lower the model again",
    )


def _source(value: ir.Value | None) -> ir.Value:
    assert value is not None  # MatMul and Gemm have no optional operand among the first two
    while (node := value.producer()) is not None and node.op_type in _PASS_THROUGH and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _dequantized(value: ir.Value | None) -> ir.Value | None:
    """The codes that an operand is dequantized from, if it is."""
    node = _source(value).producer()
    return node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None


def _engine_type(codes: ir.Value, where: str) -> str:
    """Type of quantized codes; those of an activation may have no recorded type, then QuantizeLinear tells."""
    dtype = codes.dtype
    node = codes.producer()
    if dtype is None and node is not None:
        dtype = ir.DataType(node.attributes.get_int("output_dtype", ir.DataType.INT8))
    if dtype not in _ENGINE_TYPES:
        raise PrecisionError(
            found=f"codes of type {dtype}",
            wanted=f"one of {', '.join(t.name for t in _ENGINE_TYPES)}",
            where=f"node {where}",
            fix="lower the graph for this target before building",
        )
    return _ENGINE_TYPES[dtype]
