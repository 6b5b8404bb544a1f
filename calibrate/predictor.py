"""A model as one module that takes a mapping of inputs, built block by block: on each process whole, or its part of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from vditc.adapter import ModelAdapter
from vditc.calibrate.sharding import Sharding
from vditc.model_dir import ModelDir


class Predictor(torch.nn.Module):
    """An adapter's module."""

    def __init__(self, adapter: ModelAdapter, model: Any) -> None:
        super().__init__()
        self.adapter, self.model = adapter, model

    def forward(self, feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The prediction [B, C, F, H, W]."""
        said: torch.Tensor = self.adapter.forward(self.model, feeds)
        return said


def predictor_of(
    adapter: ModelAdapter,
    source: ModelDir,
    device: torch.device,
    sharding: Sharding | None,
    layers: Iterable[str] = (),
    make: Callable[[str, torch.nn.Linear], torch.nn.Module] | None = None,
) -> Predictor:
    """The model with all its weights on `device`, without gradients, `make(layer, linear)` in place of each of `layers`, called in order.

    With `sharding`, each process holds its part: blocks are read, changed and cut up one after the other, so that a process never holds
    more than its part, one block, and what is in no block. `layers` of one block must stand together, as `layer_roles` has them.
    """
    model = adapter.hollow(source)
    lists = [name for loop in adapter.loops(source.config) for name in loop.modules]
    blocks = {f"{name}.{index}.": block for name in lists for index, block in enumerate(model.get_submodule(name))}
    adapter.fill(model, source, without=tuple(blocks))

    def finish(name: str) -> None:
        if (block := blocks.pop(name, None)) is not None:
            block.to(device)
            if sharding is not None:
                sharding.cut(block, device)

    if make is not None:
        for name, own in itertools.groupby(layers, lambda layer: next((b for b in blocks if layer.startswith(b)), "")):
            if name:
                adapter.fill(model, source, within=name)
            for layer in own:
                model.set_submodule(layer, make(layer, model.get_submodule(layer)))
            finish(name)
    for name in tuple(blocks):
        adapter.fill(model, source, within=name)
        finish(name)
    predictor = Predictor(adapter, model).to(device)
    if sharding is not None:
        sharding.cut(predictor, device)
    return predictor
