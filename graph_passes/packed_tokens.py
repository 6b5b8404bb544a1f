"""Two four-bit codes of a token in a byte, where `vditc.QuantizeToken` and all layers that read it can."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from vditc.graph_passes.channel_change import array_of, forget, label
from vditc.graph_passes.core import Refusal
from vditc.graph_passes.edits import inserted
from vditc.graph_passes.patterns import quantizer
from vditc.plugins.catalogue import operator_of
from vditc.plugins.packing import BLOCK
from vditc.plugins.plugin_op import PluginOp
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.quantize_token.op import QuantizeToken


def pack_four_bits(graph: ir.Graph, nodes: list[ir.Node], refusals: list[Refusal]) -> int:
    """Pack the codes of every quantization that a layer of `nodes` reads, if all their readers agree; how many. Refusal: one that stays."""
    layers = {n: op for n in nodes if isinstance(op := operator_of(n), QLinear)}
    quantizers = dict.fromkeys(
        q for n, op in layers.items() if op.activation_bits <= 4 and not op.packed and (q := quantizer(n.inputs[0])) is not None
    )
    count = 0
    for quantize in quantizers:
        if reason := _why_not(quantize, layers):
            refusals.append(Refusal(label(quantize), f"its codes have a byte each: {reason}"))
            continue
        count += 1
        op = operator_of(quantize)
        assert isinstance(op, QuantizeToken)
        _say(quantize, dataclasses.replace(op, packed=True))
        codes = quantize.outputs[0]
        reshapes, readers = _readers(codes)
        k = layers[readers[0]].k
        for reshape in reshapes:
            _halve(graph, reshape, k)
        for value in (codes, *(r.outputs[0] for r in reshapes)):
            value.shape = None if value.shape is None else ir.Shape([*value.shape.dims[:-1], k // 2])
        for reader in readers:
            layers[reader] = dataclasses.replace(layers[reader], packed=True)
            _say(reader, layers[reader])
    return count


def _why_not(quantize: ir.Node, layers: dict[ir.Node, QLinear]) -> str:
    """Why the codes of a quantization cannot be packed; "" if they can."""
    if quantize.op_type != "QuantizeToken":
        return f"{quantize.op_type} makes them, not QuantizeToken"
    reshapes, readers = _readers(quantize.outputs[0])
    values = [quantize.outputs[0], *(r.outputs[0] for r in reshapes)]
    if any(v.is_graph_output() for v in values):
        return "they are an output of the graph"
    for reader in readers:
        op = layers.get(reader)
        if op is None or any(reader.inputs[i] in values for i in range(1, len(reader.inputs))):
            return f"{label(reader)} reads them, and is no layer of the plugin library"
        if op.bits != 4:
            return f"the weights of {label(reader)} have {op.bits} bits; codes are multiplied in pairs with weights of 4"
        if op.k % BLOCK:
            return f"{label(reader)} has {op.k} inputs, no multiple of {BLOCK}"
    return ""


def _readers(codes: ir.Value) -> tuple[list[ir.Node], list[ir.Node]]:
    """Reshapes of tokens, and who reads the codes, behind those or at once."""
    direct = list(dict.fromkeys(use.node for use in codes.uses()))
    reshapes = [n for n in direct if n.op_type == "Reshape" and n.inputs[0] is codes]
    behind = [use.node for r in reshapes for use in r.outputs[0].uses()]
    return reshapes, list(dict.fromkeys([n for n in direct if n not in reshapes] + behind))


def _say(node: ir.Node, op: PluginOp) -> None:
    """The node's attributes and body are the operator's with two codes a byte."""
    node.attributes["packed"] = ir.AttrInt64("packed", 1)
    node.overload = op.overload


def _halve(graph: ir.Graph, reshape: ir.Node, k: int) -> None:
    """Half as many elements on the last axis."""
    shape, name = reshape.inputs[1], f"{reshape.outputs[0].name}.packed"
    assert shape is not None

    def stored(suffix: str, *numbers: int) -> ir.Value:
        made = ir.val(f"{name}.{suffix}", const_value=ir.tensor(np.array(numbers, np.int64), name=f"{name}.{suffix}"))
        graph.initializers.add(made)
        return made

    if shape.const_value is not None:
        new = stored("shape", *array_of(shape).tolist()[:-1], k // 2)
    else:
        leading = inserted(graph, reshape, "Slice", [shape, stored("begin", 0), stored("end", -1)], f"{name}.leading")
        new = inserted(graph, reshape, "Concat", [leading, stored("channels", k // 2)], f"{name}.shape", axis=0)
    reshape.replace_input_with(1, new)
    forget(graph, shape)
