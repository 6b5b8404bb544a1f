from __future__ import annotations

import pytest

from vditc.errors import InputError
from vditc.version_range import VersionRange


@pytest.mark.parametrize(
    ("least", "greatest", "inside", "outside"),
    [
        ("10.3", "11", ["10.3", "10.3.0.26", "10.13.2", "11.4.1"], ["10.2.9", "9.9", "12.0", "unknown"]),
        ("10.3", "10.3", ["10.3.0", "10.3.9rc1"], ["10.4", "10.30"]),
        ("1.20", None, ["1.20", "1.31.1+cpu", "2.0"], ["1.9.1"]),
    ],
)
def test_versions_are_compared_part_by_part(least: str, greatest: str | None, inside: list[str], outside: list[str]) -> None:
    known = VersionRange(least, greatest)
    assert [v for v in inside + outside if known.holds(v)] == inside


def test_words() -> None:
    assert [str(v) for v in (VersionRange("10.3", "11"), VersionRange("1.7", "1.7"), VersionRange("1.20"))] == [
        "10.3 to 11",
        "1.7",
        "1.20 or newer",
    ]


def test_no_versions() -> None:
    with pytest.raises(InputError, match="found version 'v1'"):
        VersionRange("v1")
