"""What tracing refuses, on models of one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from vditc.adapter import InputSpec, Loop
from vditc.errors import InputError, VditcError
from vditc.export.adapters.wan import Wan
from vditc.export.trace import trace
from vditc.model_dir import ModelDir


class OneLine(Wan):
    """`line(x, table, parameter)` of the latents [batch, 4, frames, height, width], a buffer of 12 numbers and a parameter of 3."""

    def __init__(self, line: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.line = line

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        return super().inputs(source)[:1]

    def loops(self, config: Mapping[str, Any]) -> tuple[Loop, ...]:
        return ()

    def build(self, config: Mapping[str, Any]) -> Any:
        model = torch.nn.Module()
        model.register_buffer("table", torch.arange(12.0))
        model.register_parameter("parameter", torch.nn.Parameter(torch.ones(3)))
        return model

    def patched(self, model: Any) -> Any:
        return torch.no_grad()

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        return self.line(feeds["hidden_states"], model.table, model.parameter)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            lambda x, table, parameter: x + table,
            r"found Constraints violated .*; wanted code that torch.export can trace at axes of any size; let the adapter",
        ),
        (
            lambda x, table, parameter: x if x.sum() > 0 else -x,
            r"at .*test_trace\.py:\d+, traced at .*found Could not guard on data-dependent expression .*; wanted code that torch.export",
        ),
        (lambda x, table, parameter: x * np.sqrt(x.shape[2]), r"at .*test_trace\.py:\d+, traced at .*found .*; wanted code that"),
        (
            lambda x, table, parameter: x[..., :2],
            r"found velocity \[3, 4, 5, 12, 2\]; wanted batch and sizes \[3, 5, 12, 4\] at a second shape",
        ),
    ],
    ids=["table of the traced width", "branch on a value", "code that wants a number", "output of a fixed width"],
)
def test_a_fixed_size_is_an_error(tiny: ModelDir, line: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace(tiny, OneLine(line))


def test_a_tensor_without_a_value_is_an_error(tiny: ModelDir) -> None:
    with pytest.raises(VditcError, match="1 tensors without values, first parameter; wanted every tensor in the checkpoint or computed"):
        trace(tiny, OneLine(lambda x, table, parameter: x * parameter[0]))
