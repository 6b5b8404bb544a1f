"""Plans of VAE decoders whose graphs backend "null" stands for, and that function in numpy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.part_graph import PartGraph, State, axis_size, scaled
from vditc.runtimes.parts.video_decoder import PartRunner, VideoDecoder
from vditc.video_plan import Tiles, TimeTiles, VideoPlan

Array = npt.NDArray[Any]
CHANNELS = 4


@dataclasses.dataclass
class NullProgram:
    """What backend "null" computes for a graph (docs/cpp.md)."""

    graph: PartGraph

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `PartRunner`."""
        first, *others = feeds.values()
        assert list(feeds) == [spec.name for spec in self.graph.all_inputs]
        sizes = dict(zip(("frames", "height", "width"), first.shape[2:], strict=True))
        bias = sum((2.0 ** -(i + 2) * _bounded(_mean(other)) for i, other in enumerate(others, start=1)), 0.0)
        seen = _bounded(first.astype(np.float64))
        made = {}
        for o, (name, dims) in enumerate(self.graph.all_outputs.items()):
            shape = [axis_size(d, sizes) for d in dims]
            places = [np.arange(m) * n // m for m, n in zip(shape, first.shape, strict=True)]
            made[name] = (seen[np.ix_(*places)] + (bias + o / 8)).astype(np.float32)
        return made


def _bounded(x: Any) -> Any:
    return x / (1 + np.abs(x))


def _mean(values: Array) -> float:
    return float(np.add.accumulate(values.astype(np.float64).ravel())[-1]) / values.size


@contextlib.contextmanager
def open_null(graph: PartGraph) -> Iterator[PartRunner]:
    """See `vditc.runtimes.parts.video_decoder.Opener`."""
    yield NullProgram(graph)


def decoded(plan: VideoPlan, latents: Array, *, tiled: bool = False) -> list[Array]:
    """Frames of Python's decoder, chunk by chunk."""
    return [pixels for pixels in VideoDecoder(plan, open_null, tiled=tiled).stream(latents[None]) if len(pixels)]


def _graph(name: str, frames: int | str, made: int | str, stride: int, reads: tuple[State, ...], writes: tuple[State, ...]) -> PartGraph:
    latents = InputSpec("latents", "float32", (1, CHANNELS, frames, "height", "width"))
    video = (1, 3, made, scaled("height", stride), scaled("width", stride))
    return PartGraph(name=name, inputs=(latents,), output="frames", output_dims=video, reads=reads, writes=writes)


# Two states of different sizes: which of them is which matters, and so does what is zero at first.
STATES = (State("conv_in", (1, 2, 1, "height", "width")), State("up.0", (1, 3, 2, "height_x2", "width_x2")))


def _plan(graphs: list[PartGraph], stride: int, **changes: Any) -> VideoPlan:
    known: dict[str, Any] = {"chunk": 0, "mean": (), "std": (), "scaling": 0.5, "shift": 0.25, "tiles": None}
    return VideoPlan(graphs=tuple(graphs), stride=stride, **(known | changes))


def whole(stride: int = 2, **changes: Any) -> VideoPlan:
    """One graph decodes the whole clip, four frames for a latent one but the first."""
    return _plan([_graph("whole", "frames", "frames_x4m3", stride, (), ())], stride, **changes)


def chunked(stride: int = 2, chunk: int = 1, **changes: Any) -> VideoPlan:
    """Chunks leave states for the next; the first one leaves one of the two."""
    firsts = [_graph(f"first{n}", n, 4 * n - 3, stride, (), STATES[:1]) for n in range(1, 2 * chunk)]
    return _plan([*firsts, _graph("next", chunk, 4 * chunk, stride, STATES, STATES)], stride, chunk=chunk, **changes)


def apart(stride: int = 2, chunk: int = 2, **changes: Any) -> VideoPlan:
    """Chunks know nothing of each other."""
    firsts = [_graph(f"first{n}", n, 4 * n - 3, stride, (), ()) for n in range(1, 2 * chunk)]
    return _plan(firsts, stride, chunk=chunk, apart=True, **changes)


TIME = TimeTiles(latent=5, step=3, whole=4, lead=1, blend=4, keep=12)


def over_time(stride: int = 2, time: TimeTiles = TIME, **changes: Any) -> VideoPlan:
    """Tiles of time, each other than the one before by a state, so that blending is seen."""
    tiles = [
        _graph(f"tile{n}", n, scaled("frames", 4, 3), stride, STATES[:1], STATES[:1]) for n in range(1, max(time.latent, time.whole) + 1)
    ]
    return _plan(tiles, stride, time=time, **changes)


def tiles(stride: int = 2, latent: int = 4, step: int = 3, blend: int = 2, unit: int = 1) -> Tiles:
    """Square tiles whose steps are as long in the latents as in the picture."""
    return Tiles(latent=(latent, latent), step=(step, step), blend=(blend, blend), keep=(step * stride,) * 2, unit=unit)


def latents_of(frames: int, height: int, width: int, seed: int = 0) -> Array:
    """Normal, with a ramp in time and space: no two chunks or tiles have the same mean."""
    made = np.random.default_rng(seed).standard_normal((CHANNELS, frames, height, width), np.float32)
    for size, axis in zip((frames, height, width), (1, 2, 3), strict=True):
        made += np.linspace(-1.5, 1.5, size, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
    return made


PLANS = {
    "whole": whole(),
    "normal": whole(mean=(0.1, -0.2, 0.3, 0.4), std=(1.5, 0.7, 2.1, 0.3), scaling=1.1),
    "chunks": chunked(),
    "longer chunks": chunked(chunk=3),
    "apart": apart(),
    "tiles of space": chunked(tiles=tiles()),
    "tiles with units": chunked(4, tiles=tiles(4, 5, 3, 6, unit=2)),
    "tiles of time": over_time(),
    "tiles of time and space": over_time(tiles=tiles()),
}
