"""Charts of the report as SVG that takes its colours from the page, so that they read on light and dark paper alike.

matplotlib draws with placeholder colours; the SVG's text then names the page's CSS variables instead.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element with the page's colours and a title for screen readers."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for placeholder, css in _CSS.items():
        svg = svg.replace(placeholder, css)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)
