"""Stamp blocks out: a graph that was traced with a few iterations of each loop gets all of them.

    head, blocks.0, blocks.1, blocks.2, tail          traced (count 3, or head + 2 + last)
    head, blocks.0, blocks.1, blocks.2 ... blocks.39, tail

Two neighbouring iterations, A and B, say what changes from one to the next. An input of a node in B and its counterpart in A are
one of: the same value (invariant); values of the same place in B and A (internal), in A and the one before (carried), or in like
iterations of another loop; parameters whose names differ by the block's number; equal constants, or integer constants that grow by
a step. Anything else is an error: the adapter's loops, or its patches, do not fit the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.adapter import Loop
from vditc.errors import VditcError
from vditc.export.scopes import SCOPES, module_path

_FEW = 16  # elements of an integer constant that may grow with the block's number


class _Place(NamedTuple):
    """Where a value is made: which loop, iteration, node of the iteration, output of the node."""

    loop: int
    iteration: int
    node: int
    output: int


def stamp(graph: ir.Graph, loops: Sequence[Loop]) -> None:
    """Rewrite in place. VditcError when two iterations that should be alike are not."""
    stampers: list[_Stamper] = []
    for number, loop in enumerate(loops):
        stampers.append(_Stamper(graph, loop, number, stampers))
    places = {value: place for s in stampers for value, place in s.places()}
    for s in stampers:
        s.plan(places)
    values: dict[_Place, ir.Value] = {place: value for value, place in places.items()}
    for s in stampers:  # in execution order: a later loop reads what an earlier one has just got
        if s.added:
            s.rename_last(values)
            s.stamp(values)
            s.connect(values)


class _Source(NamedTuple):
    """What an input of a node becomes in later iterations."""

    place: _Place | None = None  # the value made there, in B's terms
    parameter: bool = False  # the one of that block
    step: npt.NDArray[np.int64] | None = None  # the constant grown by this
    # nothing of these: the same value


class _Stamper:
    """One loop."""

    def __init__(self, graph: ir.Graph, loop: Loop, number: int, others: list[_Stamper]) -> None:
        """`others`: of all loops, in order."""
        self.graph, self.loop, self.number, self.others = graph, loop, number, others
        self.a, self.b = loop.head, loop.head + 1
        self.added = loop.count - loop.traced
        lists = "|".join(re.escape(name) for name in loop.modules)
        self.pattern = re.compile(rf"(?<![\w.])((?:model\.)?)({lists})\.(\d+)(?![\w])")
        self.iterations = self._iterations()
        self.sources: list[list[_Source]] = []  # of every input of every node of B
        self.readers: list[tuple[ir.Node, int, _Place]] = []  # node, input: reads this place of B from behind the loop

    def _own(self, node: ir.Node) -> int | None:
        """The iteration whose module, or whose parameter, this node belongs to."""
        names = [module_path(node), *(str(v.name) for v in node.inputs if v is not None and v.is_initializer())]
        for name in names:
            if match := self.pattern.match(name):
                return int(match[3]) // self.loop.modules[match[2]]
        return None

    def _iterations(self) -> list[list[ir.Node]]:
        """Nodes of each iteration in graph order; what lies between two of them belongs to the later one."""
        nodes = list(self.graph)
        own = {node: self._own(node) for node in nodes}
        after: set[ir.Node] = set()  # depends on some iteration
        for node in nodes:
            if own[node] is not None or any(v is not None and v.producer() in after for v in node.inputs):
                after.add(node)
        first: dict[ir.Node, int] = {}  # the earliest iteration that needs it
        found: list[list[ir.Node]] = [[] for _ in range(self.loop.traced)]
        for node in reversed(nodes):
            mine = own[node]
            needed = [first[use.node] for v in node.outputs for use in v.uses() if use.node in first]
            if mine is not None:
                needed.append(mine)
            if needed:
                first[node] = min(needed)
                if mine is not None or node in after:
                    found[mine if mine is not None else first[node]].append(node)
        return [list(reversed(iteration)) for iteration in found]

    def places(self) -> list[tuple[ir.Value, _Place]]:
        """Every value that an iteration makes."""
        return [
            (value, _Place(self.number, k, i, j))
            for k, iteration in enumerate(self.iterations)
            for i, node in enumerate(iteration)
            for j, value in enumerate(node.outputs)
        ]

    def plan(self, places: dict[ir.Value, _Place]) -> None:
        """Compare A and B; note what every input of B becomes in later iterations, and who reads B from behind the loop."""
        if not self.added:
            return
        a, b = self.iterations[self.a], self.iterations[self.b]
        for one, two in zip(a, b, strict=False):
            if one.op_type != two.op_type or len(one.inputs) != len(two.inputs) or one.attributes != two.attributes:
                raise self._unlike(one, two)
            self.sources.append([self._source(one, two, i, places) for i in range(len(two.inputs))])
        if len(a) != len(b):
            longer = max(a, b, key=len)
            raise self._unlike(longer[min(len(a), len(b))], None)
        inside = {node for iteration in self.iterations[: self.b + 1] for node in iteration}
        for node in b:
            for value in node.outputs:
                for use in value.uses():
                    if use.node not in inside and not self._walks_along(use, places):
                        self.readers.append((use.node, use.idx, places[value]))

    def _walks_along(self, use: Any, places: dict[ir.Value, _Place]) -> bool:
        """Whether another loop reads this one step by step: its A reads our A where its B reads our B."""
        mine = places.get(use.node.outputs[0])
        if mine is None or mine.loop == self.number or mine.iteration == 0:
            return False
        before = self.others[mine.loop].iterations[mine.iteration - 1]
        if mine.node >= len(before) or use.idx >= len(before[mine.node].inputs):
            return False
        value, other = use.node.inputs[use.idx], before[mine.node].inputs[use.idx]
        if value is None or other is None or other not in places:
            return False
        here = places[value]
        return places[other] == here._replace(iteration=here.iteration - 1)

    def _source(self, one: ir.Node, two: ir.Node, index: int, places: dict[ir.Value, _Place]) -> _Source:
        va, vb = one.inputs[index], two.inputs[index]
        if va is vb:
            return _Source()
        if va is None or vb is None:
            raise self._unlike(one, two)
        pa, pb = places.get(va), places.get(vb)
        if pa is not None and pb is not None:
            # Iterations before A may be made in another way: their places say nothing.
            if pa.loop == pb.loop and pa.iteration == pb.iteration - 1 and (pa.iteration < self.a or pa[2:] == pb[2:]):
                return _Source(place=pb)
        elif va.is_initializer() and vb.is_initializer():
            ta, tb = va.const_value, vb.const_value
            if ta is None and tb is None and self.shifted(str(va.name), 1) == vb.name:
                return _Source(parameter=True)
            if ta is not None and tb is not None and ta.dtype == tb.dtype and ta.shape == tb.shape:
                if ta.tobytes() == tb.tobytes():
                    return _Source()
                if ta.dtype is ir.DataType.INT64 and ta.size <= _FEW:
                    return _Source(step=tb.numpy() - ta.numpy())
        raise self._unlike(one, two)

    def _unlike(self, one: ir.Node, two: ir.Node | None) -> VditcError:
        def say(node: ir.Node) -> str:
            return f"{node.op_type}({', '.join(str(v and v.name) for v in node.inputs)}) in {module_path(node) or 'the model'}"

        lists = ", ".join(self.loop.modules)
        return VditcError(
            found=f"{say(one)} against {say(two) if two else 'nothing'}",
            wanted=f"iterations {self.a} and {self.b} alike",
            where=f"blocks {lists}",
            fix="correct the adapter's loops, or let its `patched` make every iteration the same",
        )

    def shifted(self, text: str, iterations: int) -> str:
        """Block numbers in a name, moved on by that many iterations."""
        return self.pattern.sub(lambda m: f"{m[1]}{m[2]}.{int(m[3]) + iterations * self.loop.modules[m[2]]}", text)

    def rename_last(self, values: dict[_Place, ir.Value]) -> None:
        """Give the iterations at the end their numbers in the whole model."""
        for k in reversed(range(self.b + 1, self.loop.traced)):
            names = set()
            for node in self.iterations[k]:
                node.metadata_props[SCOPES] = self.shifted(node.metadata_props.get(SCOPES, "[]"), self.added)
                names |= {str(v.name) for v in node.inputs if v is not None and v.is_initializer() and self.pattern.match(str(v.name))}
            for name in names:
                self.graph.initializers[name].name = self.shifted(name, self.added)
            for place in [p for p in values if (p.loop, p.iteration) == (self.number, k)]:
                values[place._replace(iteration=k + self.added)] = values.pop(place)

    def stamp(self, values: dict[_Place, ir.Value]) -> None:
        """Add the iterations that were not traced, behind B."""
        at = self.iterations[self.b][-1]
        for k in range(self.b + 1, self.b + 1 + self.added):
            made: list[ir.Node] = []
            for i, (template, sources) in enumerate(zip(self.iterations[self.b], self.sources, strict=True)):
                inputs = [self._input(value, source, k, values) for value, source in zip(template.inputs, sources, strict=True)]
                outputs = len(template.outputs)
                node = ir.Node(template.domain, template.op_type, inputs, list(template.attributes.values()), num_outputs=outputs)
                node.metadata_props[SCOPES] = self.shifted(template.metadata_props.get(SCOPES, "[]"), k - self.b)
                for j, (new, old) in enumerate(zip(node.outputs, template.outputs, strict=True)):
                    new.type, new.shape = old.type, old.shape
                    values[_Place(self.number, k, i, j)] = new
                made.append(node)
            self.graph.insert_after(at, made)
            at = made[-1]

    def _input(self, value: ir.Value | None, source: _Source, k: int, values: dict[_Place, ir.Value]) -> ir.Value | None:
        """What iteration k reads where B reads `value`."""
        if source.place is not None:
            return values[source.place._replace(iteration=source.place.iteration + k - self.b)]
        if not source.parameter and source.step is None:
            return value
        assert value is not None
        grown = f"{value.name}+{self.number}.{k}"
        name = self.shifted(str(value.name), k - self.b) if source.parameter else grown
        if name not in self.graph.initializers:
            made = ir.Value(name=name, type=value.type, shape=value.shape)
            if source.step is not None:
                assert value.const_value is not None
                made.const_value = ir.tensor(value.const_value.numpy() + (k - self.b) * source.step, name=name)
            self.graph.initializers.add(made)
        return self.graph.initializers[name]

    def connect(self, values: dict[_Place, ir.Value]) -> None:
        """What read B from behind the loop reads the last iteration of its kind instead."""
        final = {
            place: values[place._replace(iteration=self.b + self.added)]
            for place in values
            if (place.loop, place.iteration) == (self.number, self.b)
        }
        for node, index, place in self.readers:
            node.replace_input_with(index, final[place])
        for place, value in final.items():
            if values[place].is_graph_output():
                values[place].replace_all_uses_with(value, replace_graph_outputs=True)
