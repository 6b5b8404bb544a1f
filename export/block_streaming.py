"""A module larger than memory: only one block's weights are there at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psutil
import torch

from vditc.model_dir import ModelDir


def float32_bytes(source: ModelDir) -> int:
    """What the model takes as a float32 module."""
    return 4 * source.weight_count


def memory_for_weights() -> int:
    """Half of the memory that is available, bytes: the rest is for activations."""
    return int(psutil.virtual_memory().available) // 2


def read_float32(source: ModelDir, name: str) -> torch.Tensor:
    """A tensor of the checkpoint, float32."""
    return torch.from_numpy(source.weights[name].read().astype("float32"))


def stream_blocks(model: torch.nn.Module, source: ModelDir, lists: Iterable[str]) -> None:
    """Let each block in `lists` (names of module lists) read its matrices before it runs and drop them afterwards.

    Every pass reads them from the checkpoint once; results are those of the module that holds all weights. Linears may be replaced
    or hooked, and the module may be moved to another device, where the matrices then go too.
    """
    for name in lists:
        blocks = model.get_submodule(name)
        assert isinstance(blocks, torch.nn.ModuleList)
        for index, block in enumerate(blocks):
            _Streamed(block, source, f"{name}.{index}.")


class _Streamed:
    """The hooks of one block."""

    def __init__(self, block: torch.nn.Module, source: ModelDir, prefix: str) -> None:
        self.source = source
        self.matrices = {p: prefix + name for name, p in block.named_parameters() if p.ndim >= 2}
        self.drop(block)
        block.register_forward_pre_hook(self.read)
        block.register_forward_hook(self.drop, always_call=True)

    def read(self, block: torch.nn.Module, _inputs: Any = None) -> None:
        """Before the block runs: what is still part of it."""
        for parameter in block.parameters():
            if parameter in self.matrices:
                parameter.data = read_float32(self.source, self.matrices[parameter]).to(parameter.device)

    def drop(self, _block: torch.nn.Module, _inputs: Any = None, _output: Any = None) -> None:
        """After it ran."""
        for parameter in self.matrices:
            parameter.data = torch.empty(0, device=parameter.device)
