"""The operators of the plugin library, by name, and their bodies as functions of a model."""

from __future__ import annotations

import onnx_ir as ir

from vditc.plugins.plugin_op import DOMAIN, DOMAIN_VERSION, PluginOp
from vditc.plugins.qattention.op import QAttention
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.quantize_token.op import QuantizeToken

OPERATORS: dict[str, type[PluginOp]] = {op.op_type: op for op in (QAttention, QLinear, QuantizeToken)}


def operator_of(node: ir.Node) -> PluginOp:
    """What a node of the domain says. ValueError for an operator or attributes that there are not."""
    if node.op_type not in OPERATORS:
        raise ValueError(f"operator {node.op_type}; the plugin library has {', '.join(OPERATORS)}")
    return OPERATORS[node.op_type].of(node)


def plugin_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes of the main graph that need the plugin library."""
    return [node for node in model.graph if node.domain == DOMAIN]


def attach_functions(model: ir.Model) -> None:
    """Give the model the bodies that its nodes need and the domain's import, and no others."""
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    nodes = plugin_nodes(model)
    for node in nodes:
        if node.op_identifier() not in model.functions:
            model.functions[node.op_identifier()] = operator_of(node).function()
    if nodes:
        model.graph.opset_imports[DOMAIN] = DOMAIN_VERSION
    else:
        model.graph.opset_imports.pop(DOMAIN, None)
