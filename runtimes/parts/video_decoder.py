"""Latents -> frames: a VAE decoder's graphs, chunk by chunk, and tile by tile in space and time, in numpy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vditc.part_graph import PartGraph, axis_size
from vditc.video_plan import Tiles, TimeTiles, VideoPlan

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]


class PartRunner(Protocol):
    """Runs one graph of a part: named inputs -> named outputs."""

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See the class."""
        ...


Opener = Callable[[PartGraph], contextlib.AbstractContextManager[PartRunner]]


class VideoDecoder:
    """Decodes one clip at a time. Memory is that of a chunk and its states, or of a chunk's tiles; frames come out as they are made."""

    def __init__(self, plan: VideoPlan, open_graph: Opener, *, tiled: bool = False) -> None:
        """`tiled`: in the VAE's spatial tiles, where a clip is larger than one; another result than without, as it is in diffusers."""
        self.plan, self.open_graph = plan, open_graph
        self.tiles = plan.tiles if tiled else None

    @classmethod
    def load(cls, folder: Path, open_graph: Opener, *, tiled: bool = False) -> VideoDecoder:
        """Of a component folder with `decoder.json`."""
        return cls(VideoPlan.load(folder), open_graph, tiled=tiled)

    def decode(self, latents: Array) -> Pixels:
        """The model's latents [1, C, F, h, w] -> frames uint8 [frames, H, W, 3]."""
        return np.concatenate(list(self.stream(latents)))

    def stream(self, latents: Array) -> Iterator[Pixels]:
        """The same, chunk by chunk."""
        for video in self.floats(latents):
            yield to_uint8(video)

    def floats(self, latents: Array) -> Iterator[npt.NDArray[np.float32]]:
        """What the VAE says, clipped to [-1, 1] behind the blending of tiles: float32 [1, 3, frames, H, W] of every chunk."""
        pieces = self._pieces(self.plan.to_vae(latents))
        for video in pieces if self.plan.time is None else _over_time(pieces, self.plan.time):
            yield np.clip(video, -1, 1)

    def _pieces(self, z: Array) -> Iterator[Array]:
        """Every chunk, or tile of time, decoded [1, 3, frames, H, W]."""
        places = _tile_places(z.shape[3:], self.tiles)
        left: list[dict[str, Array]] = [{} for _ in places]
        spans = self.plan.spans(z.shape[2])
        graphs = [self.plan.graph(frames, first=begin == 0) for begin, frames in spans]
        with contextlib.ExitStack() as opened:
            for number, (graph, (begin, frames)) in enumerate(zip(graphs, spans, strict=True)):
                if number == 0 or graph.name != graphs[number - 1].name:  # one graph's weights at a time
                    opened.close()
                    run = opened.enter_context(self.open_graph(graph))
                parts = []
                for index, (rows, columns) in enumerate(places):
                    piece = np.ascontiguousarray(z[:, :, begin : begin + frames, rows, columns])
                    found = run({graph.inputs[0].name: piece, **_states(graph, piece, left[index])})
                    left[index] = {s.name: found[s.output] for s in graph.writes}
                    parts.append(found[graph.output])
                yield parts[0] if len(parts) == 1 else _joined(parts, places, self.tiles, self.plan.stride, z.shape[3:])


def _over_time(pieces: Iterator[Array], time: TimeTiles) -> Iterator[Array]:
    """What stays of every tile of time, each blended with the one before as that is after its own blending."""
    end: Array | None = None
    for piece in pieces:
        keep = time.keep
        if end is None:
            keep += time.lead
        else:
            piece = piece[:, :, time.lead :]
            _blend(end, piece, time.blend, 1, 2)
        end = piece[:, :, max(0, piece.shape[2] - time.blend) :].copy()  # all that the next one is blended with
        yield piece[:, :, :keep]


def to_uint8(video: Array) -> Pixels:
    """[1, 3, F, H, W] in [-1, 1] -> uint8 [F, H, W, 3], rounded as diffusers rounds images."""
    shown = np.clip(video[0] * np.float32(0.5) + np.float32(0.5), 0, 1).transpose(1, 2, 3, 0)
    return np.ascontiguousarray(np.rint(shown * 255).astype(np.uint8))


def _states(graph: PartGraph, piece: Array, left: Mapping[str, Array]) -> dict[str, Array]:
    """What the chunk before left; zeros for what none has left yet."""
    sizes = {"height": piece.shape[3], "width": piece.shape[4]}
    return {s.name: left[s.name] if s.name in left else np.zeros([axis_size(d, sizes) for d in s.dims], np.float32) for s in graph.reads}


def _tile_places(size: tuple[int, ...], tiles: Tiles | None) -> list[tuple[slice, slice]]:
    """Rows and columns of every tile, row by row; one place where the clip is no larger than a tile."""
    if tiles is None or all(n <= t for n, t in zip(size, tiles.latent, strict=True)):
        return [(slice(None), slice(None))]
    rows, columns = ([slice(i, min(i + t, n)) for i in range(0, n, s)] for n, t, s in zip(size, tiles.latent, tiles.step, strict=True))
    return [(r, c) for r in rows for c in columns]


def _joined(parts: list[Array], places: list[tuple[slice, slice]], tiles: Tiles | None, stride: int, size: tuple[int, ...]) -> Array:
    """One picture of all tiles: each is blended with the one above and the one to the left, as those are after their own blending."""
    assert tiles is not None
    wide = len({columns.start for _, columns in places})
    rows = []
    for index, tile in enumerate(parts):
        if index >= wide:
            _blend(parts[index - wide], tile, tiles.blend[0], tiles.unit, 3)
        if index % wide:
            _blend(parts[index - 1], tile, tiles.blend[1], tiles.unit, 4)
    for begin in range(0, len(parts), wide):
        rows.append(np.concatenate([t[..., : tiles.keep[0], : tiles.keep[1]] for t in parts[begin : begin + wide]], 4))
    return np.concatenate(rows, 3)[..., : size[0] * stride, : size[1] * stride]


def _blend(before: Array, tile: Array, extent: int, unit: int, axis: int) -> None:
    """Fade from the end of `before` to the beginning of `tile`, in place."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if not extent:
        return
    shape = [1] * tile.ndim
    shape[axis] = extent
    weight = (np.arange(extent) // unit / np.float32(extent // unit)).astype(np.float32).reshape(shape)
    head = [slice(None)] * tile.ndim
    tail = list(head)
    head[axis], tail[axis] = slice(0, extent), slice(before.shape[axis] - extent, None)
    tile[tuple(head)] = before[tuple(tail)] * (1 - weight) + tile[tuple(head)] * weight
