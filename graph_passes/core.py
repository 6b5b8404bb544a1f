"""What a pass is, how passes are named and parsed, and how a list of them is run."""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir

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
    """A named graph rewrite. Fields are its options, written `name{field=value,...}`; the name is kebab-case."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if cls.name in PASSES:
            raise TypeError(f"pass {cls.name!r} is declared twice: {PASSES[cls.name].__module__} and {cls.__module__}")
        PASSES[cls.name] = cls

    def __str__(self) -> str:
        options = ",".join(f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self))
        return f"{self.name}{{{options}}}" if options else self.name

    @abc.abstractmethod
    def call(self, model: ir.Model) -> Result:
        """Rewrite `model` in place."""

    def spec_after(self, spec: Spec) -> Spec:
        """The dialect of the result, given that of the input; a pass that lowers the graph says so here."""
        return spec


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


OnPass = Callable[[Pass | None, Pass, ir.Model], None]  # (the pass before, the pass that just ran, its result)


def run_passes(
    model: ir.Model,
    passes: Sequence[Pass],
    spec: Spec,
    *,
    progress: Progress = SILENT,
    on_pass: OnPass | None = None,
    title: str = "graph passes",
) -> tuple[Spec, tuple[PassFacts, ...]]:
    """Run `passes` in order, in place; returns the dialect that the result conforms to and what each pass did.

    The graph is verified before the first pass and after every pass: DialectError names the pass, the rule and the node.
    """
    spec.verify(model, where="before the first pass")
    facts: list[PassFacts] = []
    previous: Pass | None = None
    with progress.task(title, len(passes)) as advance:
        for one in passes:
            nodes, start = len(model.graph), time.perf_counter()
            result = one(model)
            if not isinstance(result, Result):
                raise TypeError(f"pass {one.name!r} returned {type(result).__name__}; wanted core.Result")
            spec = one.spec_after(spec)
            spec.verify(model, where=f"after pass {one}")
            took = time.perf_counter() - start
            facts.append(PassFacts(str(one), result.modified, result.refusals, took, nodes, len(model.graph), result.figures))
            if on_pass is not None:
                on_pass(previous, one, model)
            previous = one
            advance()
    return spec, tuple(facts)
