"""The full-precision model as a denoiser (vditc.sampling.Denoiser): what every trajectory of this stage is sampled with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from vditc.adapter import ModelAdapter
from vditc.calibrate.predictor import Predictor, predictor_of
from vditc.calibrate.sharding import Sharding
from vditc.model_dir import ModelDir
from vditc.sampling import Feeds
from vditc.torch_device import exact_float32


class FullPrecision:
    """Holds the model, or, where it does not fit `memory` bytes (by default half of what is free), one block's matrices at a time.

    With `sharding` all processes hold a part of it, if that is no more than `memory`, and call it at the same time, each on its inputs.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        source: ModelDir,
        device: torch.device,
        memory: int | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        self.device = device
        if sharding is None or (memory is not None and 4 * source.weight_count > memory * dist.get_world_size()):
            self.predictor = Predictor(adapter, adapter.load(source, memory).to(device))
        else:
            self.predictor = predictor_of(adapter, source, device, sharding)
        self.model = self.predictor.model

    def __call__(self, feeds: Feeds, step: int) -> npt.NDArray[np.float32]:
        """What the adapter's `inputs` name -> prediction float32 [B, C, F, H, W]."""
        given = {n: torch.tensor(a, device=self.device) for n, a in feeds.items()}
        with exact_float32():
            prediction: npt.NDArray[Any] = self.predictor(given).float().cpu().numpy()
        return prediction
