"""Temporal Maintenance Distillation: frames keep the similarities to each other that they have in full precision.

Feng et al., "Q-VDiT" (arXiv 2505.22167), section 3.3: T_ij = cos(S_i, S_j) of flattened frames, D_i = softmax_j T_ij,
L = sum_i KL(D_i^FP || D_i^Q). The frame axis of a prediction [B, C, F, H, W] is its third one: it goes to the front before frames are
flattened (a plain reshape would mix channels and frames).
"""

from __future__ import annotations

import torch
from torch.nn.functional import kl_div, normalize


def frame_similarities(prediction: torch.Tensor) -> torch.Tensor:
    """[B, C, F, H, W] -> log softmax_j cos(S_i, S_j), [B, F, F]."""
    frames = normalize(prediction.transpose(1, 2).flatten(2), dim=-1)
    return torch.log_softmax(frames @ frames.transpose(1, 2), -1)


def temporal_loss(said: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Sum over frames, mean over the batch; 0 for clips of one frame."""
    return kl_div(frame_similarities(said), frame_similarities(wanted), reduction="sum", log_target=True) / len(said)
