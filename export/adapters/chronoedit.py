"""ChronoEdit, image editing as a short video (diffusers ChronoEditTransformer3DModel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from vditc.export.adapters.wan import Wan
from vditc.export.adapters.wan_blocks import RotaryTables, latent_axes, wan_changes
from vditc.export.patches import replaced
from vditc.model_dir import ModelDir
from vditc.profile import Axis


class ChronoEdit(Wan):
    """Wan 2.1 image-to-video; of two frames, the picture and the edited picture, the second stands some frames later."""

    name: ClassVar[str] = "chronoedit"
    description: ClassVar[str] = "ChronoEdit, image editing"
    model_class: ClassVar[str] = "ChronoEditTransformer3DModel"
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {"720p5": (5, 720, 1280), "720p29": (29, 720, 1280)}

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """720p, 5 frames: latent 2 x 90 x 160. Temporal reasoning starts with 29 frames, 8 of the latent."""
        return {**super().axes(source), **latent_axes(source, 5, 720, 1280)}

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """As Wan's; how far apart two frames are is computed, not branched on."""
        with replaced(*wan_changes(model, "blocks"), (model, "rope", _SkippingTables(model.rope))):
            yield


class _SkippingTables(RotaryTables):
    """Positions 0, 1, 2, ... of frames; of two frames 0 and the last of the skipped."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.last = min(real.temporal_skip_len, real.max_seq_len) - 1

    def at(self, frames: int) -> torch.Tensor:
        order = torch.arange(frames)
        two = (order[-1:] == 1).to(torch.int64)
        return torch.index_select(self.frames, 1, order * (1 + two * (self.last - 1)))
