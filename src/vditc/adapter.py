"""What a model family must tell, so that every stage can work on it without knowing it."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.profile import Profile


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """A graph input. `dims`: an int is a fixed size, a name is a dynamic axis of that name."""

    name: str
    dtype: str  # numpy name
    dims: tuple[int | str, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Concrete shape for given axis sizes."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.dims)


class ModelAdapter(abc.ABC):
    """One model family: its class, its layers' roles, its inputs, how to load and run it.

    Roles: patch_embed, text_embed.in, text_embed.out, time_embed.in, time_embed.out, modulation, head, and per block
    {self_attn,cross_attn}.{q,k,v,out}, ffn.in, ffn.out.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    model_class: ClassVar[str]  # diffusers class, `_class_name` of transformer/config.json
    roles: ClassVar[Mapping[str, str]]  # regular expression over a module's name -> role
    blocks: ClassVar[str]  # regular expression with one group: the block's number, from a layer's name

    def layer_roles(self, source: ModelDir) -> dict[str, str]:
        """Layer name -> role of every linear (and patch convolution) of the checkpoint, in checkpoint order."""
        layers = [n.removesuffix(".weight") for n, e in source.weights.items() if n.endswith(".weight") and len(e.shape) >= 2]
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

    @abc.abstractmethod
    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """Inputs of the forward pass in call order; axes named batch, frames, height, width, text_tokens."""

    @abc.abstractmethod
    def latent_channels(self, source: ModelDir) -> int:
        """Channels that are denoised. `hidden_states` has more of them when the model also sees constant channels."""

    @abc.abstractmethod
    def default_profile(self, source: ModelDir) -> Profile:
        """Ranges for every named axis."""

    @abc.abstractmethod
    def check(self, source: ModelDir) -> None:
        """InputError when the checkpoint lacks tensors that config.json asks for, or they have other shapes. Cheap."""

    @abc.abstractmethod
    def load(self, source: ModelDir) -> Any:
        """The torch module with its weights, float32, in eval mode; InputError if weights are missing."""

    @abc.abstractmethod
    def skeleton(self, source: ModelDir) -> Any:
        """The torch module without real weights, for tracing (call it under FakeTensorMode)."""

    @abc.abstractmethod
    def patched(self, model: Any) -> AbstractContextManager[None]:
        """Rewrites what the exporter cannot trace well; every patch leaves the outputs unchanged."""

    @abc.abstractmethod
    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Run the model on tensors named as `inputs` says; returns the predicted velocity tensor [B, C, F, H, W]."""


def _natural(name: str) -> list[Any]:
    """blocks.2 before blocks.10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split(".")]
