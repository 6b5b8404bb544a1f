"""Frames keep their similarities: by hand, and with the frame axis where it is."""

from __future__ import annotations

import numpy as np
import torch

from vditc.calibrate.temporal_loss import frame_similarities, temporal_loss


def test_two_frames_by_hand() -> None:
    """Frames at right angles: cosines 1 and 0 in each row, so D = (e, 1) / (e + 1); alike frames: D = (1/2, 1/2)."""
    apart = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(1, 2, 2, 1, 1)  # channel 0 is (1, 0) over the frames, channel 1 is (0, 1)
    p = np.e / (np.e + 1)
    np.testing.assert_allclose(frame_similarities(apart).exp().numpy(), [[[p, 1 - p], [1 - p, p]]], rtol=1e-6)
    alike = torch.ones(1, 2, 2, 1, 1)
    wanted = 2 * (p * np.log(p / 0.5) + (1 - p) * np.log((1 - p) / 0.5))  # KL(full || quantized) of each of two frames
    np.testing.assert_allclose(temporal_loss(alike, apart).numpy(), wanted, rtol=1e-5)
    backwards = 2 * (0.5 * np.log(0.5 / p) + 0.5 * np.log(0.5 / (1 - p)))
    np.testing.assert_allclose(temporal_loss(apart, alike).numpy(), backwards, rtol=1e-5)


def test_it_looks_at_frames_and_at_nothing_else(rng: np.random.Generator) -> None:
    """Frames that change places are seen; channels that do are not, which a plain reshape of [C, F] would mix up."""
    clip = torch.from_numpy(rng.standard_normal((2, 3, 4, 5, 5)).astype(np.float32))
    assert float(temporal_loss(clip[:, [2, 0, 1]], clip)) < 1e-6
    assert float(temporal_loss(clip * 3, clip)) < 1e-6  # only directions count
    turned = clip.clone()
    turned[:, :, 1] = clip[:, :, 0]
    assert float(temporal_loss(turned, clip)) > 1e-2
    assert float(temporal_loss(torch.cat([turned, turned]), torch.cat([clip, clip]))) == float(temporal_loss(turned, clip))
    assert float(temporal_loss(clip[:, :, :1], clip[:, :, :1] + 1)) < 1e-6  # one frame has no relation
