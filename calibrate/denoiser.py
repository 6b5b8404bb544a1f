"""The full-precision model as a denoiser (vditc.sampling.Denoiser): what every trajectory of this stage is sampled with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vditc.adapter import ModelAdapter
from vditc.model_dir import ModelDir
from vditc.sampling import Feeds
from vditc.torch_device import exact_float32


class FullPrecision:
    """Holds the model, or, where it does not fit `memory` bytes (by default half of what is free), one block's matrices at a time."""

    def __init__(self, adapter: ModelAdapter, source: ModelDir, device: torch.device, memory: int | None = None) -> None:
        self.adapter, self.device = adapter, device
        self.model = adapter.load(source, memory).to(device)

    def __call__(self, feeds: Feeds, step: int) -> npt.NDArray[np.float32]:
        """What the adapter's `inputs` name -> prediction float32 [B, C, F, H, W]."""
        given = {n: torch.tensor(a, device=self.device) for n, a in feeds.items()}
        with exact_float32():
            prediction: npt.NDArray[Any] = self.adapter.forward(self.model, given).float().cpu().numpy()
        return prediction
