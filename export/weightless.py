"""Torch modules without weights: a module of any size is built in no time and no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

Make = Callable[[torch.Size], torch.Tensor]


@contextmanager
def weightless(make: Make) -> Iterator[None]:
    """Parameters of modules built inside come from `make(shape)` and are not initialised; buffers are as the module computes them.

    torch.empty reserves address space and touches no memory, so what a constructor makes before it registers it costs nothing.
    """

    def register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and id(parameter) not in made:  # one that another module has already is shared
            parameter = torch.nn.Parameter(make(parameter.shape), requires_grad=False)
            made[id(parameter)] = parameter
        plain(module, name, parameter)

    def untouched(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor

    made: dict[int, torch.nn.Parameter] = {}
    plain = torch.nn.Module.register_parameter
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.nn.Module, "register_parameter", register))
        for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"):
            stack.enter_context(patch.object(torch.nn.init, name, untouched))
        yield
