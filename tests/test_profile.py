from __future__ import annotations

import pytest

from vditc.errors import InputError
from vditc.profile import Profile, Range

DEFAULTS = Profile({"batch": Range(1, 2, 2), "frames": Range(1, 8, 8)})


def test_parse_over_defaults() -> None:
    found = Profile.parse("frames=1:4:16,batch=1", DEFAULTS)
    assert found.axes == {"batch": Range(1, 1, 1), "frames": Range(1, 4, 16)}
    assert Profile.parse("", DEFAULTS) == DEFAULTS
    assert DEFAULTS.axes["frames"] == Range(1, 8, 8)


@pytest.mark.parametrize("text", ["depth=3", "frames", "frames=", "frames=1:2", "frames=a", "frames=1:2:3:4"])
def test_bad_items_are_named(text: str) -> None:
    with pytest.raises(InputError, match=rf"found '{text}'; wanted AXIS=SIZE or AXIS=MIN:OPT:MAX, AXIS one of batch, frames"):
        Profile.parse(text, DEFAULTS)


@pytest.mark.parametrize("text", ["frames=0", "frames=3:2:4", "frames=1:5:4", "frames=-1"])
def test_ranges_grow_from_one(text: str) -> None:
    with pytest.raises(InputError, match="wanted 1 <= min <= opt <= max"):
        Profile.parse(text, DEFAULTS)


def test_json_and_text() -> None:
    assert Profile.from_json(DEFAULTS.to_json()) == DEFAULTS
    assert DEFAULTS.to_json() == {"batch": [1, 2, 2], "frames": [1, 8, 8]}
    assert str(Range(1, 8, 16)) == "1:8:16"
