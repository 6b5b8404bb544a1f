from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vditc import digits, metrics
from vditc.charts import layer_error_chart, layer_map_chart, step_error_chart
from vditc.codec import to_pixels
from vditc.errors import InputError
from vditc.report import (
    BundleReport,
    Engine,
    GateLine,
    ReportData,
    Variant,
    format_bytes,
    format_seconds,
    render_report,
    write_report,
)
from vditc.report_layers import SHOWN, Layer, layer_maps, layer_tables
from vditc.report_timing import shares, timing_table
from vditc.timing import FULL, Figures, Timing

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that every element is closed, collects headings, table rows and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(h in self.open for h in ("h1", "h2", "h3")):
            self.headings[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        """Cells of the first table row that begins with a word."""
        return next([c.strip() for c in r] for r in self.rows if r and r[0].strip() == first)


def variant(noise: float, captions: list[digits.Caption]) -> Variant:
    rng = np.random.default_rng(0)
    reference = np.stack([digits.draw(c, rng) for c in captions])
    clips = np.clip(reference + rng.normal(0, noise, reference.shape), -1, 1)
    return Variant(clips=clips, summary=metrics.evaluate(clips, captions, reference if noise else None))


def timing() -> Timing:
    """A model in full precision, whose layers nobody timed, and an engine."""
    full = Figures(name=FULL, step_seconds=(0.4, 0.6), first_seconds=1, open_seconds=2, peak_rss_bytes=10**9, modules=None)
    modules = {"blocks.1.ffn": 0.12, "blocks.0.ffn": 0.06, "blocks.0.attn": 0.015, "p": 0.005}
    engine = dataclasses.replace(full, name="rtx-ada", step_seconds=(0.25,), modules=modules, device_bytes=3 * 10**9, context_bytes=10**9)
    return Timing(
        model="Wan",
        model_digest="1",
        recipe="w8a8",
        recipe_digest="2",
        sizes={"batch": 1, "frames": 21},
        steps=50,
        calls=2,
        clips=1,
        runs=2,
        warmup=1,
        profiled=1,
        apart=False,
        machine={"gpu": "NVIDIA H200", "gpu_bytes": 3 << 30, "clocks": {"cpu0": {"now": 1.0}}},
        packages={"tensorrt": "10.16"},
        taken="2026-01-01T00:00:00+00:00",
        of=(full, engine),
    )


def bundle(name: str, captions: list[digits.Caption]) -> BundleReport:
    return BundleReport(
        name=name,
        description="INT8 weights <per channel>",
        mean_bits=8.25,
        sampled=variant(0.02, captions),
        gate=[GateLine(name="min_psnr_db", threshold=30, measured=35.5, passed=True)],
        step_error=[0.01, 0.02],
        layers=[
            Layer(
                name="blocks.0.ffn", role="ffn.in", weight="int8 per_channel", activation=None, bits=8.1, error=0.01, landed={"a10": "x"}
            ),
            Layer(
                name="blocks.1.ffn", role="ffn.in", weight="int8 per_channel", activation=None, bits=8.3, error=0.03, landed={"a10": "y"}
            ),
            *(
                Layer(name=n, role=r, weight=None, activation=None, bits=None, reason="small")
                for n, r in (("p", "patch_embed"), ("a", "norm"), ("b", "norm"))
            ),
        ],
        timings=[timing()],
        sizes={"fp32 weights": 4 << 20, "model.onnx": 1 << 20},
        engines=[
            Engine(target="cpu", facts={"builder": "ONNX Runtime", "memory": "40 MiB"}),
            Engine(target="a10", facts={"builder": "TensorRT", "products": ["3 × int8", "<1 × half"], "memory": "1 MiB"}),
        ],
        stage_seconds={"calibrate": 75.0},
    )


@pytest.fixture(scope="module")
def data() -> ReportData:
    captions = [digits.Caption(7, "left"), digits.Caption(2, "up")]
    return ReportData(
        title="Digits & motion",
        facts={"model": "Wan"},
        prompts=[str(c) for c in captions],
        full_precision=variant(0, captions),
        bundles=[
            bundle("w8a8", captions),
            dataclasses.replace(bundle("w4a16", captions), sizes={"model.onnx": 1 << 19}, engines=[], timings=[]),
        ],
    )


@pytest.fixture(scope="module")
def html(data: ReportData) -> str:
    return render_report(data)


def bare(data: ReportData) -> ReportData:
    """A model without digit semantics and a bundle of which nothing is known but its bits."""
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8))
    sampled = Variant(clips=None, summary=metrics.evaluate(clips, references=clips))
    only = BundleReport(name="w8", description="", mean_bits=8.0, sampled=sampled)
    return dataclasses.replace(data, full_precision=None, bundles=[only])


def test_page_holds_every_section_and_nothing_from_outside(html: str) -> None:
    page = Page(html)
    assert page.headings[0] == "Digits & motion"
    wanted = ["Bundles", "Quality", "Clips", "Error along the trajectory", "Timing", "Engines", "Bits", "Error of each layer", "Layers"]
    wanted += ["Sizes", "Compile time"]
    assert [h for h in page.headings if h in wanted] == wanted
    assert page.addresses and all(a.startswith(("data:", "#")) for a in page.addresses)
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.findall(r"url\((?!#)|@import", html)


def test_same_data_same_bytes(data: ReportData, html: str, tmp_path: Path) -> None:
    write_report(tmp_path / "report" / "index.html", data)
    assert (tmp_path / "report" / "index.html").read_bytes() == html.encode()
    assert [p.name for p in tmp_path.rglob("*")] == ["report", "index.html"]


def test_quality_row_of_each_model(data: ReportData, html: str) -> None:
    page = Page(html)
    quality = data.bundles[0].sampled
    assert quality is not None and quality.summary.psnr_db is not None
    assert page.row("full precision")[1:3] == ["100.0 %", "100.0 %"]
    assert page.row("full precision")[4:] == ["–", "–"]
    assert page.row("w8a8")[4] == f"{quality.summary.psnr_db:.2f}"


def test_clips_are_embedded_whole(data: ReportData, html: str) -> None:
    gifs = [a for a in Page(html).addresses if a.startswith("data:image/gif;base64,")]
    assert len(gifs) == 6  # 2 prompts x (full precision + 2 bundles)
    assert data.full_precision is not None and data.full_precision.clips is not None
    with Image.open(io.BytesIO(base64.b64decode(gifs[0].partition(",")[2]))) as image:
        image.seek(7)
        assert np.array_equal(np.asarray(image.convert("L")), to_pixels(data.full_precision.clips[0])[7])


def test_layers_of_one_role_are_one_row(html: str) -> None:
    page = Page(html)
    assert page.row("ffn.in") == ["ffn.in", "2", "int8 per_channel", "float", "8.20", "2.00%"]
    assert "<code>patch_embed</code>, <code>norm × 2</code>: small" in html


def test_tables_of_sizes_engines_and_times(html: str) -> None:
    page = Page(html)
    assert page.row("fp32 weights") == ["fp32 weights", "4.0 MiB", "–"]
    assert page.row("model.onnx") == ["model.onnx", "1.0 MiB", "512.0 KiB"]
    assert page.row("builder") == ["builder", "ONNX Runtime", "TensorRT"]
    assert [row[0].strip() for row in page.rows if row[0].strip() in ("builder", "products", "memory")] == ["builder", "products", "memory"]
    assert page.row("products") == ["products", "–", "3 × int8<1 × half"] and "&lt;1 × half" in html  # two lines
    assert page.row("calibrate") == ["calibrate", "1 min 15 s", "1 min 15 s"]


def test_gate_badge(data: ReportData, html: str) -> None:
    assert html.count("gate passed") == 2 and "gate failed" not in html
    failed = GateLine(name="max_digit_accuracy_drop", threshold=0.04, measured=0.5, passed=False)
    worse = dataclasses.replace(data.bundles[0], gate=[*data.bundles[0].gate, failed], layers=[], step_error=[])
    html = render_report(dataclasses.replace(data, bundles=[worse]))
    assert html.count("gate failed") == 1 and "gate passed" not in html


def test_one_bundle_without_semantics_leaves_columns_and_sections_out(data: ReportData) -> None:
    page = Page(render_report(bare(data)))
    assert page.row("w8") == ["w8", "100.00", "1.0000"]  # PSNR and SSIM alone
    assert "svg" not in page.tags
    others = ("Clips", "Sizes", "Engines", "Timing", "Compile time", "Error of each layer", "Layers")
    assert [h for h in page.headings if h in others] == []


def test_names_are_text_not_markup(data: ReportData) -> None:
    named = dataclasses.replace(data.bundles[0], name="<b>$x$</b>")
    html = render_report(dataclasses.replace(data, bundles=[named, data.bundles[1]]))
    assert "<b>$x$" not in html
    assert html.count("&lt;b&gt;$x$&lt;/b&gt;") > 5  # also in the charts' legends
    assert "INT8 weights &lt;per channel&gt;" in html


def test_refuses_repeated_names_and_missing_clips(data: ReportData) -> None:
    with pytest.raises(InputError, match=r"found bundles \['w8a8', 'w8a8'\]; wanted one or more, each with its own name"):
        render_report(dataclasses.replace(data, bundles=[data.bundles[0]] * 2))
    with pytest.raises(InputError, match=r"found bundles \[\]"):
        render_report(dataclasses.replace(data, bundles=[]))
    with pytest.raises(InputError, match=r"full precision: \[2\] clips or scores for 1 prompts; wanted one for each prompt"):
        render_report(dataclasses.replace(data, prompts=["a 7 moving left"]))


def test_charts_take_the_pages_colours_and_font() -> None:
    for svg in (step_error_chart({"a": [0.1, 0.2], "b": [0.2, 0.3]}), layer_error_chart({"a": {"ffn": [0.1]}, "b": {"ffn": [0.0]}})):
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
        assert colours <= {"none", "currentColor", "var(--grid)", "var(--s1)", "var(--s2)"}
        assert {"currentColor", "var(--s1)", "var(--s2)"} <= colours
        assert set(re.findall(r"font-family: ([^;\"]+)", svg)) == {"inherit"}
        assert Page(svg).tags[0] == "svg"


def test_layer_chart_has_a_panel_for_each_role() -> None:
    svg = layer_error_chart({"a": {f"role{i}": [0.02, 0.03] for i in range(9)}})
    assert [f"role{i}" in svg for i in range(10)] == [True] * 9 + [False]
    assert svg.count("var(--s1)") == 18


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB"), (2 << 40, "2.0 TiB")]
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.042, "0.04 s"), (0.996, "1.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (7300, "2 h 1 min")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_times_of_every_contestant(html: str) -> None:
    page = Page(html)
    assert page.row("ms a step") == ["ms a step", "500.00", "250.00"]
    assert page.row("10 % to 90 %") == ["10 % to 90 %", "420.00 to 580.00", "250.00 to 250.00"]
    assert page.row("times faster") == ["times faster", "1.00", "2.00"]
    assert page.row("a clip, s") == ["a clip, s", "50", "25"]  # 50 steps of 2 calls
    assert page.row("GPU memory, MB") == ["GPU memory, MB", "–", "3000"]
    assert page.row("blocks.*.ffn") == ["blocks.*.ffn", "180 ms · 90.0 %"]
    assert "gpu NVIDIA H200, gpu 3.0 GiB, tensorrt 10.16, taken 2026-01-01" in html and "cpu0" not in html


def test_rows_of_layers(html: str) -> None:
    """Error, share of the engine's step, bits, role, weight, activation or reason, product; the least exact first."""
    page = Page(html)
    assert page.row("blocks.1.ffn") == ["blocks.1.ffn", "3.00 %", "60.00 %", "8.30", "ffn.in", "int8 per_channel", "float", "y"]
    assert ["p", "–", "2.50 %", "–", "patch_embed", "float", "small", "–"] in page.rows
    names = [row[0].strip() for row in page.rows if row and row[0].startswith("blocks.") and "*" not in row[0]]
    # of the first bundle: least exact, slowest, block by block with its heading; of the second, without times
    assert names[:4] == ["blocks.1.ffn", "blocks.0.ffn", "blocks.1.ffn", "blocks.0.ffn"]
    assert names[4:8] == ["blocks.0", "blocks.0.ffn", "blocks.1", "blocks.1.ffn"]


def many(blocks: int) -> list[Layer]:
    found = []
    for block in range(blocks):
        for i, name in enumerate(("to_q", "ffn")):
            weight = None if block == 3 and i else ("int8", "int4")[block % 5 == 0]
            found.append(
                Layer(
                    name=f"blocks.{block}.{name}",
                    role=name,
                    weight=weight,
                    activation=None,
                    bits=None if weight is None else 8.0,
                    error=None if weight is None else 0.001 * 2**i * (block + 1),
                    landed={"h100": "one for all"},
                )
            )
    return [*found, Layer(name="proj_out", role="head", weight=None, activation=None, bits=None)]


def test_maps_of_layers() -> None:
    """A row for each kind, a column for each block; nothing of what all have in common, and nothing outside of blocks."""
    layers = many(40)
    of = {FULL: {"blocks.0.ffn": 1.0, "blocks.1.ffn": 0.5}, "a10": {"blocks.0.ffn": 0.5, "blocks.1.ffn": 0.25, "proj_out": 0.1}}
    precision, error, time = layer_maps(layers, of)
    assert (precision.title, error.title, time.title) == ("precision", "error of the output", "share of a step, a10")
    assert precision.legend == {"int8, activation float": 0, "int4, activation float": 1, "float": 6}
    assert list(precision.rows) == ["blocks.*.to_q", "blocks.*.ffn"] and len(precision.cells) == 80
    assert precision.cells["blocks.*.ffn", 3] == 6 and precision.cells["blocks.*.to_q", 5] == 1
    assert len(error.cells) == 79 and (error.cells["blocks.*.to_q", 0], error.cells["blocks.*.ffn", 39]) == (0.0, 1.0)
    assert error.cells["blocks.*.to_q", 1] == pytest.approx(np.log(2) / np.log(80))  # a logarithmic scale from 0.001 to 0.08
    assert list(error.legend) == ["0.1 %", "0.3 %", "0.89 %", "2.7 %", "8 %"]
    assert time.cells == {("blocks.*.ffn", 0): 1.0, ("blocks.*.ffn", 1): 0.0}
    assert layer_maps(layers[-1:], {}) == [] and layer_maps([], {}) == []


def test_a_map_has_a_rectangle_for_every_layer() -> None:
    svg = layer_map_chart(layer_maps(many(40), {}), "Layers of it")
    cells = 80 + 79
    assert svg.count("<path d=") >= cells and len(svg) < 250 * cells
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {"none", "currentColor", "var(--grid)", "var(--s1)", "var(--s2)"}
    assert Page(svg).tags[0] == "svg" and "blocks.*.to_q" in svg


def test_tables_of_layers_by_cost_where_it_is_known() -> None:
    layers = [dataclasses.replace(one, cost=1 / (i + 1)) for i, one in enumerate(many(40))]
    tables = layer_tables(layers, {})
    assert tables.costs and [row.layer.name for row in tables.worst] == [one.name for one in layers[:SHOWN]]
    assert not tables.slowest and list(tables.blocks)[-2:] == ["blocks.39", "outside of blocks"]
    assert [len(rows) for rows in tables.blocks.values()] == [2] * 40 + [1]
    errors = layer_tables(many(40), {})
    assert not errors.costs and [row.layer.name for row in errors.worst[:2]] == ["blocks.39.ffn", "blocks.38.ffn"]


def test_several_runs_are_told_apart_and_parts_add_up() -> None:
    first = timing()
    assert list(shares([first])) == ["rtx-ada"]
    again = dataclasses.replace(first, machine={"board": "Orin"})
    found = shares([first, again])
    assert list(found) == ["rtx-ada, NVIDIA H200", "rtx-ada, Orin"] and sum(found["rtx-ada, Orin"].values()) == pytest.approx(1)
    modules = {f"blocks.0.part{i}": 1.0 for i in range(30)}
    table = timing_table(dataclasses.replace(first, of=(dataclasses.replace(first.of[1], modules=modules),)))
    assert (len(table.kinds), table.left_out) == (20, 10)
    assert "part4" in table.chart and "part5" not in table.chart and "the rest" in table.chart
