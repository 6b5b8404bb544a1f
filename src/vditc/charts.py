"""Charts of the report as SVG that takes its colours from the page, so that they read on light and dark paper alike.

matplotlib draws with placeholder colours; the SVG's text then names the page's CSS variables instead.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

_INK, _GRID = "#010101", "#010102"  # placeholders
SERIES = 6  # colours that the page defines: --s1 .. --s6
_SERIES = tuple(f"#0102{i:02x}" for i in range(1, SERIES + 1))
_MARKERS = "osD^vP"  # shapes tell the series apart where colours do not
_CSS = {_INK: "currentColor", _GRID: "var(--grid)"} | {c: f"var(--s{i})" for i, c in enumerate(_SERIES, 1)}
_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "vditc",  # otherwise element ids differ from run to run
    "text.parse_math": False,  # names are not formulas
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}


def step_error_chart(errors: Mapping[str, Sequence[float]]) -> str:
    """Relative error of the latents after each sampling step, a line for each name."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, values) in enumerate(errors.items()):
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=_SERIES[i % SERIES],
                marker=_MARKERS[i % SERIES],
                markersize=4,
                linewidth=1.8,
                label=name,
            )
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("sampling step")
        if len(errors) > 1:
            axes.legend(loc="upper left")
        return _svg(figure, "Relative error of the latents after each sampling step")


def layer_error_chart(errors: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Relative output error of layers: name -> role -> error of each layer in model order. A panel for each role, one log scale."""
    roles = list(dict.fromkeys(role for by_role in errors.values() for role in by_role))
    columns = min(4, len(roles))
    rows = -(-len(roles) // columns)
    positive = [v for by_role in errors.values() for values in by_role.values() for v in values if v > 0]
    # Whole decades: bars start at a labelled line, and there are at least two lines.
    low, high = 10.0 ** np.floor(np.log10(min(positive, default=0.01))), 10.0 ** np.ceil(np.log10(max(positive, default=1.0)))
    low = min(low, high / 10)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 1.5 * rows + 0.5), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for panel in panels[len(roles) :]:
            panel.set_visible(False)
        for panel, role in zip(panels, roles, strict=False):
            _draw_role(panel, role, errors, low)
            panel.set_yscale("log")
            panel.set_ylim(low, high)
            panel.yaxis.set_major_locator(LogLocator(numticks=4))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        if len(errors) > 1:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=len(errors))
        return _svg(figure, "Relative output error of each layer, by role")


def _draw_role(panel: Axes, role: str, errors: Mapping[str, Mapping[str, Sequence[float]]], floor: float) -> None:
    width = 0.8 / len(errors)
    for i, (name, by_role) in enumerate(errors.items()):
        values = np.asarray(by_role.get(role, ()), float)
        places = np.arange(len(values)) + (i - (len(errors) - 1) / 2) * width
        panel.bar(places, np.maximum(values, floor), width * 0.9, color=_SERIES[i % SERIES], label=name)
    panel.set_title(role)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


@dataclasses.dataclass(frozen=True)
class LayerMap:
    """A picture of layers, a row for each kind and a column for each block. `cells`: (row, block) -> shade in [0, 1], or a series.

    `legend`: words -> the shade or the series that they stand for. A cell without an entry is empty: there is no such layer.
    """

    title: str
    rows: Sequence[str]
    cells: Mapping[tuple[str, int], float | int]
    legend: Mapping[str, float | int]


def layer_map_chart(maps: Sequence[LayerMap], title: str) -> str:
    """One map below the other, with the same columns."""
    columns = 1 + max(block for one in maps for _, block in one.cells)
    heights = [_ROW * len(one.rows) + _HEAD for one in maps]
    with matplotlib.rc_context({**_STYLE, "axes.grid": False, "font.size": 8}):
        figure = Figure(figsize=(8.4, sum(heights) + 0.2), layout="constrained")
        panels = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights).ravel()
        for panel, one in zip(panels, maps, strict=True):
            places = {row: i for i, row in enumerate(one.rows)}
            corners = [(block + 0.04, places[row] + 0.06) for row, block in one.cells]
            patches = [Rectangle(corner, 0.92, 0.88) for corner in corners]
            colours = [_cell(value) for value in one.cells.values()]
            panel.add_collection(PatchCollection(patches, facecolors=colours, edgecolors="none", clip_on=False))
            panel.set(xlim=(0, columns), ylim=(len(one.rows), 0))
            panel.set_yticks([i + 0.5 for i in range(len(one.rows))], one.rows)
            # Not more labels than there is room for.
            shown = range(0, columns, max(1, -(-columns // 30)))
            panel.set_xticks([i + 0.5 for i in shown], [str(i) for i in shown])
            panel.spines[["left", "bottom"]].set_visible(False)
            panel.set_title(one.title, pad=16)
            handles = [Rectangle((0, 0), 1, 1, facecolor=_cell(value)) for value in one.legend.values()]
            where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0, "handlelength": 0.9}
            panel.legend(handles, list(one.legend), ncols=len(handles), handleheight=0.9, columnspacing=1.2, fontsize=7.5, **where)
        panels[-1].set_xlabel("block")
        return _svg(figure, title)


_ROW, _HEAD = 0.17, 0.62  # inches of a map's row, and of what is above and below its rows
_FAINTEST = 0.08  # opacity of shade 0: that a layer is there should be seen


def _cell(value: float | int) -> tuple[float, float, float, float]:
    """Shades are opacities of the first colour; series from SERIES on are grey."""
    if isinstance(value, int):
        return to_rgba(_SERIES[value] if value < SERIES else _GRID)
    return to_rgba(_SERIES[0], _FAINTEST + (1 - _FAINTEST) * value)


def step_time_chart(times: Mapping[str, tuple[float, float, float, Mapping[str, float]]]) -> str:
    """Bars of a step's milliseconds: name -> median, 10th and 90th percentile in seconds, and the shares of what it consists of."""
    parts = list(dict.fromkeys(part for _, _, _, shares in times.values() for part in shares))
    with matplotlib.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(8.4, 0.42 * len(times) + 0.95), layout="constrained")
        axes = figure.add_subplot()
        for row, (median, low, high, shares) in enumerate(times.values()):
            left = 0.0
            for part, share in shares.items() or {"": 1.0}.items():
                colour = _SERIES[parts.index(part)] if part and parts.index(part) < SERIES else _GRID
                axes.barh(row, 1e3 * median * share, 0.62, left=left, color=colour)
                left += 1e3 * median * share
            axes.errorbar(1e3 * median, row, xerr=[[1e3 * (median - low)], [1e3 * (high - median)]], color=_INK, capsize=3, linewidth=1)
        axes.set_yticks(range(len(times)), list(times))
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("ms a step")
        if parts:
            handles = [Rectangle((0, 0), 1, 1, facecolor=_SERIES[i] if i < SERIES else _GRID) for i in range(len(parts))]
            figure.legend(handles, parts, loc="outside upper left", ncols=len(parts), fontsize=8, handlelength=0.9, handleheight=0.9)
        return _svg(figure, "Milliseconds of a step")


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element with the page's colours and a title for screen readers."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # A map has thousands of corners: hundredths of a point are enough, on one line.
    svg = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]).replace(" \n", " ").replace("\n", " "), svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for placeholder, css in _CSS.items():
        svg = svg.replace(placeholder, css)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)
