"""Layers of a report: maps of all blocks, the worst and the slowest ones, and every layer block by block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from vditc.charts import SERIES, LayerMap
from vditc.timing import FULL, kind_of

SHOWN = 15  # rows of tables of the worst and the slowest layers, and of maps of times
_OUTSIDE = "outside of blocks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer; `weight` and `activation` in words ("int4 per_group(64)"), None for floating point. `reason`: why it was kept so."""

    name: str
    role: str
    weight: str | None
    activation: str | None
    bits: float | None  # stored bits per weight, scales included
    error: float | None = None  # relative error of its output
    cost: float | None = None  # relative squared error of the prediction when it alone is quantized (vditc sensitivity)
    landed: Mapping[str, str] = dataclasses.field(default_factory=dict)  # target -> the product that computes it
    reason: str = ""

    @property
    def scheme(self) -> str:
        """Weight and activation in one."""
        return "float" if self.weight is None else f"{self.weight}, activation {self.activation or 'float'}"


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One row of a table: the layer, and its share of each timed contestant's step."""

    layer: Layer
    shares: Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class LayerTables:
    """`columns`: which columns tables have; `timed`: names of contestants; `blocks`: heading of a block -> its rows."""

    targets: Sequence[str]
    timed: Sequence[str]
    errors: bool
    costs: bool
    worst: Sequence[LayerRow]
    slowest: Sequence[LayerRow]
    blocks: Mapping[str, Sequence[LayerRow]]


def layer_tables(layers: Sequence[Layer], shares: Mapping[str, Mapping[str, float]]) -> LayerTables:
    """`shares`: contestant -> module -> share of its step."""
    rows = [LayerRow(layer, [of.get(layer.name) for of in shares.values()]) for layer in layers]
    costs = any(layer.cost is not None for layer in layers)

    def harm(row: LayerRow) -> float:
        found = row.layer.cost if costs else row.layer.error
        return 0.0 if found is None else found

    def slow(row: LayerRow) -> float:
        return row.shares[-1] or 0.0

    blocks: dict[str, list[LayerRow]] = {}
    for row in rows:
        kind, block = kind_of(row.layer.name)
        blocks.setdefault(_OUTSIDE if block is None else f"{kind.partition('*')[0]}{block}", []).append(row)
    ordered = sorted(blocks, key=lambda name: (name == _OUTSIDE, name.rpartition(".")[0], _number(name)))
    return LayerTables(
        targets=list(dict.fromkeys(target for layer in layers for target in layer.landed)),
        timed=list(shares),
        errors=any(layer.error is not None for layer in layers),
        costs=costs,
        worst=sorted((row for row in rows if harm(row)), key=harm, reverse=True)[:SHOWN],
        slowest=sorted((row for row in rows if slow(row)), key=slow, reverse=True)[:SHOWN] if shares else [],
        blocks={name: blocks[name] for name in ordered},
    )


def layer_maps(layers: Sequence[Layer], shares: Mapping[str, Mapping[str, float]]) -> list[LayerMap]:
    """Precision, error, cost, what each engine computes, and time: of what has more than one value, and blocks of one kind."""
    inside = [layer for layer in layers if kind_of(layer.name)[1] is not None]
    maps = [_kinds_map("precision", {layer.name: layer.scheme for layer in inside}, grey="float")]
    maps.append(_shades_map("error of the output", {layer.name: layer.error for layer in inside}, _percent, logarithmic=True))
    maps.append(_shades_map("cost to the prediction", {layer.name: layer.cost for layer in inside}, "{:.1e}".format, logarithmic=True))
    for target in dict.fromkeys(target for layer in layers for target in layer.landed):
        kinds = {layer.name: layer.landed[target] for layer in inside if target in layer.landed}
        maps.append(_kinds_map(f"products in the engine for {target}", kinds))
    for contestant, of in ((name, of) for name, of in shares.items() if not name.startswith(FULL)):
        slow = {module: share for module, share in of.items() if kind_of(module)[1] is not None}
        whole: dict[str, float] = {}
        for module, share in slow.items():
            whole[kind_of(module)[0]] = whole.get(kind_of(module)[0], 0.0) + share
        kept = set(sorted(whole, key=lambda kind: -whole[kind])[:SHOWN])
        shown = {module: share for module, share in slow.items() if kind_of(module)[0] in kept}
        maps.append(_shades_map(f"share of a step, {contestant}", shown, _percent, logarithmic=False))
    return [one for one in maps if one is not None]


def _kinds_map(title: str, values: Mapping[str, str], grey: str | None = None) -> LayerMap | None:
    """None where all layers are alike: a sentence says that better. The commonest first; those beyond the colours are one grey."""
    counts: dict[str, int] = {}
    for value in values.values():
        counts[value] = counts.get(value, 0) + 1
    if len(counts) < 2:
        return None
    named = sorted((value for value in counts if value != grey), key=lambda value: -counts[value])
    series = {value: min(i, SERIES) for i, value in enumerate(named)} | ({grey: SERIES} if grey in counts else {})
    legend: dict[str, float | int] = {value: i for value, i in series.items() if i < SERIES}
    rest = [value for value, i in series.items() if i == SERIES]
    if rest:
        legend[rest[0] if len(rest) == 1 else f"{len(rest)} others"] = SERIES
    return _map(title, {name: series[value] for name, value in values.items()}, legend)


def _shades_map(title: str, values: Mapping[str, float | None], words: object, *, logarithmic: bool) -> LayerMap | None:
    """None where fewer than two layers have a value."""
    assert callable(words)
    known = {name: value for name, value in values.items() if value is not None and (value > 0 or not logarithmic)}
    if len(known) < 2 or min(known.values()) == max(known.values()):
        return None
    scale = math.log if logarithmic else float
    low, high = (scale(end(known.values())) for end in (min, max))
    marks = [low + (high - low) * i / 4 for i in range(5)]
    legend: dict[str, float | int] = {words(math.exp(m) if logarithmic else m): i / 4 for i, m in enumerate(marks)}
    return _map(title, {name: (scale(value) - low) / (high - low) for name, value in known.items()}, legend)


def _map(title: str, values: Mapping[str, float | int], legend: Mapping[str, float | int]) -> LayerMap:
    cells: dict[tuple[str, int], float | int] = {}
    for name, value in values.items():
        kind, block = kind_of(name)
        assert block is not None
        cells[kind, block] = value
    return LayerMap(title, list(dict.fromkeys(kind for kind, _ in cells)), cells, legend)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _number(block: str) -> int:
    last = block.rpartition(".")[2]
    return int(last) if last.isdigit() else -1
