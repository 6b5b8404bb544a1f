"""The ladder of `--fallback`: layers that a target does not compute as calibrated go down rung by rung, and every rung is recorded.

    codes x codes  ->  the same weight codes, inputs in floating point  ->  the weights' values in the target's type

One calibration has no other rungs: both take what the codes stand for, and round nothing anew. So NVFP4 does not become FP8 here; a weight
would be rounded twice, where the recipe `fp8` rounds it once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from vditc.calibration import Calibration
from vditc.errors import PrecisionError
from vditc.files import write_text
from vditc.graph_passes.core import Pass, PassFacts
from vditc.graph_passes.dequantize_layers import DequantizeLayers, Names
from vditc.numerics import QType
from vditc.scheme import Scheme
from vditc.target import Target

Rung = Literal["weights", "float"]  # the weight alone in codes, or nothing


@dataclasses.dataclass
class Ladder:
    """Where each layer of one target stands. `taken`: {"layers", "from", "to", "reason", "rung"}, in the order in which it went down."""

    target: Target
    schemes: Mapping[str, Scheme]  # of the quantized layers, as calibrated
    notes: Path | None  # keeps `taken` for a job that is resumed; None where a manifest does
    rungs: dict[str, Rung] = dataclasses.field(default_factory=dict)
    taken: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def start(cls, target: Target, calibration: Calibration, notes: Path, *, plugins: bool = False) -> Ladder:
        """`plugins`: layers of few bits go to the plugin library, which runs what the target alone does not.

        With the rungs of an interrupted job, or those that the target's refusals ask for before anything is built.
        """
        made = cls(target, {name: layer.scheme for name, layer in calibration.layers.items()}, notes)
        return made._begun(json.loads(notes.read_text()) if notes.is_file() else [], plugins=plugins)

    @classmethod
    def recorded_in(
        cls, target: Target, calibration: Calibration, recorded: Iterable[Mapping[str, Any]], *, plugins: bool = False
    ) -> Ladder:
        """The same from what a manifest says: see `recorded`."""
        made = cls(target, {name: layer.scheme for name, layer in calibration.layers.items()}, None)
        steps = [{**step, "rung": "float" if step["to"] == target.compute else "weights"} for step in recorded]
        return made._begun(steps, plugins=plugins)

    def _begun(self, steps: Iterable[Mapping[str, Any]], *, plugins: bool) -> Ladder:
        """With the rungs of `steps`, or without any those that the target's refusals ask for."""
        for step in steps:
            self._take(step["layers"], step["rung"], step["reason"])
        refused = {name: why for name, scheme in self.schemes.items() if (why := self.target.refusal(scheme, plugins=plugins)) is not None}
        if refused and not self.taken:
            self.step(refused)
        return self

    def step(self, faults: Mapping[str, str]) -> list[dict[str, Any]]:
        """One rung down for each layer of `faults` (layer -> reason); returns what is new. PrecisionError for a layer at the bottom."""
        groups: dict[tuple[Rung, str], list[str]] = {}
        for layer, reason in faults.items():
            groups.setdefault((self._next(layer, reason), reason), []).append(layer)
        before = len(self.taken)
        for (rung, reason), layers in groups.items():
            self._take(layers, rung, reason)
        if self.notes is not None:
            write_text(self.notes, json.dumps(self.taken, indent=1))
        return self.taken[before:]

    def passes(self) -> tuple[Pass, ...]:
        """What goes in front of the target's own passes."""
        found: list[Pass] = []
        for rung in ("weights", "float"):
            if layers := Names.of(sorted(name for name, here in self.rungs.items() if here == rung)):
                store = self.target.compute if rung == "float" else "fp32"
                found.append(DequantizeLayers(layers=layers, weights=rung == "float", store=store))
        return tuple(found)

    @property
    def recorded(self) -> list[dict[str, Any]]:
        """For the manifest."""
        return [{key: value for key, value in step.items() if key != "rung"} for step in self.taken]

    def _next(self, layer: str, reason: str) -> Rung:
        scheme, here = self.schemes.get(layer), self.rungs.get(layer)
        if scheme is None or here == "float":
            raise PrecisionError(
                found=f"{layer}: {reason}",
                wanted="a rung below: its weights' values are the last one" if scheme is not None else "a layer of the calibration",
                where=f"target {self.target.name}",
                fix="keep this layer in floating point in the recipe, or choose another target",
            )
        alone = Scheme(weight=scheme.weight)
        codes_stay = scheme.weight.qtype is not QType.FP4_E2M1 and self.target.refusal(alone) is None
        return "weights" if here is None and scheme.activation is not None and codes_stay else "float"

    def _take(self, layers: list[str], rung: Rung, reason: str) -> None:
        groups: dict[tuple[str, str], list[str]] = {}
        for layer in layers:
            alone = str(Scheme(weight=self.schemes[layer].weight))
            before = alone if layer in self.rungs else str(self.schemes[layer])
            groups.setdefault((before, alone if rung == "weights" else self.target.compute), []).append(layer)
        for (before, after), names in groups.items():
            self.taken.append({"layers": names, "from": before, "to": after, "reason": reason, "rung": rung})
        self.rungs |= dict.fromkeys(layers, rung)


def check_refusals(rungs: Iterable[PassFacts], target: Target) -> None:
    """PrecisionError for layers that the passes of a ladder have refused."""
    if refused := [r for done in rungs for r in done.refusals]:
        raise PrecisionError(
            found="; ".join(f"{r.node}: {r.reason}" for r in refused),
            wanted="layers that can be computed without the codes of their inputs",
            where=f"--fallback, target {target.name}",
            fix="keep these layers in floating point in the recipe, or choose another target",
        )
