"""The report of one or several bundles of a model: one HTML file that needs nothing else, readable on light and dark paper."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from vditc.charts import SERIES, layer_error_chart, layer_map_chart, step_error_chart
from vditc.clips import FPS
from vditc.codec import to_pixels
from vditc.engine_facts import Words
from vditc.errors import InputError
from vditc.files import write_text
from vditc.metrics import ClipScores, Summary
from vditc.report_layers import Layer, layer_maps, layer_tables
from vditc.report_timing import shares, timing_table
from vditc.timing import Timing

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateLine:
    """A threshold of the recipe's gate, and what was measured."""

    name: str
    threshold: float
    measured: float
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What a target's engine is. `facts` are label -> words, or lines of them; a label that another engine lacks is a dash there."""

    target: str
    facts: Mapping[str, Words]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Clips of one model, in the order of the report's prompts. `clips` float [N, F, H, W] in [-1, 1], None: not kept."""

    clips: Array | None
    summary: Summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleReport:
    """One bundle. Empty or None: not known; its table or column is left out."""

    name: str
    description: str  # of the recipe
    mean_bits: float
    sampled: Variant | None = None
    gate: Sequence[GateLine] = ()
    step_error: Sequence[float] = ()  # relative error of the latents after each step
    layers: Sequence[Layer] = ()  # those in floating point as well
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # artefact -> bytes
    engines: Sequence[Engine] = ()
    stage_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    timings: Sequence[Timing] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """A model, its full-precision clips, and one or more bundles made from it."""

    title: str
    facts: Mapping[str, str]  # of the model and its sampling, label -> value
    prompts: Sequence[str]
    full_precision: Variant | None
    bundles: Sequence[BundleReport]


def write_report(out: Path, data: ReportData) -> None:
    """Write the HTML file `out`, whole or not at all; the same data gives the same bytes."""
    write_text(out, render_report(data))


def render_report(data: ReportData) -> str:
    """The report as HTML text; InputError when names repeat or clips and prompts do not match."""
    _check(data)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vditc"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": format_bytes, "seconds": format_seconds, "markup": Markup}
    steps = {b.name: b.step_error for b in data.bundles if b.step_error}
    layers = {b.name: found for b in data.bundles if (found := _errors_by_role(b))}
    times = {b.name: shares(b.timings) for b in data.bundles}
    maps = {b.name: layer_maps(b.layers, times[b.name]) for b in data.bundles}
    return environment.get_template("report.html").render(
        data=data,
        series=SERIES,
        quality=_quality_table(data),
        gallery=_gallery(data),
        step_chart=Markup(step_error_chart(steps)) if steps else None,
        layer_chart=Markup(layer_error_chart(layers)) if layers else None,
        roles={b.name: _role_rows(b) for b in data.bundles},
        kept={b.name: _kept_rows(b) for b in data.bundles},
        sizes=_keyed_table([b.sizes for b in data.bundles]),
        stages=_keyed_table([b.stage_seconds for b in data.bundles]),
        engine_labels={b.name: _labels(b.engines) for b in data.bundles},
        timings={b.name: [timing_table(timing) for timing in b.timings] for b in data.bundles},
        layer_maps={name: Markup(layer_map_chart(found, f"Layers of {name}")) for name, found in maps.items() if found},
        layer_tables={b.name: layer_tables(b.layers, times[b.name]) for b in data.bundles if b.layers},
    )


def _check(data: ReportData) -> None:
    names = [b.name for b in data.bundles]
    if not names or len(set(names)) != len(names):
        raise InputError(found=f"bundles {names}", wanted="one or more, each with its own name", where="report", fix="rename a bundle")
    for name, variant in _variants(data):
        counts = {len(variant.summary.clips)} | ({len(variant.clips)} if variant.clips is not None else set())
        if counts != {len(data.prompts)}:
            raise InputError(
                found=f"{name}: {sorted(counts)} clips or scores for {len(data.prompts)} prompts",
                wanted="one for each prompt",
                where="report",
                fix="sample the same prompts with every model",
            )


def _variants(data: ReportData) -> list[tuple[str, Variant]]:
    found = [("full precision", data.full_precision), *((b.name, b.sampled) for b in data.bundles)]
    return [(name, variant) for name, variant in found if variant is not None]


# Columns of the quality table: header, what it means, how to read it from a summary, whether more is better.
_Read = Callable[[Summary], str | None]
_COLUMNS: tuple[tuple[str, str, _Read], ...] = (
    ("digit right", "share of clips that show the digit of their prompt", lambda s: _percent(s.digit_accuracy)),
    ("motion right", "share of clips that move as their prompt says", lambda s: _percent(s.motion_accuracy)),
    ("flicker ↓", "mean difference of neighbouring frames along the motion", lambda s: _decimals(s.flicker, 4)),
    ("PSNR ↑", "against full precision, same noise, dB", lambda s: _decimals(s.psnr_db, 2)),
    ("SSIM ↑", "against full precision, same noise", lambda s: _decimals(s.ssim, 4)),
)


@dataclasses.dataclass(frozen=True)
class _Table:
    columns: list[tuple[str, str]]  # header, explanation
    rows: list[tuple[str, list[str]]]


def _quality_table(data: ReportData) -> _Table | None:
    """A row for each model; columns that no model has a number for are left out."""
    cells = {name: [read(v.summary) for _, _, read in _COLUMNS] for name, v in _variants(data)}
    used = [i for i in range(len(_COLUMNS)) if any(row[i] is not None for row in cells.values())]
    if not used:
        return None
    columns = [(_COLUMNS[i][0], _COLUMNS[i][1]) for i in used]
    return _Table(columns, [(name, [row[i] or "–" for i in used]) for name, row in cells.items()])


@dataclasses.dataclass(frozen=True)
class _Shown:
    """One clip on the page."""

    image: str  # data: address of an animated gif
    width: int
    height: int
    frames: str  # data: address of a png of all frames
    note: str
    right: bool | None  # None: nothing to be right about


def _gallery(data: ReportData) -> list[tuple[str, list[_Shown]]]:
    """Prompt -> its clip of every model that kept its clips; empty if none did."""
    kept = [v for _, v in _variants(data) if v.clips is not None]
    if not kept:
        return []
    return [(prompt, [_shown(v, i) for v in kept]) for i, prompt in enumerate(data.prompts)]


def _shown(variant: Variant, index: int) -> _Shown:
    assert variant.clips is not None
    clip, scores = variant.clips[index], variant.summary.clips[index]
    frames = [Image.fromarray(f) for f in to_pixels(clip)]
    strip = Image.fromarray(np.concatenate(list(np.pad(to_pixels(clip), ((0, 0), (0, 0), (0, 1)), constant_values=128)), 1))
    return _Shown(
        image=_data_address(frames[0], "gif", save_all=True, append_images=frames[1:], duration=round(1000 / FPS), loop=0),
        width=frames[0].width,
        height=frames[0].height,
        frames=_data_address(strip, "png"),
        note=_note(scores),
        right=None if scores.digit_right is None else bool(scores.digit_right and scores.motion_right),
    )


def _note(scores: ClipScores) -> str:
    parts = []
    if scores.digit_right is not None:
        parts.append(f"reads {'nothing' if scores.digit is None else scores.digit} {scores.direction or 'at rest'}")
    if scores.psnr_db is not None:
        parts.append(f"{scores.psnr_db:.1f} dB")
    return " · ".join(parts)


def _data_address(image: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    image.save(data, kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _errors_by_role(bundle: BundleReport) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for layer in bundle.layers:
        if layer.error is not None:
            found.setdefault(layer.role, []).append(layer.error)
    return found


@dataclasses.dataclass(frozen=True)
class _RoleRow:
    role: str
    count: int
    weight: str
    activation: str
    bits: str
    error: str


def _role_rows(bundle: BundleReport) -> list[_RoleRow]:
    """Layers of one role and scheme as one row."""
    groups: dict[tuple[str, str, str], list[Layer]] = {}
    for layer in bundle.layers:
        if layer.weight is not None:
            groups.setdefault((layer.role, layer.weight, layer.activation or "float"), []).append(layer)
    rows = []
    for (role, weight, activation), members in groups.items():
        errors = [m.error for m in members if m.error is not None]
        bits = sum(m.bits or 0 for m in members) / len(members)
        rows.append(_RoleRow(role, len(members), weight, activation, f"{bits:.2f}", f"{np.mean(errors):.2%}" if errors else "–"))
    return rows


def _kept_rows(bundle: BundleReport) -> list[tuple[str, list[str]]]:
    """Reason -> the roles that stay for it, each with its number of layers where there are several."""
    reasons: dict[str, dict[str, int]] = {}
    for layer in (one for one in bundle.layers if one.weight is None):
        roles = reasons.setdefault(layer.reason, {})
        roles[layer.role] = roles.get(layer.role, 0) + 1
    return [(reason, [role if n == 1 else f"{role} × {n}" for role, n in roles.items()]) for reason, roles in reasons.items()]


def _labels(engines: Sequence[Engine]) -> list[str]:
    """Of all engines, in the order of the one of which most is known."""
    return list(dict.fromkeys(label for e in sorted(engines, key=lambda e: -len(e.facts)) for label in e.facts))


@dataclasses.dataclass(frozen=True)
class _Bar:
    value: float | None
    percent: float  # length of the bar, of the longest


def _keyed_table(columns: Sequence[Mapping[str, float]]) -> list[tuple[str, list[_Bar]]]:
    """One row for each key of any column, with bars relative to the greatest value of all."""
    keys = dict.fromkeys(key for column in columns for key in column)
    greatest = max((value for column in columns for value in column.values()), default=0) or 1
    return [(key, [_Bar(c.get(key), round(100 * c.get(key, 0) / greatest, 1)) for c in columns]) for key in keys]


def format_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """0.042 -> "0.04 s", 75 -> "1 min 15 s", 7300 -> "2 h 1 min"."""
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _decimals(value: float | None, places: int) -> str | None:
    return None if value is None else f"{value:.{places}f}"
