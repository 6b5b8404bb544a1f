"""VAE decoders as graphs of chunks: latents of a few frames and what the chunk before left behind -> frames."""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import diffusers
import torch

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.errors import InputError
from vditc.export.parts.part import Part
from vditc.model_dir import ModelDir
from vditc.part_graph import PartGraph, State, scaled
from vditc.vae_stride import vae_stride
from vditc.video_plan import Tiles, TimeTiles, VideoPlan, graph_name, spans

_SIDE = (5, 7)  # latent height and width at which the shapes of states are seen
Tensors = dict[str, torch.Tensor]


class VaeDecoder(Part):
    """The decoder of a VAE of diffusers. `chunk`: latent frames that it decodes at a time, behind a first chunk that takes the remainder.

    With `chunk` 0 it decodes the whole clip at once, or in tiles of time that overlap; `apart` says that chunks know nothing of each other.

    Subclasses run one chunk; which states that leaves, and of what shapes, is seen on a module without weights.
    """

    chunk: ClassVar[int]
    apart: ClassVar[bool] = False
    time: ClassVar[TimeTiles | None] = None

    def __init__(self, source: ModelDir, frames: Iterable[int] = ()) -> None:
        """`frames`: how many latent frames clips may have; the graphs are for those, all remainders by default."""
        super().__init__(source)
        longest = 2 * self.chunk + 1 if self.time is None else max(self.time.whole, self.time.latent + self.time.step)
        self.frames = tuple(frames) or tuple(range(1, longest + 1))

    @abc.abstractmethod
    def run(self, model: Any, z: torch.Tensor, states: Tensors | None) -> tuple[torch.Tensor, Tensors]:
        """Decode z [1, C, f, h, w] behind the chunk that left `states`, None for the first: frames [1, 3, F, H, W], and its own states."""

    def tiles(self, config: Mapping[str, Any]) -> Tiles | None:
        """The class's spatial tiles, as `enable_tiling()` sets them; None where it has none."""
        return None

    @functools.cached_property
    def stride(self) -> int:
        """Pixels of a latent step."""
        _, pixels = vae_stride(self.source.transformer)
        if pixels is None:
            raise InputError(
                found="no stride",
                wanted="a config.json that tells how many pixels a latent step is",
                where=str(self.source.transformer / "config.json"),
                fix="save the VAE with diffusers' save_pretrained",
            )
        return pixels

    @property
    def channels(self) -> int:
        """Of the latents."""
        config = self.source.config
        return int(config["z_dim"] if "z_dim" in config else config["latent_channels"])

    def used(self, name: str) -> bool:
        """The encoder is not."""
        return not name.startswith(("encoder.", "quant_conv."))

    def build(self) -> Any:
        """See `Part`."""
        known = {k: v for k, v in self.source.config.items() if not k.startswith("_")}
        model: torch.nn.Module = getattr(diffusers, self.model_class).from_config(known)
        return model.eval().requires_grad_(False)

    def axes(self) -> Mapping[str, Axis]:
        """Any size: engines are built for those of the profile."""
        side = {"low": 1, "high": None, "unit": "pixels", "stride": self.stride}
        frames = {} if self.chunk or self.time else {"frames": Axis(default=21, unit="frames", stride=self._frame_stride, causal=True)}
        return {**frames, "height": Axis(default=60, **side), "width": Axis(default=104, **side)}  # type: ignore[arg-type]

    @property
    def _frame_stride(self) -> int:
        """Frames of a latent step."""
        return vae_stride(self.source.transformer)[0] or 1

    @functools.cached_property
    def _graphs(self) -> tuple[PartGraph, ...]:
        if not self.chunk and self.time is None:
            factor = self._frame_stride
            height, width = (scaled(axis, self.stride) for axis in ("height", "width"))
            dims = (1, self.channels, "frames", "height", "width")
            video = (1, 3, scaled("frames", factor, factor - 1), height, width)
            latents = InputSpec("latents", "float32", dims)
            return (PartGraph(name="whole", inputs=(latents,), output="frames", output_dims=video),)
        alone = self.apart or self.time is not None
        lengths = sorted({length for f in self.frames for begin, length in self._spans(f) if begin == 0 or alone})
        longer = any(len(self._spans(f)) > 1 for f in self.frames)
        found: dict[str, PartGraph] = {}
        with self.hollow() as model, torch.no_grad(), self.patched(model):
            for length in lengths:
                frames, states = self._shapes(model, length, None)
                name = graph_name(length, self.chunk, self.time, first=True)
                found[name] = self._graph(name, length, frames, (), states)
            if longer and not alone:
                shapes: dict[str, tuple[int, ...]] = {}
                for _ in range(2):  # the second chunk may leave states that the first does not
                    frames, shapes = self._shapes(model, self.chunk, self._known(model, shapes or states))
                reads = tuple(self._state(n, s) for n, s in shapes.items())
                found["next"] = self._graph("next", self.chunk, frames, reads, shapes)
        return tuple(found.values())

    def _known(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    def graphs(self) -> tuple[PartGraph, ...]:
        """firstN for every first chunk of N latent frames, and next for all behind it; tileN for every tile of time of N."""
        return self._graphs

    def _shapes(self, model: Any, frames: int, states: Tensors | None) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
        z = torch.empty((1, self.channels, frames, *_SIDE), device="meta")
        video, left = self.run(model, z, states)
        return tuple(video.shape), {name: tuple(t.shape) for name, t in left.items()}

    def _state(self, name: str, shape: tuple[int, ...]) -> State:
        return State(name, self._dims(shape))

    def _dims(self, shape: tuple[int, ...]) -> tuple[int | str, ...]:
        if any(size % side for size, side in zip(shape[3:], _SIDE, strict=True)):
            raise ValueError(f"{self.model_class} has a state {shape} whose sides are no multiples of the latents'")
        height, width = (size // side for size, side in zip(shape[3:], _SIDE, strict=True))
        return (*shape[:3], scaled("height", height), scaled("width", width))

    def _graph(self, name: str, frames: int, video: tuple[int, ...], reads: tuple[State, ...], left: Mapping[str, Any]) -> PartGraph:
        return PartGraph(
            name=name,
            inputs=(InputSpec("latents", "float32", (1, self.channels, frames, "height", "width")),),
            output="frames",
            output_dims=self._dims(video),
            reads=reads,
            writes=tuple(self._state(n, s) for n, s in left.items()) if self._keeps(left) else (),
        )

    def _keeps(self, left: Mapping[str, Any]) -> bool:
        """Whether anybody reads what a chunk leaves: not where clips are of one chunk."""
        return bool(left) and any(len(self._spans(f)) > 1 for f in self.frames)

    def _spans(self, frames: int) -> list[tuple[int, int]]:
        return spans(frames, self.chunk, self.time)

    def forward(self, model: Any, graph: PartGraph, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """See `run`."""
        states = {s.name: feeds[s.name] for s in graph.reads} if graph.name == "next" else None
        video, left = self.run(model, feeds["latents"], states)
        return (video, *(left[s.name] for s in graph.writes))

    def plan(self) -> VideoPlan:
        """What the runtime needs to know."""
        config = self.source.config
        return VideoPlan(
            chunk=self.chunk,
            graphs=tuple(self.graphs()),
            stride=self.stride,
            mean=tuple(map(float, config.get("latents_mean") or ())),
            std=tuple(map(float, config.get("latents_std") or ())),
            scaling=float(config.get("scaling_factor") or 1.0),
            shift=float(config.get("shift_factor") or 0.0),
            tiles=self._fitting_tiles(),
            apart=self.apart,
            time=self.time,
        )

    def _fitting_tiles(self) -> Tiles | None:
        """Tiles whose steps are as long in the latents as in the picture; a VAE of another size than the published ones may have none."""
        tiles = self.tiles(self.source.config)
        if tiles is None or not all(tiles.step) or any(s * self.stride != k for s, k in zip(tiles.step, tiles.keep, strict=True)):
            return None
        return tiles
