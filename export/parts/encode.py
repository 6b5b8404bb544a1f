"""A text encoder in PyTorch, for prompts that calibration needs before there is a graph: in bounded memory, from the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vditc.export.block_streaming import float32_bytes, memory_for_weights, read_float32, stream_blocks
from vditc.export.parts.part import Part
from vditc.export.weightless import weightless

Array = npt.NDArray[Any]
BATCH = 16  # prompts that go through together where blocks are read for every pass


def loaded(part: Part, memory: int | None = None) -> Any:
    """The module with its weights, float32; those of blocks are read when they run where they would take more than `memory` bytes.

    `memory`: half of what is free unless told. InputError when the checkpoint does not fit the config.
    """
    source = part.named
    with weightless(torch.empty):
        model = part.build()
    lists = part.block_lists if float32_bytes(part.source) > (memory_for_weights() if memory is None else memory) else ()
    stream_blocks(model, source, lists)
    done: set[int] = set()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.numel() and id(tensor) not in done and part.used(name):
                tensor.copy_(read_float32(source, name))
                done.add(id(tensor))
    return model


@contextmanager
def open_torch_part(part: Part) -> Iterator[Any]:
    """Runs a part's only graph: named arrays in, named arrays out; any number of prompts."""
    model, graph = loaded(part), part.graphs()[0]

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            outputs = part.forward(model, graph, {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in feeds.items()})
        return dict(zip(graph.all_outputs, (o.numpy() for o in outputs), strict=True))

    yield run
