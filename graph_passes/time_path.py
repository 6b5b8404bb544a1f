"""Which part of a graph depends on the time alone, and where to cut it off so that few bytes stand for all of its weights."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping

import onnx_ir as ir

TIMESTEP, STEP = "timestep", "step"
PRODUCTS = ("MatMul", "Gemm", "Conv")  # whose weights are worth a table
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout")


class Kind(enum.IntEnum):
    """What a value depends on; a node's outputs have the greatest kind of its inputs."""

    CONSTANT = 0
    SIZE = 1  # the number of clips
    TIME = 2  # the time, and maybe the number of clips
    DATA = 3  # anything else


def batch_axis(graph: ir.Graph) -> str | None:
    """The name of the timestep's one axis; None where it has a size, or there is no timestep."""
    dims = next((v.shape.dims for v in graph.inputs if v.name == TIMESTEP and v.shape is not None), ())
    return str(dims[0].value) if len(dims) == 1 and isinstance(dims[0], ir.SymbolicDim) else None


def kinds(graph: ir.Graph) -> dict[ir.Value, Kind]:
    """Of every value. Only the input `timestep` [clips] and `step` are the time: whatever else says when is not the schedule's."""
    axis, found = batch_axis(graph), dict[ir.Value, Kind]()
    for value in graph.inputs:
        plain = value.shape is not None and len(value.shape) == 1
        found[value] = Kind.TIME if value.name in (TIMESTEP, STEP) and plain else Kind.DATA
    found |= dict.fromkeys(graph.initializers.values(), Kind.CONSTANT)
    for node in graph:
        kind = max((found.get(v, Kind.DATA) for v in node.inputs if v is not None), default=Kind.CONSTANT)
        inner = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        if node.domain or inner or node.op_type in _RANDOM:
            kind = Kind.DATA
        elif node.op_type in ("Shape", "Size") and kind is not Kind.CONSTANT:
            kind = Kind.SIZE if kind is not Kind.DATA or counts_clips(node, axis) else Kind.DATA
        found |= dict.fromkeys(node.outputs, kind)
    return found


def counts_clips(node: ir.Node, axis: str | None) -> bool:
    """Whether this is the Shape of a graph input's axis of clips, or of axes whose sizes are known."""
    value = node.inputs[0]
    if node.op_type != "Shape" or value is None or not value.is_graph_input() or value.shape is None:
        return False
    return all(isinstance(d, int) or (axis is not None and d.value == axis) for d in chosen_dims(node))


def chosen_dims(shape: ir.Node) -> tuple[int | ir.SymbolicDim, ...]:
    """The dims of its input that a Shape node gives."""
    value = shape.inputs[0]
    assert value is not None and value.shape is not None
    end = shape.attributes["end"].as_int() if "end" in shape.attributes else None
    return value.shape.dims[shape.attributes.get_int("start", 0) : end]


def upstream(values: Iterable[ir.Value | None], kind: Mapping[ir.Value, Kind]) -> set[ir.Node]:
    """The nodes of the time path that compute these values."""
    return needed(values, lambda value: kind[value] is Kind.TIME)


def needed(values: Iterable[ir.Value | None], follow: Callable[[ir.Value], bool] = lambda _: True) -> set[ir.Node]:
    """Every node that computes these values, as far up as `follow` holds."""
    found: set[ir.Node] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        node = value.producer() if value is not None else None
        if value is not None and node is not None and node not in found and follow(value):
            found.add(node)
            todo += node.inputs
    return found


def weight_bytes(value: ir.Value | None, kind: Mapping[ir.Value, Kind]) -> int:
    """Bytes of the initialisers behind a constant value; 0 for any other."""
    if value is None or kind.get(value) is not Kind.CONSTANT:
        return 0
    constants = {v for n in needed([value]) for v in n.inputs if v is not None and v.const_value is not None}
    constants |= {value} if value.const_value is not None else set()
    return sum(v.const_value.nbytes for v in constants if v.const_value is not None)


@dataclasses.dataclass(frozen=True)
class Cut:
    """`inside` is evaluated for every step; `values` are what it gives to the rest of the graph."""

    inside: frozenset[ir.Node]
    values: tuple[ir.Value, ...]


class CutFinder:
    """All products of the time path are inside; beyond them the cut moves on where that costs no bytes, weights counted.

    `row_bytes`: of one step's row of a table of this value, None where no table can stand for it: then what reads it must be
    inside as well, or it outside.
    """

    def __init__(self, graph: ir.Graph, kind: Mapping[ir.Value, Kind], row_bytes: Callable[[ir.Value], int | None], steps: int) -> None:
        self.graph, self.kind, self.row_bytes, self.steps = graph, kind, row_bytes, steps
        self.inside: set[ir.Node] = set()
        self.barred: set[ir.Node] = set()  # their values are read as they are, and no table can stand for them

    def find(self) -> Cut:
        """See above; nothing is inside where no product has weights."""
        heavy = [n for n in self.graph if n.op_type in PRODUCTS and self._is_time(n) and any(weight_bytes(v, self.kind) for v in n.inputs)]
        while True:
            above = [upstream(node.outputs, self.kind) for node in heavy]
            self.inside = {node for nodes in above if not nodes & self.barred for node in nodes}
            stuck = self.close()
            if not stuck:
                break
            self.barred |= stuck
        self.advance()
        order: dict[ir.Node | None, int] = {node: i for i, node in enumerate(self.graph)}
        inputs = [v for v in self.graph.inputs if v.name == TIMESTEP and any(u.node in self.inside for u in v.uses())]
        values = [v for v in (*inputs, *(v for node in self.inside for v in node.outputs)) if self.readers(v, self.inside)]
        return Cut(frozenset(self.inside), tuple(sorted(values, key=lambda v: (order.get(v.producer(), -1), v.index() or 0))))

    def _is_time(self, node: ir.Node) -> bool:
        return self.kind[node.outputs[0]] is Kind.TIME

    def readers(self, value: ir.Value, inside: set[ir.Node]) -> list[ir.Node]:
        """Nodes outside that want a value of the inside: its elements, or its size for something that is not inside either.

        A graph output counts as read by its own producer; the size of an input is to be had elsewhere.
        """
        found = []
        for node in dict.fromkeys(u.node for u in value.uses() if u.node not in inside):
            if self.kind[node.outputs[0]] is Kind.SIZE:
                if not value.is_graph_input() and any(self.readers(v, inside) for v in node.outputs):
                    found.append(node)
            else:
                found.append(node)
        own = value.producer()
        return [*found, own] if value.is_graph_output() and own is not None else found

    def close(self) -> set[ir.Node]:
        """Take in what reads a value that no table can stand for; returns nodes whose value others read as it is."""
        todo, stuck = list(self.inside), set[ir.Node]()
        while todo:
            node = todo.pop()
            for value in (v for v in node.outputs if self.row_bytes(v) is None):
                for reader in self.readers(value, self.inside):
                    if self._is_time(reader) and reader is not node:
                        new = upstream(reader.outputs, self.kind) - self.inside
                        self.inside |= new
                        todo += new
                    else:
                        stuck.add(node)
        return stuck

    def advance(self) -> None:
        """Move the cut node by node while the bytes of tables and of weights that stay do not grow, nor the number of tables."""
        moved = True
        while moved:
            moved = False
            for node in self.graph:
                if self._is_next(node) and self._is_gain(node):
                    self.inside.add(node)
                    moved = True

    def _is_next(self, node: ir.Node) -> bool:
        if node in self.inside or node in self.barred or not self._is_time(node) or any(self.row_bytes(v) is None for v in node.outputs):
            return False
        times = [v for v in node.inputs if v is not None and self.kind[v] is Kind.TIME]
        made = [v for v in times if v.producer() in self.inside]
        return bool(made) and all(v in made or v.is_graph_input() for v in times)

    def _is_gain(self, node: ir.Node) -> bool:
        after = self.inside | {node}
        inputs = {v for v in node.inputs if v is not None and not self.readers(v, after)}
        gone = {v for v in inputs if v.producer() in self.inside}
        new = [v for v in node.outputs if self.readers(v, after)]
        rows = sum(self.row_bytes(v) or 0 for v in new) - sum(self.row_bytes(v) or 0 for v in gone)
        grows = self.steps * rows - sum(weight_bytes(v, self.kind) for v in inputs)
        return grows < 0 or (grows == 0 and len(new) <= len(gone))


def mixed_products(graph: ir.Graph, kind: Mapping[ir.Value, Kind], rank: Callable[[ir.Value], int]) -> list[tuple[str, str]]:
    """Where the time meets vectors of a clip (a pooled text, a guidance scale) before matrix products: node, and what stays live.

    What depends on the latents (the graph's first input), or has an axis of tokens or frames, is data that the time modulates; there a
    value of the time has such an axis as well, of size 1, where one that meets a vector is [clips, C].
    """
    axis, latents = batch_axis(graph), next(iter(graph.inputs), None)
    wide = {v for v in graph.inputs if v.shape is None or any(isinstance(d, ir.SymbolicDim) and d.value != axis for d in v.shape)}
    told: dict[ir.Value, frozenset[str]] = {v: frozenset([str(v.name)]) for v in graph.inputs}  # inputs that a value depends on
    meets: dict[ir.Value, frozenset[ir.Node]] = {}  # nodes at which the time met other vectors
    behind: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        if node.op_type in ("Shape", "Size"):
            continue
        read = [v for v in node.inputs if v is not None]
        inputs = frozenset(name for v in read for name in told.get(v, ()))
        told |= dict.fromkeys(node.outputs, inputs)
        here = kind[node.outputs[0]] is Kind.DATA and any(kind[v] is Kind.TIME and rank(v) == 2 for v in read)
        if (latents is not None and latents.name in inputs) or (any(v in wide for v in read) and not here):
            wide |= set(node.outputs)
            continue
        joins = frozenset(join for v in read for join in meets.get(v, ())) | ({node} if here else set())
        meets |= dict.fromkeys(node.outputs, joins)
        if node.op_type in PRODUCTS and any(weight_bytes(v, kind) for v in read):
            for join in joins:
                behind.setdefault(join, []).append(node)
    found = []
    for join, products in behind.items():
        others = sorted({n for p in products for n in told[p.outputs[0]]} - {TIMESTEP, STEP})
        size = counted(sum(weight_bytes(v, kind) for p in products for v in p.inputs))
        reason = f"the time meets {', '.join(others)}: {len(products)} products behind it stay live, {size} of weights"
        found.append((str(join.name), reason))
    return found


def counted(bytes_: int) -> str:
    """Bytes as a person reads them."""
    return f"{bytes_ / 1e6:.1f} MB" if bytes_ >= 1e5 else f"{bytes_ / 1e3:.1f} kB" if bytes_ >= 1000 else f"{bytes_} bytes"
