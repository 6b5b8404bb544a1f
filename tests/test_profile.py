from __future__ import annotations

import pytest

from vditc.axis import Axis, Sizes
from vditc.errors import InputError
from vditc.profile import Profile, Range

DEFAULTS = Profile({"batch": Range(1, 2, 2), "frames": Range(1, 8, 8)})
SIZES = Sizes(
    {
        "batch": Axis(default=2, unit="clips"),
        "frames": Axis(default=21, high=64, unit="frames", stride=4, causal=True),
        "height": Axis(default=60, low=2, multiple=2, unit="pixels", stride=8),
        "width": Axis(default=104, low=2, multiple=2, unit="pixels", stride=8),
        "text_tokens": Axis(default=512),
    },
    {"480p81": (81, 480, 832), "720p81": (81, 720, 1280)},
)
OWN = Profile({n: Range(a.least, a.default, a.default) for n, a in SIZES.axes.items()})


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
    assert DEFAULTS.largest == {"batch": 2, "frames": 8}


def test_frames_and_pixels() -> None:
    found = Profile.parse("frames=1f:41f:81f,height=480px,width=8:60:104", OWN, SIZES).axes
    assert (found["frames"], found["height"], found["width"]) == (Range(1, 11, 21), Range(60, 60, 60), Range(8, 60, 104))
    assert found["batch"] == OWN.axes["batch"]


@pytest.mark.parametrize("text", ["720p81,batch=1:2:2,frames=1:21:21", "batch=1:2:2,frames=1:21:21, 720p81"])
def test_a_preset_fixes_the_clip_and_what_is_said_of_an_axis_wins(text: str) -> None:
    found = Profile.parse(text, OWN, SIZES).to_json()
    assert found == {"batch": [1, 2, 2], "frames": [1, 21, 21], "height": [90] * 3, "width": [160] * 3, "text_tokens": [1, 512, 512]}


def test_custom_takes_no_defaults() -> None:
    with pytest.raises(InputError, match=r"found no sizes for height, text_tokens; wanted all of batch.*add height=60,text_tokens=512"):
        Profile.parse("custom,batch=1,frames=21,width=104", OWN, SIZES)
    found = Profile.parse("custom,batch=1,frames=21,width=104,height=60,text_tokens=512", OWN, SIZES)
    assert found.largest == {"batch": 1, "frames": 21, "height": 60, "width": 104, "text_tokens": 512}
    assert list(found.axes) == list(SIZES.axes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1080p", "found '1080p'; wanted AXIS=SIZE .* or one of the presets 480p81, 720p81, custom"),
        ("480p81,720p81", "found 480p81 and 720p81; wanted one preset"),
        ("height=485px", r"found height 485 pixels; wanted a multiple of 16 pixels"),
        ("height=2:60:61", r"found height of 61 steps, which are 488 pixels; wanted a multiple of 16 pixels"),
        ("frames=1:21:65", r"found frames of 65 steps, which are 257 frames; wanted 1 to 253 frames, nearest 253; for example frames=64"),
        ("frames=1f:41f:80f", r"found frames 80 frames; wanted 4n \+ 1, nearest 77 or 81"),
        ("text_tokens=512px", r"found text_tokens=512px; wanted steps"),
    ],
)
def test_sizes_that_the_model_does_not_take(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Profile.parse(text, OWN, SIZES)


def test_a_clip_outside_of_the_profile() -> None:
    profile = Profile.parse("480p81", OWN, SIZES)
    profile.check({"frames": 21, "height": 60, "somewhere": 9}, SIZES, "clips")
    with pytest.raises(InputError, match=r"clips: found height of 720 pixels; wanted 480 pixels, which the engine serves; .*up to 720px"):
        profile.check({"frames": 21, "height": 90}, SIZES, "clips")
    with pytest.raises(InputError, match=r"found text_tokens of 600 tokens; wanted 1 to 512 tokens"):
        profile.check({"text_tokens": 600}, SIZES, "clips")
