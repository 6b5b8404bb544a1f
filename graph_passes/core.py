"""What a pass is, and how a list of passes is checked and run."""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir

from vditc.errors import DialectError, InputError
from vditc.graph_passes.properties import PROPERTIES, held
from vditc.graph_passes.spec import Spec
from vditc.progress import SILENT, Progress

PASSES: dict[str, type[Pass]] = {}


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a pass left a node alone, or did less to it than its name says."""

    node: str
    reason: str


@dataclasses.dataclass
class Result(ir.passes.PassResult):
    """What a pass did: `model` (the same object), `modified`, the refusals, and figures of its own, by name."""

    refusals: tuple[Refusal, ...] = ()
    figures: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass(ir.passes.InPlacePass):
    """A named graph rewrite. Fields are its options, written `name{field=value,...}`; the name is kebab-case.

    `needs`, `gives` and `ends` name `vditc.graph_passes.properties.PROPERTIES`: what must hold before the pass, what holds
    after it, and what no longer does.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    ends: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        if cls.name in PASSES:
            raise TypeError(f"pass {cls.name!r} is declared twice: {PASSES[cls.name].__module__} and {cls.__module__}")
        if unknown := sorted((cls.needs | cls.gives | cls.ends) - PROPERTIES.keys()):
            raise TypeError(f"pass {cls.name!r} names the property {unknown[0]!r}; known are {', '.join(PROPERTIES)}")
        PASSES[cls.name] = cls

    def __str__(self) -> str:
        options = ",".join(f"{f.name}={option_text(getattr(self, f.name))}" for f in dataclasses.fields(self))
        return f"{self.name}{{{options}}}" if options else self.name

    @abc.abstractmethod
    def call(self, model: ir.Model) -> Result:
        """Rewrite `model` in place."""

    def spec_after(self, spec: Spec) -> Spec:
        """The dialect of the result, given that of the input; a pass that lowers the graph says so here."""
        return spec

    def numerics(self) -> str:
        """How the outputs may differ afterwards: one of `vditc.graph_passes.tolerances.KINDS`."""
        return "rounding"


def option_text(value: object) -> str:
    """An option's value as `parse_pass` reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclasses.dataclass(frozen=True)
class PassFacts:
    """What one pass did to a graph."""

    name: str  # as `parse_pass` reads it
    modified: bool
    refusals: tuple[Refusal, ...]
    seconds: float
    nodes_before: int
    nodes_after: int
    figures: Mapping[str, int] = dataclasses.field(default_factory=dict)  # what the pass says of itself, such as bytes saved


class Observer:
    """Sees the graph between passes; what it raises ends the run."""

    def start(self, model: ir.Model) -> None:
        """Before the first pass."""

    def after(self, done: Pass, facts: PassFacts, model: ir.Model) -> None:
        """After every pass, when its result is known to be of the dialect."""


def run_passes(
    model: ir.Model,
    passes: Sequence[Pass],
    spec: Spec,
    *,
    progress: Progress = SILENT,
    observers: Sequence[Observer] = (),
    title: str = "graph passes",
) -> tuple[Spec, tuple[PassFacts, ...]]:
    """Run `passes` in order, in place; returns the dialect that the result conforms to and what each pass did.

    InputError, before anything is changed, for an order that `check_order` refuses and for a graph that is not of the dialect
    `spec`. The graph is verified after every pass: DialectError names the pass, the rule and the node, or the node that stands in
    front of what it reads.
    """
    check_order(passes, model, spec)
    try:
        _verify(model, spec, where="before the first pass")
    except DialectError as error:
        raise InputError(found=error.found, wanted=error.wanted, where=error.where, fix=error.fix) from error
    for observer in observers:
        observer.start(model)
    facts: list[PassFacts] = []
    with progress.task(title, len(passes)) as advance:
        for one in passes:
            nodes, start = len(model.graph), time.perf_counter()
            result = one(model)
            if not isinstance(result, Result):
                raise TypeError(f"pass {one.name!r} returned {type(result).__name__}; wanted core.Result")
            spec = one.spec_after(spec)
            _verify(model, spec, where=f"after pass {one}")
            took = time.perf_counter() - start
            facts.append(PassFacts(str(one), result.modified, result.refusals, took, nodes, len(model.graph), result.figures))
            for observer in observers:
                observer.after(one, facts[-1], model)
            advance()
    return spec, tuple(facts)


def _verify(model: ir.Model, spec: Spec, *, where: str) -> None:
    """DialectError for the first node that reads what is not computed yet, else for the first rule that is broken."""
    computed: set[ir.Value] = set()
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.producer() is not None and value not in computed:
                raise DialectError(
                    found=f"{value.name} read before it is computed",
                    wanted="every node behind those that compute what it reads",
                    where=f"{where}: node {node.name or node.op_type}",
                    fix="topologically sort the nodes",
                )
        computed.update(node.outputs)
    spec.verify(model, where=where)


def check_order(passes: Sequence[Pass], model: ir.Model, spec: Spec) -> None:
    """InputError for a pass that needs what neither the graph nor a pass before it gives; it names both passes."""
    now, ended_by = held(model, spec), dict[str, str]()
    for one in passes:
        for missing in sorted(one.needs - now):
            if missing in ended_by:
                found, fix = f"{one.name} after {ended_by[missing]}", f"put {one.name} before {ended_by[missing]}"
            else:
                makers = " or ".join(sorted(name for name, p in PASSES.items() if missing in p.gives))
                found = f"{one.name} without {makers} before it" if makers else f"{one.name} on a graph that is not {missing}"
                fix = f"put {makers} before {one.name}" if makers else "give the graph that `vditc export` wrote"
            raise InputError(found=found, wanted=f"{missing}: {PROPERTIES[missing].means}", where="the list of passes", fix=fix)
        now = (now - one.ends) | one.gives
        ended_by |= dict.fromkeys(one.ends, one.name)
