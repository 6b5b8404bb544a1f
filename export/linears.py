"""Every linear layer becomes `L/MatMul` and `L/Add` over a weight [K, N]: one form to quantize, and no Transpose at run time."""

from __future__ import annotations

import onnx_ir as ir

from vditc.model_dir import ModelDir


def normalise_linears(graph: ir.Graph, source: ModelDir) -> dict[str, list[ir.Node]]:
    """Layer name -> its MatMul nodes (several when a weight is used more than once), in graph order.

    Rewrites MatMul(x, Transpose(W)) and Gemm(x, W, b, transB=1) in place; W's initialiser, still without a value,
    gets the shape [K, N]. A weight with any other use stays [N, K] and is not in the answer.
    """
    found: dict[str, list[ir.Node]] = {}
    for name, entry in source.weights.items():
        weight = graph.initializers.get(name)
        if not name.endswith(".weight") or len(entry.shape) != 2 or weight is None:
            continue
        users = [use.node for use in weight.uses()]
        if not users or not all(_is_transpose(node) or _is_gemm(node, weight) for node in users):
            continue
        layer = name.removesuffix(".weight")
        weight.shape = ir.Shape(entry.shape[::-1])
        found[layer] = [m for node in users for m in (_drop_transpose(graph, node) if _is_transpose(node) else _split_gemm(graph, node))]
        if len(found[layer]) == 1:
            _name(layer, found[layer][0])
    order = {id(node): i for i, node in enumerate(graph)}
    return dict(sorted(found.items(), key=lambda item: order[id(item[1][0])]))


def _is_transpose(node: ir.Node) -> bool:
    """A transposed weight that only MatMuls read, as their second input."""
    uses = node.outputs[0].uses()
    return (
        node.op_type == "Transpose"
        and tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0)
        and all(use.node.op_type == "MatMul" and use.idx == 1 for use in uses)
    )


def _is_gemm(node: ir.Node, weight: ir.Value) -> bool:
    """x W^T + b with no other factor."""
    get = node.attributes
    plain = get.get_int("transB", 0) == 1 and get.get_int("transA", 0) == 0
    return (
        node.op_type == "Gemm" and node.inputs[1] is weight and plain and get.get_float("alpha", 1.0) == get.get_float("beta", 1.0) == 1.0
    )


def _drop_transpose(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    weight = node.inputs[0]
    assert weight is not None
    matmuls = [use.node for use in node.outputs[0].uses()]
    node.outputs[0].replace_all_uses_with(weight)
    graph.remove(node, safe=True)
    return matmuls


def _split_gemm(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    out = node.outputs[0]
    matmul = ir.node("MatMul", [node.inputs[0], node.inputs[1]], name=f"{node.name}/MatMul")
    new = [matmul]
    if len(node.inputs) == 3:
        new.append(ir.node("Add", [matmul.outputs[0], node.inputs[2]], name=f"{node.name}/Add"))
    new[-1].outputs[0].name = out.name
    matmul.outputs[0].name = matmul.name
    out.replace_all_uses_with(new[-1].outputs[0], replace_graph_outputs=True)
    graph.insert_before(node, new)
    graph.remove(node, safe=True)
    return [matmul]


def _name(layer: str, matmul: ir.Node) -> None:
    """Name the MatMul, and the Add of a bias behind it, after the layer."""
    nodes = [matmul, *(use.node for use in matmul.outputs[0].uses() if use.node.op_type == "Add")][:2]
    for node in nodes:
        node.name = f"{layer}/{node.op_type}"
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = node.name
