from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vditc.axis import Axis, Sizes
from vditc.errors import InputError

FRAMES = Axis(default=21, high=1024, unit="frames", stride=4, causal=True)
HEIGHT = Axis(default=60, low=2, multiple=2, unit="pixels", stride=8)
SIZES = Sizes({"batch": Axis(default=2, unit="clips"), "frames": FRAMES, "height": HEIGHT}, {"480p81": (81, 480, 832)})

axes = st.builds(
    Axis,
    default=st.just(1),
    low=st.integers(1, 9),
    high=st.none() | st.integers(20, 400),
    multiple=st.integers(1, 4),
    unit=st.sampled_from(["frames", "pixels", "tokens"]),
    stride=st.integers(1, 32),
    causal=st.booleans(),
)


@given(axes, st.integers(1, 500))
def test_units_and_back(axis: Axis, size: int) -> None:
    assert axis.steps(axis.units(size)) == size
    assert axis.units(size + 1) - axis.units(size) == axis.stride


@given(axes, st.integers(1, 9000))
def test_only_whole_steps_have_a_size(axis: Axis, amount: int) -> None:
    steps = axis.steps(amount)
    assert (steps is None) == (amount not in {axis.units(n) for n in range(1 + amount // axis.stride, -1, -1)})
    assert steps is None or axis.units(steps) == amount


@settings(deadline=None)
@given(axes, st.integers(0, 9000))
def test_nearest_are_allowed_and_nothing_allowed_lies_between(axis: Axis, amount: int) -> None:
    near = axis.nearest(amount)
    assert all(axis.allows(s) for s in near)
    assert not any(axis.allows(s) for s in range(near[0] + 1, near[-1]))
    allowed = [s for s in range(1, 9100 // axis.stride + 12) if axis.allows(s)]
    best = min(abs(axis.units(s) - amount) for s in allowed)
    assert min(abs(axis.units(s) - amount) for s in near) == best


@given(axes)
def test_json_and_back(axis: Axis) -> None:
    assert Axis.from_json(json.loads(json.dumps(axis.to_json()))) == axis


@pytest.mark.parametrize(
    ("axis", "rule", "words"),
    [
        (FRAMES, "4n + 1", "4n + 1 frames, at most 4093"),
        (
            Axis(default=2, low=2, multiple=2, unit="frames", stride=4, causal=True),
            "8n + 5 (VAE stride 4 x patch 2)",
            "8n + 5 (VAE stride 4 x patch 2) frames",
        ),
        (HEIGHT, "a multiple of 16 pixels (VAE stride 8 x patch 2)", "a multiple of 16 pixels (VAE stride 8 x patch 2)"),
        (Axis(default=1, multiple=4, high=9), "a multiple of 4 tokens", "a multiple of 4 tokens, at most 8"),
        (Axis(default=1, unit="clips"), "any number of clips", "any number of clips"),
    ],
)
def test_words(axis: Axis, rule: str, words: str) -> None:
    assert (axis.rule, axis.words) == (rule, words)


def test_short_words() -> None:
    limited = Axis(default=9, low=7, high=9, unit="frames", stride=4)
    assert [a.short for a in (FRAMES, HEIGHT, Axis(default=1), limited)] == ["4n + 1 <= 4093", "16n", "any", "4n <= 36"]
    assert limited.words == "a multiple of 4 frames (VAE stride 4), at least 28, at most 36"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "height",
            "485px",
            r"--profile: found height 485 pixels; wanted a multiple of 16 pixels \(VAE stride 8 x patch 2\), nearest 480 or 496; "
            r"for example height=496px",
        ),
        ("frames", "80f", r"found frames 80 frames; wanted 4n \+ 1, nearest 77 or 81; for example frames=81f"),
        ("frames", "9000f", r"found frames 9000 frames; wanted 1 to 4093 frames, nearest 4093; "),
        ("height", "8px", r"wanted at least 16 pixels, nearest 16; "),
        ("height", "61f", r"found height=61f; wanted steps \(60\) or pixels \(480px\)"),
        ("batch", "2px", r"found batch=2px; wanted steps \(2\); "),
    ],
)
def test_what_does_not_fit_is_said_in_units(name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SIZES.read(name, text, "--profile")


def test_a_size_in_steps_is_answered_in_steps_too() -> None:
    with pytest.raises(
        InputError, match=r"found height of 61 steps, which are 488 pixels; wanted .*nearest 480 or 496; for example height=62$"
    ):
        SIZES.check({"frames": 3, "height": 61, "elsewhere": 0}, "sampling.json")
    SIZES.check({"frames": 3, "height": 62}, "sampling.json")


def test_read() -> None:
    assert [SIZES.read("height", t, "") for t in ("480px", "60", "-3", "", "px", "1.5")] == [60, 60, -3, None, None, None]
    assert [SIZES.read("frames", t, "") for t in ("81f", "1f")] == [21, 1]


def test_another_vae() -> None:
    moved = HEIGHT.with_stride(16)
    assert (moved.stride, moved.default, moved.units(moved.default)) == (16, 30, 480)
    assert HEIGHT.with_stride(9).default == 54  # 486 pixels; 52 would be 468
    assert FRAMES.with_stride(8).default == 11  # 81 frames
    assert FRAMES.with_stride(1).default == 81


def test_tokens_and_presets() -> None:
    assert SIZES.preset("480p81", "") == {"frames": 21, "height": 60}
    assert SIZES.tokens({"frames": 21, "height": 60}) == 21 * 30
    with pytest.raises(InputError, match=r"found preset odd of height 485 pixels"):
        Sizes(SIZES.axes, {"odd": (81, 485, 8)}).preset("odd", "")


def test_sizes_json_and_back() -> None:
    assert Sizes.from_json(json.loads(json.dumps(SIZES.to_json()))) == SIZES
