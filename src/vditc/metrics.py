"""How good clips are: what digit they show, where it moves, how steady it is, and how near they come to a reference.

A clip is float [F, H, W] in [-1, 1] (-1 is background). Digit and direction can be read from clips of `vditc.digits` alone;
PSNR and SSIM compare any two clips. scikit-learn and scikit-image are imported where they are used: they take longer to
import than most commands run, and belong to the extra `report`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc import digits
from vditc.digits import Caption
from vditc.errors import InputError

Array = npt.NDArray[Any]

VISIBLE = 0.2  # brightness in [0, 1] below this counts as background: samples are never quite black there
LEAST_SPEED = 0.5  # pixels a frame; a slower clip does not move (real ones move digits.SPEED)
PEAK_TO_PEAK = 2.0  # of clips, for PSNR and SSIM
MAX_PSNR_DB = 100.0  # of equal frames, whose PSNR has no finite value
CELLS = 8  # a crop is averaged to CELLS x CELLS values before it is classified
JITTER = 0.6  # pixels; how far training crops are moved off their centroid


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScores:
    """One clip. What cannot be measured (no caption, no reference) is None."""

    prompt: str | None = None
    digit: int | None = None  # what was read; None: nothing visible
    direction: str | None = None  # what was read; None: it does not move
    digit_right: bool | None = None
    motion_right: bool | None = None
    flicker: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Means over clips. What cannot be measured (no captions, no references) is None."""

    clips: tuple[ClipScores, ...]
    digit_accuracy: float | None  # share of clips that show the digit of their caption
    motion_accuracy: float | None  # share of clips that move in the direction of their caption
    flicker: float | None
    psnr_db: float | None
    ssim: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data, finite numbers only."""
        return dataclasses.asdict(self) | {"clips": [dataclasses.asdict(clip) for clip in self.clips]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Summary:
        """Read what `to_json` wrote."""
        return cls(**(data | {"clips": tuple(ClipScores(**clip) for clip in data["clips"])}))


def evaluate(clips: Array, captions: Sequence[Caption] | None = None, references: Array | None = None) -> Summary:
    """Score clips [N, F, H, W] against their captions and against reference clips of the same shape, whichever are given."""
    if (captions is not None and len(captions) != len(clips)) or (references is not None and references.shape != clips.shape):
        raise InputError(
            found=f"clips {list(clips.shape)}, {'no' if captions is None else len(captions)} captions, "
            f"references {None if references is None else list(references.shape)}",
            wanted="one caption and one reference of the same shape for every clip, or none at all",
            where="evaluate",
            fix="sample the same prompts",
        )
    scores = tuple(
        _score(clip, captions[i] if captions is not None else None, references[i] if references is not None else None)
        for i, clip in enumerate(clips)
    )
    names = ("flicker", "psnr_db", "ssim")
    means = {name: _mean([getattr(s, name) for s in scores]) for name in names}
    return Summary(
        clips=scores,
        digit_accuracy=_mean([s.digit_right for s in scores]),
        motion_accuracy=_mean([s.motion_right for s in scores]),
        **means,
    )


def _score(clip: Array, caption: Caption | None, reference: Array | None) -> ClipScores:
    scores = ClipScores()
    if caption is not None:
        digit, direction = read_digit(clip), read_direction(clip)
        scores = dataclasses.replace(
            scores,
            prompt=str(caption),
            digit=digit,
            direction=direction,
            digit_right=digit == caption.digit,
            motion_right=direction == caption.direction,
            flicker=flicker(clip),
        )
    if reference is not None:
        scores = dataclasses.replace(scores, psnr_db=psnr(clip, reference), ssim=ssim(clip, reference))
    return scores


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else None


def read_digit(clip: Array) -> int | None:
    """The digit that most frames of a clip [F, H, W] show, ties to the one read with greater margins; None for an empty clip."""
    where, mass = centroids(clip)
    seen = mass > 0
    if not seen.any():
        return None
    margins = _classifier().decision_function(_features(clip[seen], where[seen]))
    votes = np.bincount(margins.argmax(-1), minlength=10)
    return int(np.lexsort((margins.sum(0), votes))[-1])


def read_direction(clip: Array) -> str | None:
    """The one of the 8 directions nearest to the clip's motion; None below LEAST_SPEED and for an empty clip."""
    motion = velocity(clip)
    if motion is None or np.hypot(*motion) < LEAST_SPEED:
        return None
    ways = {name: np.dot(motion, way) / np.hypot(*way) for name, way in digits.DIRECTIONS.items()}
    return max(ways, key=lambda name: float(ways[name]))


def velocity(clip: Array) -> Array | None:
    """(dy, dx) in pixels a frame: slope of the least-squares line through the centroids; None with fewer than 2 visible frames."""
    where, mass = centroids(clip)
    line = _line(where, mass)
    return None if line is None else line[0]


def flicker(clip: Array) -> float:
    """Mean absolute difference of neighbouring frames in a window that moves along the clip's line; 0 for a rigid digit.

    In units of clip values (peak to peak 2). What jumps off the line flickers, as does what changes its brightness or shape.
    A clip without a line (fewer than 2 visible frames) is compared in place.
    """
    where, mass = centroids(clip)
    line = _line(where, mass)
    if line is None:
        return float(np.abs(np.diff(clip, axis=0)).mean())
    slope, start = line
    crops = _crop(clip, start + slope * np.arange(len(clip))[:, None])
    return float(np.abs(np.diff(crops, axis=0)).mean())


def psnr(clip: Array, reference: Array) -> float:
    """Peak signal-to-noise ratio in dB, peak-to-peak 2, mean over frames, each at most MAX_PSNR_DB."""
    error = np.mean((np.asarray(clip, np.float64) - reference) ** 2, axis=(-2, -1))
    least = PEAK_TO_PEAK**2 / 10 ** (MAX_PSNR_DB / 10)
    return float(np.mean(10 * np.log10(PEAK_TO_PEAK**2 / np.maximum(error, least))))


def ssim(clip: Array, reference: Array) -> float:
    """Structural similarity (Wang et al. 2004) of 7x7 windows (smaller in smaller frames), mean over frames; 1 for equal clips."""
    from skimage.metrics import structural_similarity

    window = min(7, (min(clip.shape[1:]) - 1) // 2 * 2 + 1)  # an odd number that fits
    pairs = zip(np.asarray(clip, np.float64), np.asarray(reference, np.float64), strict=True)
    return float(np.mean([structural_similarity(a, b, win_size=window, data_range=PEAK_TO_PEAK) for a, b in pairs]))


def relative_error(value: Array, reference: Array) -> float:
    """|value - reference| / |reference|, Euclidean norms over all elements; 0 for equal arrays, also all-zero ones."""
    wide = np.asarray(reference, np.float64)
    error = float(np.linalg.norm(value - wide))
    return error / float(np.linalg.norm(wide)) if error else 0.0


def centroids(clip: Array) -> tuple[Array, Array]:
    """Centre of brightness of every frame [F, 2] as (y, x) in pixels, and its visible mass [F]; (0, 0) where that is 0."""
    light = np.maximum((np.asarray(clip, np.float64) + 1) / 2 - VISIBLE, 0)
    mass = light.sum((-2, -1))
    y = light.sum(-1) @ np.arange(light.shape[-2])
    x = light.sum(-2) @ np.arange(light.shape[-1])
    return np.asarray(np.stack([y, x], -1) / np.where(mass > 0, mass, 1)[:, None]), mass


def _line(where: Array, mass: Array) -> tuple[Array, Array] | None:
    """Slope and start, each (y, x), of the least-squares line through the centroids of visible frames."""
    frames = np.flatnonzero(mass > 0)
    if len(frames) < 2:
        return None
    slope, start = np.polyfit(frames, where[frames], 1)
    return slope, start


def _crop(clip: Array, where: Array) -> Array:
    """Windows of digits.DIGIT pixels around points (y, x), bilinear between pixels: [F, H, W] -> [F, DIGIT, DIGIT].

    Outside the frame everything is background.
    """
    offsets = np.arange(digits.DIGIT) - (digits.DIGIT - 1) / 2
    rows, columns = (_taps(where[:, axis, None] + offsets, clip.shape[1 + axis]) for axis in (0, 1))
    return np.asarray(rows @ (np.asarray(clip, np.float64) + 1) @ columns.transpose(0, 2, 1)) - 1


def _taps(points: Array, size: int) -> Array:
    """Bilinear weights [F, len, size] of points [F, len] on a line of `size` pixels."""
    # Rounded, so that a whole-pixel shift of a clip gives the same weights and not ones a rounding error apart.
    return np.asarray(np.maximum(0, 1 - np.abs(np.round(points, 6)[..., None] - np.arange(size))))


def _features(clip: Array, where: Array) -> Array:
    """[F, CELLS * CELLS] values in [0, 1], what the classifier sees of frames."""
    cell = digits.DIGIT // CELLS
    crops = (_crop(clip, where) + 1) / 2
    return np.asarray(crops.reshape(len(clip), CELLS, cell, CELLS, cell).mean((2, 4)).reshape(len(clip), -1))


@cache
def _classifier() -> Any:
    """A support vector classifier of centred crops, trained on first use (0.3 s) from the scans that the generator sees.

    Every scan is drawn twice: centred, and moved and faded at random, as samples of a model are.
    """
    from sklearn.svm import SVC

    images, labels = digits.scans()
    indices, _ = digits.split()
    rng = np.random.default_rng(0)
    middle = (digits.FRAME - digits.DIGIT) // 2
    frames = np.concatenate([digits.render(images[i], np.array([[middle, middle]])) for i in indices])
    where, _ = centroids(frames)
    faded = (frames + 1) * rng.uniform(0.8, 1.0, (len(frames), 1, 1)) - 1 + rng.normal(0, 0.1, frames.shape)
    moved = where + rng.uniform(-JITTER, JITTER, where.shape)
    features = np.concatenate([_features(frames, where), _features(np.clip(faded, -1, 1), moved)])
    return SVC(C=10, gamma="scale").fit(features, np.tile(labels[indices], 2))
