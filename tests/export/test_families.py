"""Every family, from a small random model directory to a graph that ONNX Runtime runs at three shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import family_checks as checks
import pytest
from family_case import Case, cases

from vditc.export.adapters.registry import adapters
from vditc.scheme import Scheme

CASES = cases()
SEGMENTED = ("wan", "latte")  # one list of blocks, and two that alternate
# Blocks of Wan, and models of sound and video, of which nothing but the graph is made.
LATER = ("anyflow", "chronoedit", "skyreels-v2-i2v", "wan-animate", "wan-vace", "kandinsky6", "ltx-2-interleaved")
# Tracing takes seconds: `make test` does it for the first case of most families, `make test-all` for all.
TRACED = [pytest.param(case, marks=() if case.first and case.name not in LATER else pytest.mark.slow) for case in CASES]


@pytest.fixture(scope="module", params=CASES, ids=str)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[checks.PreparedCase]:
    case: Case = request.param
    yield checks.PreparedCase.make(case, tmp_path_factory.mktemp(case.name))


traced = pytest.mark.parametrize("prepared", TRACED, indirect=True, ids=str)


def test_roles(prepared: checks.PreparedCase) -> None:
    checks.check_roles(prepared)


def test_patches(prepared: checks.PreparedCase) -> None:
    checks.check_patches(prepared)


def test_frame_orders(prepared: checks.PreparedCase) -> None:
    checks.check_frame_orders(prepared)


def test_every_frame_order_is_of_some_layer() -> None:
    unused: dict[str, set[str]] = {}
    for case in CASES:
        adapter = adapters()[case.config["_class_name"]]
        layers = [name for name, _ in adapter.build(case.config).named_modules()]
        own = unused.setdefault(adapter.name, set(adapter.frame_orders))
        own -= {pattern for pattern in own if any(re.fullmatch(pattern, layer) for layer in layers)}
    assert not any(unused.values()), unused


def test_streamed(prepared: checks.PreparedCase) -> None:
    checks.check_streamed(prepared)


@traced
def test_float(prepared: checks.PreparedCase) -> None:
    checks.check_float(prepared)


@traced
@pytest.mark.parametrize("scheme", [checks.W8A8, checks.W4A16], ids=["w8a8", "w4a16"])
def test_quantized(prepared: checks.PreparedCase, scheme: Scheme) -> None:
    checks.check_quantized(prepared, scheme)


@traced
def test_time_path(prepared: checks.PreparedCase) -> None:
    checks.check_time_path(prepared)


@pytest.mark.parametrize(
    "prepared", [pytest.param(c, marks=() if c.name in SEGMENTED else pytest.mark.slow) for c in CASES], indirect=True, ids=str
)
def test_segments(prepared: checks.PreparedCase) -> None:
    checks.check_segments(prepared)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [None, checks.W8A8, checks.W4A16], ids=["fp16", "w8a8", "w4a16"])
def test_engine(prepared: checks.PreparedCase, scheme: Scheme | None) -> None:
    checks.check_engine(prepared, scheme)


@pytest.mark.slow
def test_stamped(prepared: checks.PreparedCase) -> None:
    checks.check_stamped(prepared)
