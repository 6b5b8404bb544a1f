"""A part's graphs run by the torch module that they are traced from: chunks, tiles and states without an export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from diffusers import EDMEulerScheduler

from vditc.export.parts.families.registry import part_for
from vditc.export.parts.part import open_part
from vditc.export.parts.vae import VaeDecoder
from vditc.part_graph import PartGraph
from vditc.runtimes.parts.video_decoder import PartRunner

Array = npt.NDArray[Any]


def saved_vae(model: Any, folder: Path, sigma_data: float = 0.5) -> VaeDecoder:
    """A VAE of diffusers, saved as a pipeline's and opened; beside a scheduler, whose `sigma_data` Cosmos reads."""
    model.save_pretrained(folder / "vae")
    EDMEulerScheduler(sigma_data=sigma_data).save_pretrained(folder / "scheduler")
    part = part_for(open_part(folder, "vae"))
    assert isinstance(part, VaeDecoder)
    return part


def run_in_torch(part: VaeDecoder, model: Any) -> Any:
    """What opens a graph of `part`, run by `model` as it is patched for tracing."""

    @contextmanager
    def opened(graph: PartGraph) -> Iterator[PartRunner]:
        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            assert set(feeds) == {s.name for s in graph.all_inputs}
            with torch.no_grad(), part.patched(model):
                outputs = part.forward(model, graph, {n: torch.from_numpy(a) for n, a in feeds.items()})
            return dict(zip(graph.all_outputs, (o.numpy() for o in outputs), strict=True))

        yield run

    def open_graph(graph: PartGraph) -> AbstractContextManager[PartRunner]:
        return opened(graph)

    return open_graph
