"""Convolutions over time whose memory is the last frames that they saw; in front of a clip its first frame stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from vditc.export.patches import replaced

Convolve = Callable[[Any, torch.Tensor], Any]


@contextmanager
def remembering(
    convs: Mapping[str, Any], before: int, convolve: Convolve, states: Mapping[str, torch.Tensor] | None
) -> Iterator[dict[str, torch.Tensor]]:
    """`convs` look `before` frames back: into `states` of the chunk before, by their names; None for a clip's first chunk.

    Inside, forward is `convolve` of a convolution and what it sees, no frame of which is to be padded. Gives what they leave.
    """
    left: dict[str, torch.Tensor] = {}

    def forward(name: str, conv: Any, x: torch.Tensor, *_: Any, **__: Any) -> Any:
        front = x[:, :, :1].expand(-1, -1, before, -1, -1) if states is None else states[name]
        seen = torch.cat([front, x], 2)
        left[name] = seen[:, :, -before:]
        return convolve(conv, seen)

    with replaced(*((conv, "forward", partial(forward, name, conv)) for name, conv in convs.items())):
        yield left
