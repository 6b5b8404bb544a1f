"""How latents become a video, as data: the VAE decoder's graphs, its chunks, its tiles of time and space, the scale of its latents."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vditc.checkpoint import read_json
from vditc.errors import InputError
from vditc.files import write_text
from vditc.part_graph import PartGraph

FILE = "decoder.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """Spatial tiles: `latent` rows and columns each, every `step` of them; `blend` pixels are blended with the tile before, `keep` stay.

    `unit`: pixels that get one weight.
    """

    latent: tuple[int, int]
    step: tuple[int, int]
    blend: tuple[int, int]
    keep: tuple[int, int]
    unit: int = 1

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Of plain data."""
        latent, step, blend, keep = ((int(data[k][0]), int(data[k][1])) for k in ("latent", "step", "blend", "keep"))
        return cls(latent=latent, step=step, blend=blend, keep=keep, unit=int(data["unit"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeTiles:
    """Tiles of time: `latent` frames each, every `step` of them, the last ones shorter; a clip of at most `whole` is one tile.

    A tile but the first is decoded with `lead` latent frames in front, a frame each, which are dropped. Of what is left, `blend` frames
    are blended with the end of the tile before and `keep` stay; the first tile keeps its lead as well.
    """

    latent: int
    step: int
    whole: int
    lead: int
    blend: int
    keep: int

    def spans(self, frames: int) -> list[tuple[int, int]]:
        """First latent frame and length of every tile that decodes more than its lead."""
        if frames <= self.whole:
            return [(0, frames)]
        every = [(begin, min(self.latent, frames - begin)) for begin in range(0, frames, self.step)]
        return [(begin, length) for begin, length in every if begin == 0 or length > self.lead]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Of plain data."""
        return cls(**{field.name: int(data[field.name]) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoPlan:
    """What `decoder.json` says. With `time` a clip is decoded in tiles of time, otherwise in chunks.

    A model's latents x become the VAE's as x * std / scaling + mean, or without mean and std as x / scaling + shift.
    """

    chunk: int  # latent frames of every chunk but the first; 0: the whole clip is one
    graphs: tuple[PartGraph, ...]
    stride: int  # pixels of a latent step
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scaling: float
    shift: float
    tiles: Tiles | None
    apart: bool = False  # chunks know nothing of each other
    time: TimeTiles | None = None

    def to_vae(self, latents: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Latents [B, C, F, H, W] as the VAE was trained on them."""
        if self.mean and self.std:
            mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1, 1) for v in (self.mean, self.std))
            return np.asarray(latents * std / np.float32(self.scaling) + mean, np.float32)
        return np.asarray(latents / np.float32(self.scaling) + np.float32(self.shift), np.float32)

    def graph(self, frames: int, *, first: bool) -> PartGraph:
        """The graph of a chunk or a tile of time; InputError when none was exported for a first chunk, or a tile, of so many frames."""
        wanted = graph_name(frames, self.chunk, self.time, first=first or self.apart)
        for graph in self.graphs:
            if graph.name == wanted:
                return graph
        kind, noun = ("first", "whose first chunk has") if self.time is None else ("tile", "with a tile of time of")
        known = ", ".join(g.name.removeprefix(kind) for g in self.graphs if g.name.startswith(kind))
        raise InputError(
            found=f"a clip {noun} {frames} latent frames",
            wanted=f"one of {known}" if first or self.time is not None else "a clip of one chunk",
            where="VAE decoder",
            fix="compile with a --profile that holds clips of this length",
        )

    def spans(self, frames: int) -> list[tuple[int, int]]:
        """First latent frame and length of every chunk, or tile of time, of a clip of so many latent frames."""
        return spans(frames, self.chunk, self.time)

    def check(self, frames: int) -> None:
        """InputError for a clip of so many latent frames that the graphs do not decode."""
        for begin, length in self.spans(frames):
            self.graph(length, first=begin == 0)

    def save(self, folder: Path) -> None:
        """Write `decoder.json`."""
        write_text(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; InputError for a file that says something else."""
        data = read_json(folder / FILE)
        try:
            tiles = data.pop("tiles")
            whole = None if tiles is None else Tiles.from_json(tiles)
            time = data.pop("time", None)
            over = None if time is None else TimeTiles.from_json(time)
            graphs = tuple(PartGraph.from_json(g) for g in data.pop("graphs"))
            mean, std = (tuple(map(float, data.pop(key))) for key in ("mean", "std"))
            return cls(graphs=graphs, mean=mean, std=std, tiles=whole, time=over, **data)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                found=f"wrong keys ({error})", wanted="what vditc writes", where=str(folder / FILE), fix="compile the bundle again"
            ) from error


def chunks(frames: int, chunk: int) -> list[int]:
    """Latent frames of every chunk: `chunk` each, and the first takes the remainder as well; one of all for `chunk` 0."""
    if not chunk:
        return [frames]
    first = min(frames, chunk + frames % chunk)
    return [first] + [chunk] * ((frames - first) // chunk)


def spans(frames: int, chunk: int, time: TimeTiles | None = None) -> list[tuple[int, int]]:
    """First latent frame and length of every chunk, or tile of time, of a clip of so many latent frames."""
    if time is not None:
        return time.spans(frames)
    lengths = chunks(frames, chunk)
    return [(sum(lengths[:i]), length) for i, length in enumerate(lengths)]


def graph_name(frames: int, chunk: int, time: TimeTiles | None = None, *, first: bool) -> str:
    """Of the graph that decodes a chunk, or tile of time, of so many latent frames."""
    if time is not None:
        return f"tile{frames}"
    return "whole" if not chunk else f"first{frames}" if first else "next"
