"""A change of a tensor's channels, and the plan of how what computes the tensor makes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.graph_passes.patterns import producer

Array = npt.NDArray[Any]
LARGEST = 1 << 24  # elements of a constant that is computed anew: a table of steps, not a weight


class AbsorptionError(Exception):
    """A producer that cannot take the change; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Change:
    """x * factor + addend, or x / divisor. Arrays are float64 and broadcast with x from the right."""

    factor: Array = dataclasses.field(default_factory=lambda: np.ones(()))
    addend: Array | None = None
    divisor: ir.Value | None = None  # one element, gathered by `step` from `table`; then `factor` is 1 where it divides, 0 elsewhere
    table: Array | None = None  # [steps], of the divisor
    of_vector: bool = False  # x does not span the tokens

    def mapped(self, function: Callable[[Array], Array]) -> Change:
        """The same in other axes."""
        return dataclasses.replace(self, factor=function(self.factor), addend=None if self.addend is None else function(self.addend))

    @property
    def linear(self) -> Change:
        """Without the addend."""
        return dataclasses.replace(self, addend=None)

    @property
    def axes(self) -> set[int]:
        """Axes along which it differs, counted from the last, -1."""
        arrays = [self.factor] if self.addend is None else [self.factor, self.addend]
        return {i - a.ndim for a in arrays for i, n in enumerate(a.shape) if n > 1}

    @property
    def whole(self) -> bool:
        """Whether it can be computed when the graph runs: no divisor of a part."""
        return self.divisor is None or bool(self.factor.all())

    def of(self, array: Array) -> Array:
        """What a constant becomes, float32; `factor` is no divisor's."""
        wide = array.astype(np.float64) * self.factor
        return np.asarray(wide if self.addend is None else wide + self.addend, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """One input of a node that is to be replaced; `make` gives the new value and is called once."""

    node: ir.Node
    index: int
    make: Callable[[], ir.Value]
    first: bool = False  # made before the others, which change what it gives


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Edits that together make the change. `vectors`: how many small vectors are computed when the graph runs."""

    edits: tuple[Edit, ...] = ()
    vectors: int = 0
    left: tuple[tuple[str, str], ...] = ()  # (node, reason): parts of a concatenation whose change stays explicit in front of it

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.edits + other.edits, self.vectors + other.vectors, self.left + other.left)

    @property
    def cost(self) -> tuple[int, int]:
        """The less, the better."""
        return len(self.left), self.vectors

    @classmethod
    def all(cls, plans: Iterable[Plan]) -> Plan:
        """Several as one."""
        return functools.reduce(cls.__add__, plans, cls())

    def apply(self) -> None:
        """Make the change; constants that nobody reads any more go."""
        for edit in sorted(self.edits, key=lambda edit: not edit.first):
            if edit.index >= len(edit.node.inputs):
                edit.node.resize_inputs(edit.index + 1)
            old = edit.node.inputs[edit.index]
            edit.node.replace_input_with(edit.index, edit.make())
            forget(edit.node.graph, old)


def label(node: ir.Node) -> str:
    """What a node is called, by its output if it has no name."""
    return str(node.name or node.outputs[0].name)


def constant(value: ir.Value | None) -> Array | None:
    """The elements of an initialiser or of a Cast of one, unless it is a weight."""
    while value is not None and (cast := producer(value, "Cast")) is not None:
        value = cast.inputs[0]
    if value is None or value.const_value is None or value.const_value.size > LARGEST:
        return None
    return array_of(value)


def array_of(value: ir.Value) -> Array:
    """Elements of an initialiser."""
    assert value.const_value is not None
    return value.const_value.numpy()


def forget(graph: ir.Graph | ir.Function | None, value: ir.Value | None) -> None:
    """Remove what computes a constant that has no reader any more."""
    if not isinstance(graph, ir.Graph) or value is None or any(True for _ in value.uses()):
        return
    if value.is_initializer():
        del graph.initializers[str(value.name)]
    elif (cast := producer(value, "Cast")) is not None and cast.graph is graph and not value.is_graph_output():
        source = cast.inputs[0]
        graph.remove(cast, safe=True)
        forget(graph, source)
