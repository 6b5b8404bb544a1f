"""A part of a pipeline beside the transformer, as the exporter sees it: a text encoder or a VAE's decoder."""

from __future__ import annotations

import abc
import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from vditc.axis import Axis
from vditc.background import hash_later
from vditc.checkpoint import read_checkpoint, read_json
from vditc.conditioner import TextInput
from vditc.errors import InputError
from vditc.export.weightless import weightless
from vditc.files import data_digest
from vditc.float_weight import Tensor
from vditc.model_dir import ModelDir
from vditc.part_graph import PartGraph


class Part(abc.ABC):
    """One checkpoint folder of a pipeline, and the graphs that are made of it. A class is one diffusers or transformers class."""

    model_class: ClassVar[str]
    # Whether its matrices may be stored in 8 bits: those of a text encoder, not a VAE's convolutions.
    quantizable: ClassVar[bool] = False
    block_lists: ClassVar[tuple[str, ...]] = ()  # lists of blocks, whose weights may be read when they run

    def __init__(self, source: ModelDir) -> None:
        self.source = source

    def for_prompts(self, text: TextInput) -> Self:
        """The text encoder as a pipeline uses it; InputError for a use that the class does not know."""
        if text.skip_layers:
            raise InputError(
                found=f"a {self.model_class} of which {text.skip_layers} blocks are skipped",
                wanted="an encoder that gives its middle states",
                where=str(self.source.transformer / "config.json"),
                fix="use the text encoder that the pipeline was published with",
            )
        return self

    @property
    def digest(self) -> str:
        """Of all files that its graphs and its plan are made of."""
        return self.source.digest

    @abc.abstractmethod
    def graphs(self) -> tuple[PartGraph, ...]:
        """What is exported; they share one file of weights."""

    @abc.abstractmethod
    def axes(self) -> Mapping[str, Axis]:
        """What sizes the named axes of the graphs may have; a scaled one (vditc.part_graph) follows its base."""

    @abc.abstractmethod
    def build(self) -> Any:
        """The torch module of the config, float32, in eval mode; its parameters' values do not matter."""

    @abc.abstractmethod
    def forward(self, model: Any, graph: PartGraph, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """Run one graph on tensors named as its inputs say; returns its outputs in order."""

    def patched(self, model: Any) -> AbstractContextManager[None]:
        """Rewrites what the exporter cannot trace well; outputs stay what they are."""
        return contextlib.nullcontext()

    @contextmanager
    def hollow(self) -> Iterator[Any]:
        """The module on no device, for what needs its shapes only."""
        with weightless(lambda shape: torch.empty(shape, device="meta")):
            yield self.build()

    @functools.cached_property
    def named(self) -> ModelDir:
        """The source with every name that the module has for a tensor: tied parameters are stored once, under any of their names.

        InputError when the checkpoint lacks a tensor that the module has, or has it in another shape.
        """
        with self.hollow() as model:
            groups: dict[int, list[str]] = {}
            for name, tensor in model.named_parameters(remove_duplicate=False):
                groups.setdefault(id(tensor), []).append(name)
            wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
        weights: dict[str, Tensor] = dict(self.source.weights)
        for names in groups.values():
            stored = next((n for n in names if n in weights), None)
            weights |= dict.fromkeys(names, weights[stored]) if stored is not None else {}
        wrong = [n for n, shape in wanted.items() if self.used(n) and (n not in weights or weights[n].shape != shape)]
        if wrong:
            raise InputError(
                found=f"{len(wrong)} tensors missing or of another shape, first {wrong[0]}",
                wanted=f"the tensors of a {self.model_class} as config.json describes it",
                where=str(self.source.transformer),
                fix="use the config.json and weights of one checkpoint, in the layout that the installed libraries save",
            )
        return ModelDir(self.source.path, self.source.config, weights, None, self.source.hashed, self.source.part)  # type: ignore[arg-type]

    @property
    def weight_count(self) -> int:
        """Number of weights that its graphs read."""
        return sum(math.prod(entry.shape) for name, entry in self.source.weights.items() if self.used(name))

    def used(self, name: str) -> bool:
        """Whether a tensor of the module is read by its graphs."""
        return True


def open_part(model_dir: Path, folder: str) -> ModelDir:
    """A checkpoint folder of a pipeline; its digest, of its config and weights, is computed when somebody asks for it.

    InputError for a missing or damaged file.
    """
    config = read_json(model_dir / folder / "config.json")
    name = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    if not isinstance(name, str):
        raise InputError(
            found="no _class_name and no architectures",
            wanted="the class of the component",
            where=str(model_dir / folder / "config.json"),
            fix="save the pipeline with diffusers' save_pretrained",
        )
    files, weights = read_checkpoint(model_dir / folder, name)
    hashed = sorted([model_dir / folder / "config.json", *files])
    digest = functools.cache(lambda: data_digest(hash_later(hashed)()))
    return ModelDir(model_dir, {**config, "_class_name": name}, weights, None, digest, folder)
