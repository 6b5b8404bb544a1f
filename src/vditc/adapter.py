"""What a model family must tell, so that every stage can work on it without knowing it."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vditc.correction import FrameOrder
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.profile import Axis, Profile, Range, Sizes
from vditc.vae_stride import vae_stride

ATTENTION = ("q", "k", "v", "qkv", "kv", "out", "gate")  # qkv, kv: fused projections
ROLES = frozenset(
    {
        "patch_embed",
        *(f"{what}_embed.{end}" for what in ("text", "image", "time", "other") for end in ("in", "out")),
        "modulation",
        *(f"{kind}_attn.{part}" for kind in ("self", "temporal", "cross", "text", "image", "audio", "refiner") for part in ATTENTION),
        *(f"{stream}ffn.{end}" for stream in ("", "text_", "audio_", "refiner_") for end in ("in", "out", "gate")),
        "head",
    }
)


def of_time_path(role: str) -> bool:
    """Whether layers of this role see nothing but the time (and, in some families, a pooled text)."""
    return role == "modulation" or role.startswith("time_embed.")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """A graph input. `dims`: an int is a fixed size, a name is a dynamic axis of that name.

    `fill` says which values make sense: "normal" (latents, embeddings), "timestep" ([0, 1000)), "mask" (ones, then zeros
    along the last axis), "ids" (tokens of a vocabulary, which the model embeds itself), or a number that nobody needs to choose
    differently (a guidance scale, frames a second).
    """

    name: str
    dtype: str  # numpy name
    dims: tuple[int | str, ...]
    fill: str | float = "normal"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Concrete shape for given axis sizes."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.dims)

    def example(self, sizes: Mapping[str, int], random: np.random.Generator) -> npt.NDArray[Any]:
        """Random values that the model may meet; a mask hides the last quarter (rounded down) of all but the first clip."""
        shape = self.shape(sizes)
        values: npt.NDArray[Any]
        match self.fill:
            case "normal":
                values = random.standard_normal(shape, np.float32)
            case "timestep":
                values = random.integers(1, 1000, shape)
            case "ids":
                values = random.integers(0, 128, shape)  # every vocabulary has more
            case "mask":
                values = np.ones(shape)
                values[1:, ..., shape[-1] - shape[-1] // 4 :] = 0
            case _:
                values = np.full(shape, float(self.fill))
        return np.asarray(values, self.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop over like blocks: traced a few times and stamped out for the rest.

    `modules`: list attribute of the model -> how many of its blocks one iteration runs. `count`: iterations of the whole
    model. `head`, `last`: iterations at either end that differ from those in between.
    """

    modules: Mapping[str, int]
    count: int
    head: int = 1
    last: int = 0

    @property
    def traced(self) -> int:
        """Iterations that the tracer must see: both ends and two alike in between, or all."""
        return min(self.count, self.head + 2 + self.last)


class ModelAdapter(abc.ABC):
    """One model family: its class, its layers' roles, its inputs, how to load and run it.

    Every family has the same face: latents `hidden_states` [batch, C, frames, height, width] go in first and a prediction
    with the same axes comes out; packing into tokens and position tables are made of the sizes inside.
    Roles are those of `ROLES`; layers with a role time_embed.* or modulation are the time path.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    model_class: ClassVar[str]  # diffusers class, `_class_name` of transformer/config.json
    roles: ClassVar[Mapping[str, str]]  # regular expression over a module's name -> role
    # name -> (frames, height, width) of the clip, in frames and pixels
    presets: ClassVar[Mapping[str, tuple[int, int, int]]]
    # config.json of the published model, where it says something else than the class's defaults
    published: ClassVar[Mapping[str, Any]] = {}
    # graph output -> the input whose axes it has, maybe with other channels; the prediction for the latents first
    outputs: ClassVar[Mapping[str, str]] = {"velocity": "hidden_states"}
    linear_attention: ClassVar[bool] = False  # self-attention without a softmax over all tokens

    # Regular expression over a module's name -> how the rows of that linear's input, all leading axes flattened, are made of clips,
    # frames and tokens; only where they are the video's tokens, each once, in diffusers' module and in the `patched` one alike.
    frame_orders: ClassVar[Mapping[str, FrameOrder]] = {}

    def frame_order(self, source: ModelDir, layer: str) -> FrameOrder | None:
        """How the rows of a layer's input are laid out; None where they are not the video's tokens alone."""
        return next((order for p, order in self.frame_orders.items() if re.fullmatch(p, layer)), None)

    def frames_of(self, source: ModelDir, latents: int) -> int:
        """Frames of tokens of a clip of so many latent frames: fewer where a patch spans several of them."""
        patch = source.config.get("patch_size")
        depth = patch[0] if isinstance(patch, (list, tuple)) else source.config.get("patch_size_t") or 1
        return latents // int(depth)

    def layer_roles(self, source: ModelDir) -> dict[str, str]:
        """Layer name -> role of every linear (and patch convolution) of the checkpoint, in checkpoint order."""
        layers = [n.removesuffix(".weight") for n in source.weights if n.endswith(".weight") and self.is_layer(source, n)]
        found: dict[str, str] = {}
        for layer in sorted(layers, key=_natural):
            role = next((r for p, r in self.roles.items() if re.fullmatch(p, layer)), None)
            if role is None:
                raise InputError(
                    found=f"layer {layer}",
                    wanted=f"a layer that the {self.name} adapter knows",
                    where=str(source.transformer),
                    fix="check that the checkpoint is of this family",
                )
            found[layer] = role
        return found

    def is_layer(self, source: ModelDir, weight: str) -> bool:
        """Whether this tensor, named `*.weight`, is of a linear or convolution; an embedding table is not."""
        return len(source.weights[weight].shape) >= 2

    @abc.abstractmethod
    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Inputs in call order, the latents first; axes named batch, frames, height, width, text_tokens, ..."""

    @abc.abstractmethod
    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """What sizes each named axis of `inputs` may have, behind the VAE that the published models have."""

    def sizes(self, source: ModelDir) -> Sizes:
        """`axes` and `presets`, behind the VAE of this model directory: what its vae/config.json says wins."""
        frames, pixels = vae_stride(source.path / "vae")
        strides = {"frames": frames, "height": pixels, "width": pixels}
        axes = {n: a.with_stride(stride) if (stride := strides.get(n)) else a for n, a in self.axes(source).items()}
        return Sizes(axes, self.presets)

    @abc.abstractmethod
    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """Loops over blocks, in execution order; () when no two blocks are alike."""

    @abc.abstractmethod
    def shortened(self, config: Mapping[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
        """The config of the same model with that many iterations of each of `loops`."""

    def latent_channels(self, source: ModelDir) -> int:
        """Channels that are denoised. `hidden_states` has more of them when the model also sees constant channels."""
        return int(source.config["out_channels"])

    def default_profile(self, source: ModelDir) -> Profile:
        """Ranges for every named axis, around the model's sampling defaults or what the published model was made for.

        Height and width are fixed, since an engine is tuned for its sizes: --profile frees them for who needs that.
        """
        axes = self.sizes(source).axes
        sizes = {name: axis.default for name, axis in axes.items()}
        if s := source.sampling:
            own = {"frames": s.frames, "height": s.height, "width": s.width, "batch": 1 if s.guidance_scale == 1.0 else 2}
            sizes |= {n: size for n, size in own.items() if n in axes}
        free = {"batch", "frames"}
        return Profile({n: Range(axes[n].least if n in free else size, size, size) for n, size in sizes.items()})

    @abc.abstractmethod
    def build(self, config: Mapping[str, Any]) -> Any:
        """The torch module of a config, float32, in eval mode; its parameters' values do not matter."""

    @abc.abstractmethod
    def check(self, source: ModelDir) -> None:
        """InputError when the checkpoint lacks tensors that config.json asks for, or they have other shapes. Cheap."""

    @abc.abstractmethod
    def load(self, source: ModelDir, memory: int | None = None) -> Any:
        """The torch module with its weights, float32, in eval mode; InputError if weights are missing.

        `memory`: bytes that weights may take, by default half of what is free; a larger model reads each block when it runs.
        """

    @abc.abstractmethod
    def hollow(self, source: ModelDir) -> Any:
        """The same module before any weight was read, none of which takes memory. InputError if weights are missing."""

    @abc.abstractmethod
    def fill(self, model: Any, source: ModelDir, *, within: str = "", without: tuple[str, ...] = ()) -> None:
        """Read weights into a hollow module: those whose names begin with `within`, and with none of `without`."""

    def patched(self, model: Any) -> AbstractContextManager[None]:
        """Rewrites what the exporter cannot trace well; every patch leaves the outputs unchanged."""
        return nullcontext()

    @abc.abstractmethod
    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Run the model on tensors named as `inputs` says; returns the prediction [B, C, F, H, W]."""

    def check_sampled(self) -> None:
        """InputError for a family that is not sampled yet: one that also predicts sound, which would have to be denoised with the video."""
        if len(self.outputs) > 1:
            raise InputError(
                found=f"{self.model_class}, which predicts {' and '.join(self.outputs)}",
                wanted="a model that predicts the video alone",
                where=f"family {self.name}",
                fix="use `vditc export --recipe` with a recipe that needs no calibration data",
            )

    def forward_all(self, model: Any, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """The same, for a family that predicts more: all of `outputs`."""
        return (self.forward(model, feeds),)

    # Whether a pipeline of diffusers calls the class, once a step for all clips.
    in_pipelines: ClassVar[bool] = True
    # Arguments of the diffusers class that say nothing more than the others do: the graph makes their values itself.
    made_inside: ClassVar[frozenset[str]] = frozenset()

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The way back of `forward`: what `inputs` names, from what a diffusers pipeline calls its transformer with, by argument.

        `call` holds no None and nothing of `made_inside`. InputError for a call that the graph has no form of.
        """
        return dict(call)

    def handed_back(self, prediction: Any, call: Mapping[str, Any]) -> Any:
        """What the diffusers class returns where `forward` returns `prediction` [B, C, F, H, W]."""
        return prediction

    def no_form(self, found: str, wanted: str) -> InputError:
        """For a call of the module that the graph cannot follow."""
        return InputError(
            found=found,
            wanted=wanted,
            where=f"call of {self.model_class}, which a compiled graph takes the place of",
            fix="call the pipeline otherwise, or run the full-precision model",
        )


def _natural(name: str) -> list[Any]:
    """blocks.2 before blocks.10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split(".")]
