"""Times of a report: what `vditc bench` measured, contestant by contestant, and where a step's time goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from vditc.charts import SERIES, step_time_chart
from vditc.timing import Figures, Timing, kind_of

KINDS = 20  # rows of the table of kinds
_REST = "the rest"
_SHORT = 90  # characters of a fact


@dataclasses.dataclass(frozen=True)
class Share:
    """A kind of layers in one contestant's step."""

    seconds: float | None
    percent: float  # of the step
    bar: float  # length in percent of the longest bar

    @property
    def words(self) -> str:
        """ "12.4 ms · 9.8 %"."""
        milliseconds = 1e3 * (self.seconds or 0.0)
        return f"{milliseconds:.{0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2}f} ms · {self.percent:.1f} %"


@dataclasses.dataclass(frozen=True)
class TimingTable:
    """`rows`: label -> a cell for each contestant. `kinds`: kind of layers -> its share in each; `left_out`: kinds without a row."""

    title: str
    facts: str
    names: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    timed: Sequence[str]
    kinds: Mapping[str, Sequence[Share]]
    left_out: int
    chart: str


def timing_table(timing: Timing) -> TimingTable:
    """Everything of one run."""
    timed = [f for f in timing.of if f.layers]
    kinds = {kind: [_share(f, kind, timed) for f in timed] for kind in _longest(timed)}
    together = f", {timing.clips} clips at once" if timing.clips > 1 else ""
    calls = f" of {timing.calls} calls" if timing.calls > 1 else ""
    sizes = ", ".join(f"{axis} {n}" for axis, n in timing.sizes.items())
    turns = "one after the other" if timing.apart else "in turns"
    return TimingTable(
        title=timing.device,
        facts=f"{sizes}; a clip is {timing.steps} steps{calls}{together}. Medians of {timing.runs} steps after {timing.warmup} that do not "
        f"count, {turns}. {machine_words(timing)}",
        names=[f.name for f in timing.of],
        rows=_rows(timing),
        timed=[f.name for f in timed],
        kinds=dict(list(kinds.items())[:KINDS]),
        left_out=max(0, len(kinds) - KINDS),
        chart=step_time_chart({f.name: (f.median, *f.spread, _parts(f, timed)) for f in timing.of}),
    )


def shares(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Contestant -> module -> share of its step, of whatever was profiled; names are told apart where there are several runs."""
    found: dict[str, dict[str, float]] = {}
    for timing in timings:
        for f in timing.of:
            if f.modules:
                whole = sum(f.modules.values())
                name = f.name if len(timings) == 1 else f"{f.name}, {timing.device}"
                found[name] = {module: seconds / whole for module, seconds in f.modules.items()}
    return found


def machine_words(timing: Timing) -> str:
    """Processor, GPU, memory, power mode and releases, as far as they are known."""
    facts = {name: str(fact)[:_SHORT] for name, fact in timing.machine.items() if not isinstance(fact, Mapping)}
    for name in ("gpu_bytes", "memory_bytes"):
        if name in facts:
            facts[name] = f"{int(facts[name]) / 2**30:.1f} GiB"
    told = [f"{name.removesuffix('_bytes').replace('_', ' ')} {fact}" for name, fact in facts.items()]
    return ", ".join([*told, *(f"{name} {version}" for name, version in timing.packages.items()), f"taken {timing.taken}"])


def _rows(timing: Timing) -> dict[str, list[str]]:
    of = timing.of
    rows = {
        "ms a step": [f"{f.median * 1e3:.2f}" for f in of],
        "10 % to 90 %": ["{:.2f} to {:.2f}".format(*(1e3 * end for end in f.spread)) for f in of],
        "times faster": [f"{timing.ratio(f):.2f}" for f in of],
        "steps a second": [f"{1 / f.median:.3g}" for f in of],
        "a clip, s": [f"{timing.clip_seconds(f):.3g}" for f in of],
        "clips an hour": [f"{3600 * timing.clips_per_second(f):.3g}" for f in of],
        "first step, s": [f"{f.first_seconds:.2f}" for f in of],
        "open, s": [f"{f.open_seconds:.2f}" for f in of],
        "peak RSS, MB": [f"{f.peak_rss_bytes / 1e6:.0f}" for f in of],
    }
    for label, values in (("GPU memory, MB", [f.device_bytes for f in of]), ("of it activations, MB", [f.context_bytes for f in of])):
        if any(value is not None for value in values):
            rows[label] = ["–" if value is None else f"{value / 1e6:.0f}" for value in values]
    return rows


def _longest(timed: Sequence[Figures]) -> list[str]:
    """Kinds of layers, by their greatest share of anybody's step."""
    best: dict[str, float] = {}
    for f in timed:
        layers = f.layers or {}
        whole = sum(layers.values())
        for kind, seconds in layers.items():
            best[kind] = max(best.get(kind, 0.0), seconds / whole)
    return sorted(best, key=lambda kind: -best[kind])


def _share(f: Figures, kind: str, timed: Sequence[Figures]) -> Share:
    layers = f.layers or {}
    longest = max(max((one.layers or {}).values()) for one in timed)
    seconds = layers.get(kind)
    if seconds is None:
        return Share(None, 0.0, 0.0)
    return Share(seconds, 100 * seconds / sum(layers.values()), round(100 * seconds / longest, 1))


def _parts(f: Figures, timed: Sequence[Figures]) -> dict[str, float]:
    """Part of a block, or of the model, -> share of the step: as many as there are colours, the last one for all others."""
    by_part = {one.name: _by_part(one) for one in timed}
    best = {part: max(found.get(part, 0.0) for found in by_part.values()) for found in by_part.values() for part in found}
    named = sorted(best, key=lambda part: -best[part])[: SERIES if len(best) <= SERIES else SERIES - 1]
    own = by_part.get(f.name, {})
    if not own:
        return {}
    found = {part: own.get(part, 0.0) for part in named}
    return found | ({_REST: 1 - sum(found.values())} if len(best) > SERIES else {})


def _by_part(f: Figures) -> dict[str, float]:
    """ "blocks.*.attn1.to_q" counts for attn1, "proj_out" for itself."""
    found: dict[str, float] = {}
    layers = f.layers or {}
    whole = sum(layers.values())
    for kind, seconds in layers.items():
        part = kind.rpartition("*.")[2].partition(".")[0] if kind_of(kind.replace("*", "0"))[1] is not None else kind.partition(".")[0]
        found[part] = found.get(part, 0.0) + seconds / whole
    return found
