"""Videos of real handwritten digits that move in a named direction: the data that the bundled model knows.

A clip is `frames x 32 x 32` grey values in [-1, 1] (-1 is background). One of scikit-learn's 1,797 scanned 8x8 digits is
enlarged to 16x16 and moved by `SPEED` pixels a frame. A prompt names the digit and the direction: "a 7 moving up-left".
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError

Array = npt.NDArray[Any]

FRAME = 32  # pixels a side
DIGIT = 16  # pixels a side of the enlarged digit
FRAMES = 8
SPEED = 2  # pixels a frame; 7 moves x 2 = 14 of the 16 free pixels
CLASSIFIER_SHARE = 0.25  # of the scans, kept from the generator: the classifier is tested on them

DIRECTIONS: dict[str, tuple[int, int]] = {  # name -> (dy, dx), y grows downwards
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "up-left": (-1, -1),
    "up-right": (-1, 1),
    "down-left": (1, -1),
    "down-right": (1, 1),
}

_PROMPT = re.compile(r"^a ([0-9]) moving ([a-z]+(?:-[a-z]+)?)$")


@dataclasses.dataclass(frozen=True)
class Caption:
    """What a prompt asks for."""

    digit: int
    direction: str

    def __str__(self) -> str:
        return f"a {self.digit} moving {self.direction}"

    @classmethod
    def parse(cls, prompt: str) -> Caption:
        """Read "a 7 moving left"; InputError for anything else."""
        found = _PROMPT.match(prompt.strip().lower())
        if found is None or found.group(2) not in DIRECTIONS:
            raise InputError(
                found=f"prompt {prompt!r}",
                wanted=f"'a DIGIT moving DIRECTION', DIRECTION one of {', '.join(DIRECTIONS)}",
                where="prompt",
                fix="write it like 'a 7 moving left'",
            )
        return cls(int(found.group(1)), found.group(2))


def captions() -> list[Caption]:
    """All 80 captions, digits first."""
    return [Caption(d, name) for d in range(10) for name in DIRECTIONS]


def sample_captions(count: int, seed: int) -> list[Caption]:
    """`count` captions, every digit and direction as often as the others (give or take one), in a seeded order."""
    rng = np.random.default_rng(seed)
    names = list(DIRECTIONS)
    digits = np.concatenate([rng.permutation(10) for _ in range(-(-count // 10))])[:count]
    ways = np.concatenate([rng.permutation(len(names)) for _ in range(-(-count // len(names)))])[:count]
    return [Caption(int(d), names[int(w)]) for d, w in zip(digits, ways, strict=True)]


@cache
def scans() -> tuple[Array, Array]:
    """The scans as float32 [1797, 8, 8] in [0, 1] and their labels int64 [1797]."""
    from sklearn.datasets import load_digits  # heavy: only where digits are drawn

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)


@cache
def split(seed: int = 0) -> tuple[Array, Array]:
    """Indices of the scans that the generator sees, and of those held out for testing the classifier."""
    order = np.random.default_rng(seed).permutation(len(scans()[1]))
    held = int(len(order) * CLASSIFIER_SHARE)
    return order[held:], order[:held]


def enlarge(scan: Array) -> Array:
    """[..., 8, 8] -> [..., 16, 16], bilinear with aligned cell centres."""
    matrix = _enlarging_matrix(scan.shape[-1], DIGIT)
    return np.asarray(matrix @ scan @ matrix.T, dtype=np.float32)


@cache
def _enlarging_matrix(small: int, large: int) -> Array:
    centre = (np.arange(large) + 0.5) * small / large - 0.5
    low = np.clip(np.floor(centre).astype(int), 0, small - 1)
    high = np.clip(low + 1, 0, small - 1)
    share = np.clip(centre - low, 0.0, 1.0)
    matrix = np.zeros((large, small), np.float32)
    matrix[np.arange(large), low] += 1 - share
    matrix[np.arange(large), high] += share
    return matrix


def path(direction: str, frames: int, rng: np.random.Generator) -> Array:
    """Top-left corners of the digit, int64 [frames, 2] as (y, x), the whole digit always inside the frame."""
    room, corners = FRAME - DIGIT, []
    for step in DIRECTIONS[direction]:
        travel = step * SPEED * (frames - 1)
        start = rng.integers(max(0, -travel), room - max(0, travel) + 1)
        corners.append(start + step * SPEED * np.arange(frames))
    return np.stack(corners, -1)


def render(scan: Array, corners: Array) -> Array:
    """Draw one 8x8 scan at each corner: float32 [frames, 32, 32] in [-1, 1]."""
    clip = np.zeros((len(corners), FRAME, FRAME), np.float32)
    large = enlarge(scan)
    for frame, (y, x) in zip(clip, corners, strict=True):
        frame[y : y + DIGIT, x : x + DIGIT] = large
    return clip * 2 - 1


def draw(caption: Caption, rng: np.random.Generator, frames: int = FRAMES, indices: Array | None = None) -> Array:
    """A real clip for a caption, float32 [frames, 32, 32] in [-1, 1]; `indices` limits which scans may be used."""
    images, labels = scans()
    pool = np.arange(len(labels)) if indices is None else indices
    pool = pool[labels[pool] == caption.digit]
    return render(images[rng.choice(pool)], path(caption.direction, frames, rng))


def position_channels(frames: int, height: int, width: int) -> Array:
    """Where each latent is: float32 [3, frames, height, width], frame number, row and column, each from -1 to 1.

    Rotary positions are relative, and attention is an average: without these a transformer cannot tell the first frame from
    the last, nor left from right, while the clip is still noise, which is when the motion is settled. They are appended to
    the latents at every step, as image-to-video models append their image.
    """
    axes = (2 * np.arange(frames) / (FRAMES - 1) - 1, np.linspace(-1, 1, height), np.linspace(-1, 1, width))
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
