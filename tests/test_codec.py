from __future__ import annotations

from pathlib import Path

import numpy as np

from vditc.codec import PixelShuffleCodec


def test_channels_are_the_pixels_of_a_block() -> None:
    clip = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) / 16
    latents = PixelShuffleCodec().encode(clip)
    assert latents.shape == (1, 4, 1, 2, 2)
    assert (latents[0, :, 0, 0, 0] * 16).tolist() == [0, 1, 4, 5]  # the upper left block, row by row
    assert (latents[0, 0, 0] * 16).tolist() == [[0, 2], [8, 10]]


def test_nothing_is_lost(rng: np.random.Generator) -> None:
    codec = PixelShuffleCodec(2, -0.85, 0.4)
    clips = rng.uniform(-1, 1, (2, 3, 6, 8)).astype(np.float32)
    latents = codec.encode(clips)
    assert latents.shape == (2, 4, 3, 3, 4) and latents.dtype == np.float32
    np.testing.assert_allclose(codec.decode(latents), clips, atol=1e-6)  # float32: one subtraction, one division and back


def test_mean_and_std_standardise() -> None:
    codec = PixelShuffleCodec(2, -0.5, 0.25)
    assert np.unique(codec.encode(np.full((1, 1, 2, 2), -0.25, np.float32))).tolist() == [1.0]


def test_decoded_pixels_are_clipped() -> None:
    assert np.unique(PixelShuffleCodec().decode(np.array([-3.0, 3.0, 0.5, 2.0]).reshape(1, 4, 1, 1, 1))).tolist() == [-1.0, 0.5, 1.0]


def test_survives_saving(tmp_path: Path) -> None:
    codec = PixelShuffleCodec(4, -0.25, 0.5)
    codec.save(tmp_path / "vae")
    assert PixelShuffleCodec.load(tmp_path / "vae") == codec
