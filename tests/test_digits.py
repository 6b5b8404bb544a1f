from __future__ import annotations

import numpy as np
import pytest

from vditc import digits
from vditc.digits import Caption
from vditc.errors import InputError


@pytest.mark.parametrize("caption", digits.captions(), ids=str)
def test_caption_survives_text(caption: Caption) -> None:
    assert Caption.parse(str(caption)) == caption


def test_caption_is_read_leniently() -> None:
    assert Caption.parse("  A 7 Moving UP-left ") == Caption(7, "up-left")


@pytest.mark.parametrize("prompt", ["", "a 7", "a 10 moving left", "a 7 moving sideways", "a 7 moving left-up", "a 7 moving left fast"])
def test_other_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(InputError, match=r"wanted 'a DIGIT moving DIRECTION', DIRECTION one of left, .*write it like 'a 7 moving left'"):
        Caption.parse(prompt)


def test_captions_are_all_different() -> None:
    assert len(set(digits.captions())) == 80


@pytest.mark.parametrize("count", [1, 8, 37, 200])
def test_sampled_captions_are_balanced_and_seeded(count: int) -> None:
    found = digits.sample_captions(count, 3)
    assert len(found) == count
    for values, kinds in (([c.digit for c in found], list(range(10))), ([c.direction for c in found], list(digits.DIRECTIONS))):
        often = [values.count(k) for k in kinds]  # type: ignore[arg-type]
        assert max(often) - min(often) <= 1
    assert found == digits.sample_captions(count, 3)
    assert count == 1 or found != digits.sample_captions(count, 4)


def test_split_is_a_partition() -> None:
    seen, held = digits.split()
    assert sorted([*seen, *held]) == list(range(1797))
    assert len(held) == int(1797 * digits.CLASSIFIER_SHARE)


def test_scans_are_scikit_learns() -> None:
    images, labels = digits.scans()
    assert images.shape == (1797, 8, 8) and images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels[:10].tolist() == list(range(10))


def test_enlarging_keeps_the_mean_and_constants() -> None:
    images, _ = digits.scans()
    large = digits.enlarge(images[:20])
    assert large.shape == (20, 16, 16)
    np.testing.assert_allclose(digits.enlarge(np.full((8, 8), 0.25, np.float32)), 0.25, atol=1e-6)  # float32 sums of two weights
    # Doubling with aligned centres splits every pixel as 3/4 and 1/4 between neighbours: 3 of 4 quarters lie inside its own cell.
    spot = np.zeros((8, 8), np.float32)
    spot[3, 3] = 1
    assert digits.enlarge(spot)[6:8, 6:8].tolist() == [[0.5625, 0.5625], [0.5625, 0.5625]]


@pytest.mark.parametrize("direction", digits.DIRECTIONS)
def test_path_stays_inside_and_moves_by_speed(direction: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        corners = digits.path(direction, digits.FRAMES, rng)
        assert corners.min() >= 0 and corners.max() <= digits.FRAME - digits.DIGIT
        assert (np.diff(corners, axis=0) == np.multiply(digits.DIRECTIONS[direction], digits.SPEED)).all()


def test_render_draws_the_digit_on_background() -> None:
    images, _ = digits.scans()
    clip = digits.render(images[0], np.array([[0, 0], [16, 5]]))
    assert clip.shape == (2, 32, 32) and clip.dtype == np.float32
    assert clip.min() == -1 and clip.max() <= 1
    np.testing.assert_array_equal(clip[1, 16:32, 5:21], clip[0, :16, :16])
    assert (clip[1, :16] == -1).all() and (clip[1, :, :5] == -1).all()


def test_draw_is_seeded_and_keeps_to_the_given_scans() -> None:
    caption, (images, labels) = Caption(4, "left"), digits.scans()
    first, second = (digits.draw(caption, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    only = int(np.flatnonzero(labels == 4)[3])
    clip = digits.draw(caption, np.random.default_rng(0), indices=np.array([0, 1, only]))
    assert (clip[0] + 1).sum() == pytest.approx(2 * digits.enlarge(images[only]).sum(), rel=1e-5)  # float32 sums
