"""What all families that diffusers has a class for share: building, checking and loading the module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import diffusers
import torch

from vditc.adapter import Loop, ModelAdapter
from vditc.errors import InputError
from vditc.export.block_streaming import float32_bytes, memory_for_weights, read_float32, stream_blocks
from vditc.export.weightless import weightless
from vditc.model_dir import ModelDir
from vditc.safetensors_file import is_float


class DiffusersAdapter(ModelAdapter):
    """A family whose class has `from_config` and whose checkpoint's tensors are named like the module's."""

    # list attribute of the model -> key of config.json that holds its length; one loop each, in execution order
    lists: ClassVar[Mapping[str, str]]

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        """One loop for each of `lists`."""
        return tuple(Loop(modules={name: 1}, count=int(config[key])) for name, key in self.lists.items())

    def shortened(self, config: Mapping[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
        """The config with other list lengths."""
        return {**config, **dict(zip(self.lists.values(), counts, strict=True))}

    def class_(self) -> Any:
        """The torch class; InputError when the installed diffusers is too old to have it."""
        kind = getattr(diffusers, self.model_class, None)
        if kind is None:
            raise InputError(
                found=f"no class {self.model_class}",
                wanted="a diffusers that has it",
                where=f"diffusers {diffusers.__version__}",
                fix="pip install --upgrade diffusers",
            )
        return kind

    def build(self, config: Mapping[str, Any]) -> Any:
        """float32, eval, no gradients."""
        model: torch.nn.Module = self.class_().from_config(dict(config))
        return model.eval().requires_grad_(False)

    def check(self, source: ModelDir) -> None:
        """InputError when tensors are missing, do not fit, or are more than config.json describes."""
        with weightless(lambda shape: torch.empty(shape, device="meta")):
            model = self.build(source.config)
        state = model.state_dict()
        wanted = {n: tuple(t.shape) for n, t in state.items()}
        missing = [n for n in wanted if n not in source.weights]
        wrong = [n for n, shape in wanted.items() if n in source.weights and source.weights[n].shape != shape]
        if missing or wrong:
            first = missing[0] if missing else f"{wrong[0]} {list(source.weights[wrong[0]].shape)} instead of {list(wanted[wrong[0]])}"
            raise InputError(
                found=f"{len(missing) + len(wrong)} tensors missing or of another shape, first {first}",
                wanted=f"{len(wanted)} tensors as config.json describes",
                where=str(source.transformer),
                fix="use the config.json and weights of one checkpoint",
            )
        # Some classes name tensors that old checkpoints hold and the model never used.
        unused = [re.compile(p) for p in getattr(type(model), "_keys_to_ignore_on_load_unexpected", None) or ()]
        if extra := [n for n in source.weights if n not in wanted and not any(p.search(n) for p in unused)]:
            raise InputError(
                found=f"{len(extra)} tensors more than the model has, first {extra[0]}",
                wanted=f"{len(wanted)} tensors as config.json describes",
                where=str(source.transformer),
                fix="use the config.json and weights of one checkpoint",
            )
        if codes := [n for n, t in state.items() if t.is_floating_point() and not is_float(source.weights[n].dtype)]:
            raise InputError(
                found=f"{len(codes)} weights that are not floating point, first {codes[0]} {source.weights[codes[0]].dtype}",
                wanted="floating-point weights",
                where=str(source.transformer),
                fix="use the checkpoint that was not quantized: vditc quantizes it itself",
            )

    def load(self, source: ModelDir, memory: int | None = None) -> Any:
        """float32, eval; InputError when tensors are missing or do not fit.

        `memory`: bytes that weights may take, by default half of what is free. Above it, blocks read their matrices when they run.
        """
        self.check(source)
        with weightless(torch.empty):
            model = self.build(source.config)
        streamed: tuple[str, ...] = ()
        if float32_bytes(source) > (memory_for_weights() if memory is None else memory):
            streamed = tuple(f"{name}." for loop in self.loops(source.config) for name in loop.modules)
            stream_blocks(model, source, (name.removesuffix(".") for name in streamed))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.numel() or not name.startswith(streamed):
                    tensor.copy_(read_float32(source, name))
        return model

    def hollow(self, source: ModelDir) -> Any:
        """float32, eval, on the meta device but for what has no weights; InputError when tensors are missing or do not fit."""
        self.check(source)
        with weightless(lambda shape: torch.empty(shape, device="meta")):
            return self.build(source.config)

    def fill(self, model: Any, source: ModelDir, *, within: str = "", without: tuple[str, ...] = ()) -> None:
        """New parameters, on the CPU: memory of what is no longer used can be used again."""
        for name, tensor in model.state_dict().items():
            if not name.startswith(within) or name.startswith(without):
                continue
            owner, _, last = name.rpartition(".")
            module = model.get_submodule(owner)
            if last in dict(module.named_parameters(recurse=False)):
                setattr(module, last, torch.nn.Parameter(read_float32(source, name), requires_grad=False))
            else:
                tensor.copy_(read_float32(source, name))
