from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from skimage.metrics import peak_signal_noise_ratio

from vditc import digits, metrics
from vditc.digits import Caption
from vditc.errors import InputError

HELD_OUT_ACCURACY = 0.97  # of the classifier, on scans that neither it nor the generator saw
ROUNDING = 1e-12  # float64 arithmetic on values of order 1


def held_out(seed: int) -> tuple[npt.NDArray[np.float32], list[Caption]]:
    """A real clip of every held-out scan, the directions in turn."""
    images, labels = digits.scans()
    _, indices = digits.split()
    rng, names = np.random.default_rng(seed), list(digits.DIRECTIONS)
    captions = [Caption(int(labels[i]), names[n % 8]) for n, i in enumerate(indices)]
    clips = [digits.render(images[i], digits.path(c.direction, 8, rng)) for i, c in zip(indices, captions, strict=True)]
    return np.stack(clips), captions


def square(corners: list[tuple[int, int]], brightness: list[float] | None = None) -> npt.NDArray[np.float32]:
    """A clip of a 4x4 square at corners (y, x), of brightness 1 or as given, in [0, 1]."""
    clip = np.full((len(corners), 32, 32), -1, np.float32)
    for i, (y, x) in enumerate(corners):
        clip[i, y : y + 4, x : x + 4] = 2 * (1 if brightness is None else brightness[i]) - 1
    return clip


def test_classifier_on_held_out_scans() -> None:
    clips, captions = held_out(seed=1)
    right = np.mean([metrics.read_digit(clip) == c.digit for clip, c in zip(clips, captions, strict=True)])
    assert right >= HELD_OUT_ACCURACY


def test_classifier_is_deterministic() -> None:
    clips, _ = held_out(seed=2)
    first = [metrics.read_digit(clip) for clip in clips[:40]]
    metrics._classifier.cache_clear()
    assert [metrics.read_digit(clip) for clip in clips[:40]] == first


def test_digit_is_voted_over_frames() -> None:
    rng = np.random.default_rng(0)
    seven, zero = digits.draw(Caption(7, "left"), rng), digits.draw(Caption(0, "left"), rng)
    assert (metrics.read_digit(seven), metrics.read_digit(zero)) == (7, 0)
    assert metrics.read_digit(np.concatenate([seven[:5], zero[:3]])) == 7
    assert metrics.read_digit(np.concatenate([seven[:3], zero[:5]])) == 0


def test_empty_frames_do_not_vote() -> None:
    clip = digits.draw(Caption(7, "left"), np.random.default_rng(0))
    clip[:7] = -1
    assert metrics.read_digit(clip) == 7


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("direction", digits.DIRECTIONS)
def test_direction_of_every_caption(digit: int, direction: str) -> None:
    clip = digits.draw(Caption(digit, direction), np.random.default_rng(digit))
    assert metrics.read_direction(clip) == direction


@pytest.mark.parametrize(("direction", "back"), [("left", "right"), ("up-right", "down-left"), ("down", "up")])
def test_reversed_clip_moves_back(direction: str, back: str) -> None:
    clip = digits.draw(Caption(3, direction), np.random.default_rng(0))
    assert metrics.read_direction(clip[::-1]) == back


def test_velocity_is_pixels_a_frame() -> None:
    motion = metrics.velocity(square([(4, 20), (6, 17), (8, 14)]))
    assert motion is not None
    np.testing.assert_allclose(motion, (2, -3), atol=ROUNDING)


def test_faint_haze_and_empty_frames_do_not_change_the_motion() -> None:
    clip = square([(4, 20), (6, 17), (8, 14), (10, 11)])
    clip[1] = -1
    clip[:, :, :8] = -0.9
    motion = metrics.velocity(clip)
    assert motion is not None
    np.testing.assert_allclose(motion, (2, -3), atol=ROUNDING)


def test_slow_clip_does_not_move() -> None:
    assert metrics.read_direction(square([(4, 4), (4, 4), (4, 5), (4, 5), (4, 5)])) is None
    assert metrics.read_direction(square([(4, 4), (4, 5), (4, 5), (4, 6)])) == "right"  # 0.6 pixels a frame


def test_blank_clip() -> None:
    blank = np.full((8, 32, 32), -1.0)
    assert (metrics.read_digit(blank), metrics.read_direction(blank), metrics.flicker(blank)) == (None, None, 0.0)


def test_noise_clip_does_not_move_but_flickers() -> None:
    clip = np.random.default_rng(0).uniform(-1, 1, (8, 32, 32))
    assert metrics.read_direction(clip) is None
    # Two independent uniform values of a range of 2 differ by 2/3 on average; the window's position between pixels only smooths.
    assert 0.3 < metrics.flicker(clip) <= 2 / 3 + 0.02


@pytest.mark.parametrize("direction", digits.DIRECTIONS)
def test_rigid_digit_does_not_flicker(direction: str) -> None:
    clip = digits.draw(Caption(5, direction), np.random.default_rng(3))
    assert metrics.flicker(clip) < ROUNDING


def test_flicker_of_alternating_brightness() -> None:
    corners = [(14, 6 + 2 * i) for i in range(6)]
    clip = square(corners, [1.0, 0.75] * 3)
    # 16 of the 256 pixels of the window change by 0.25 of brightness, that is 0.5 of the range of 2.
    assert metrics.flicker(clip) == pytest.approx(16 / 256 * 0.5, abs=ROUNDING)


def test_flicker_sees_jumps_off_the_line() -> None:
    steady = square([(14, 4 + 2 * i) for i in range(6)])
    jumping = square([(14 + i % 2, 4 + 2 * i) for i in range(6)])
    assert metrics.flicker(jumping) > 0.01 > metrics.flicker(steady)


def test_psnr_of_known_error() -> None:
    reference = np.zeros((3, 8, 8))
    assert metrics.psnr(reference + 0.2, reference) == pytest.approx(20.0, abs=1e-9)  # 10 log10(4 / 0.04)
    noisy = reference + np.random.default_rng(0).normal(0, 0.1, reference.shape)
    want = np.mean([peak_signal_noise_ratio(a, b, data_range=2) for a, b in zip(reference, noisy, strict=True)])
    assert metrics.psnr(noisy, reference) == pytest.approx(float(want), abs=1e-9)


def test_psnr_and_ssim_of_equal_clips() -> None:
    clip = digits.draw(Caption(1, "up"), np.random.default_rng(0))
    assert metrics.psnr(clip, clip) == metrics.MAX_PSNR_DB
    assert metrics.ssim(clip, clip) == pytest.approx(1.0, abs=ROUNDING)


def test_ssim_falls_with_noise_and_takes_small_frames() -> None:
    rng = np.random.default_rng(0)
    clip = digits.draw(Caption(1, "up"), rng)
    little, much = (metrics.ssim(clip + rng.normal(0, s, clip.shape), clip) for s in (0.05, 0.5))
    assert 1 > little > much
    small = rng.uniform(-1, 1, (2, 4, 4))
    assert metrics.ssim(small, small) == pytest.approx(1.0, abs=ROUNDING)


def test_relative_error() -> None:
    assert metrics.relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == 0.1
    assert metrics.relative_error(np.zeros(3), np.zeros(3)) == 0.0


def test_evaluate_real_clips() -> None:
    clips, captions = held_out(seed=3)
    clips, captions = clips[:80], captions[:80]
    summary = metrics.evaluate(clips, captions, references=clips)
    assert summary.digit_accuracy is not None and summary.digit_accuracy >= HELD_OUT_ACCURACY
    assert (summary.motion_accuracy, summary.psnr_db) == (1.0, metrics.MAX_PSNR_DB)
    assert summary.flicker is not None and summary.flicker < ROUNDING
    assert summary.ssim == pytest.approx(1.0, abs=ROUNDING)


def test_evaluate_reversed_clips() -> None:
    clips, captions = held_out(seed=4)
    summary = metrics.evaluate(clips[:40, ::-1], captions[:40])
    assert summary.motion_accuracy == 0.0
    assert summary.digit_accuracy is not None and summary.digit_accuracy >= 0.95
    assert (summary.psnr_db, summary.ssim) == (None, None)


def test_evaluate_counts_every_clip() -> None:
    rng = np.random.default_rng(0)
    clips = np.stack([digits.draw(Caption(7, "left"), rng), np.full((8, 32, 32), -1, np.float32)])
    summary = metrics.evaluate(clips, [Caption(7, "left"), Caption(7, "left")])
    assert (summary.digit_accuracy, summary.motion_accuracy) == (0.5, 0.5)
    assert [s.prompt for s in summary.clips] == ["a 7 moving left"] * 2
    assert [s.digit for s in summary.clips] == [7, None]


def test_evaluate_without_captions_measures_only_likeness() -> None:
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8))
    summary = metrics.evaluate(clips, references=clips)
    assert (summary.digit_accuracy, summary.motion_accuracy, summary.flicker) == (None, None, None)
    assert summary.psnr_db == metrics.MAX_PSNR_DB


def test_evaluate_refuses_what_does_not_fit() -> None:
    clips: Any = np.zeros((2, 3, 32, 32))
    with pytest.raises(InputError, match=r"evaluate: found clips \[2, 3, 32, 32\], 1 captions"):
        metrics.evaluate(clips, [Caption(1, "up")])
    with pytest.raises(InputError, match=r"references \[1, 3, 32, 32\]; wanted one caption and one reference of the same shape"):
        metrics.evaluate(clips, references=clips[:1])


def test_summary_survives_json() -> None:
    clips, captions = held_out(seed=5)
    summary = metrics.evaluate(clips[:3], captions[:3], references=clips[:3])
    text = json.dumps(summary.to_json(), allow_nan=False)
    assert metrics.Summary.from_json(json.loads(text)) == summary
