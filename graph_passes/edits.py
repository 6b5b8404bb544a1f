"""Small changes of a graph that several passes make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir


def inserted(
    graph: ir.Graph, before: ir.Node, kind: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int | list[int]
) -> ir.Value:
    """What a new node in front of `before` gives; both are called `name`."""
    node = ir.node(kind, inputs, attributes, name=name)
    node.outputs[0].name = name
    graph.insert_before(before, node)
    return node.outputs[0]


def cast_behind(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Value:
    """`value` as `to`, by a Cast right behind the node that computes it, or in front of all."""
    node = ir.node("Cast", [value], {"to": int(to)}, name=f"{value.name}/{to.name.lower()}")
    node.outputs[0].name = f"{value.name}.{to.name.lower()}"
    node.outputs[0].type = ir.TensorType(to)
    if (before := value.producer()) is not None:
        graph.insert_after(before, node)
    else:
        graph.insert_before(graph[0], node)
    return node.outputs[0]


def remove_unread(graph: ir.Graph, nodes: Iterable[ir.Node | None]) -> bool:
    """Remove those of `nodes` whose outputs nobody reads, one after another; whether there were any."""
    found = False
    for node in nodes:
        if node is not None and not any(v.is_graph_output() or any(True for _ in v.uses()) for v in node.outputs):
            graph.remove(node, safe=True)
            found = True
    return found
