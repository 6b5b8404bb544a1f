"""`vditc lower --verify`: every pass that changed the graph is run against the graph that it was given, in ONNX Runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from vditc.errors import PrecisionError, VditcError
from vditc.graph_passes.core import Observer, Pass, PassFacts
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.tolerances import ADVERSARIAL, activation_codes, tolerance
from vditc.pipeline.runnable import runnable
from vditc.pipeline.verify_inputs import Case, cases
from vditc.plugins.catalogue import operator_of, plugin_nodes
from vditc.runtimes.graph_slices import run_slices
from vditc.runtimes.onnxruntime import ERRORS, error_text

Array = npt.NDArray[Any]
# An output of zeros has no relative distance; the mean square is taken to be at least the square of this.
LEAST = 1e-6


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How far a pass moved the outputs, for the inputs that came nearest to their tolerance."""

    error: float  # relative L2
    allowed: float
    case: Case

    @property
    def used(self) -> float:
        """Share of the tolerance; where that is 0, the error itself."""
        return self.error / self.allowed if self.allowed else self.error

    def __str__(self) -> str:
        return f"error {self.error:.2g} of {self.allowed:g} ({self.case})"


class VerifyPasses(Observer):
    """PrecisionError for the first pass that leaves its tolerance; VditcError for one that cannot be run or compared.

    `verdicts`: of the passes so far, None of one that changed nothing and was not run. The first `taken` passes are as they are: what they
    make is what the others are compared with.
    """

    def __init__(self, model: Path, taken: int = 0) -> None:
        self.path, self.taken = model, taken
        self.verdicts: list[Verdict | None] = []
        self._spec = Spec.canonical()

    def start(self, model: ir.Model) -> None:
        """Make the inputs; nothing is run before a pass has changed something."""
        self._cases = cases(self.path)
        self._graph = _snapshot(model)
        self._outputs: list[list[Array]] | None = None
        self._codes = activation_codes(model.graph)

    def after(self, done: Pass, facts: PassFacts, model: ir.Model) -> None:
        """Run the new graph and compare."""
        self._spec = done.spec_after(self._spec)
        if len(self.verdicts) < self.taken:
            self._graph = _snapshot(model)
        if not facts.modified or len(self.verdicts) < self.taken:
            self.verdicts.append(None)
            return
        before = self._outputs if self._outputs is not None else self._run(self._graph, "before the first pass that changed it")
        self._graph = _snapshot(model)
        self._outputs = self._run(self._graph, f"after pass {done}")
        allowed = tolerance(done.numerics(), self._spec.compute, self._codes)
        if allowed is None:
            raise VditcError(
                found=f"activations in {self._codes} and a pass whose numbers are {done.numerics()}",
                wanted="a pair with a tolerance",
                where=f"--verify, pass {done}",
                fix="lower without --verify; nobody has measured how far such a pass may go",
            )
        verdicts = [
            Verdict(distance(found, wanted, f"after pass {done}"), allowed * (ADVERSARIAL if case.adversarial else 1), case)
            for case, found, wanted in zip(self._cases, self._outputs, before, strict=True)
        ]
        verdict = max(verdicts, key=lambda v: v.used)
        if not verdict.error <= verdict.allowed:
            raise PrecisionError(
                found=f"a relative error of {verdict.error:.3g} with {verdict.case}",
                wanted=f"at most {verdict.allowed:g}",
                where=f"{self.path}, after pass {done}, the first that leaves its tolerance",
                fix="look at the graphs before and after it with --dump DIR",
            )
        self.verdicts.append(verdict)

    def _run(self, graph: onnx.ModelProto, where: str) -> list[list[Array]]:
        names = [value.name for value in graph.graph.input]
        known = self._cases[0].feeds
        try:
            if unknown := [name for name in names if name not in known]:
                raise VditcError(found=f"an input {unknown[0]}", wanted=f"only {', '.join(known)}", where=where, fix="report the pass")
            feeds = [{name: case.feeds[name] for name in names} for case in self._cases]
            return run_slices(runnable(graph, f"--verify, {where}"), self.path.parent, feeds)
        except ERRORS as error:
            raise VditcError(
                found=error_text(error),
                wanted="a graph that ONNX Runtime can run",
                where=f"--verify, {where}",
                fix="lower without --verify",
            ) from error


def distance(found: list[Array], wanted: list[Array], where: str) -> float:
    """Relative L2 distance of the output that is furthest away; infinite where one of the two has numbers and the other has not."""
    if [f.shape for f in found] != [w.shape for w in wanted]:
        raise PrecisionError(
            found=f"outputs of shapes {[list(f.shape) for f in found]}",
            wanted=f"{[list(w.shape) for w in wanted]}, as before the pass",
            where=where,
            fix="look at the graphs before and after it with --dump DIR",
        )
    return max(_relative(f.astype(np.float64), w.astype(np.float64)) for f, w in zip(found, wanted, strict=True))


def _relative(found: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> float:
    if not np.isfinite(wanted).all():
        return 0.0 if np.array_equal(found, wanted, equal_nan=True) else np.inf
    error = float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), LEAST * wanted.size**0.5))
    return error if np.isfinite(error) else np.inf


def _snapshot(model: ir.Model) -> onnx.ModelProto:
    """The graph as it is now, with the bodies of the plugin library's operators; weights on disk stay there."""
    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(model))
    if not model.functions:
        bodies = {node.op_identifier(): operator_of(node).function() for node in plugin_nodes(model)}
        for body in bodies.values():
            body.opset_imports[""] = model.graph.opset_imports[""]
        proto.functions.extend(ir.to_proto(body) for body in bodies.values())
    return proto
