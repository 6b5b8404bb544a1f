"""The model that learns: an adapter's module whose quantized linears were replaced by ones that fake their quantization."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch.nn.functional import linear

from vditc.calibrate.methods.base import Quantized, TrainingJob
from vditc.calibrate.predictor import Predictor, predictor_of
from vditc.calibrate.ranks import Ranks
from vditc.calibrate.training import Now
from vditc.calibration import LayerCalibration
from vditc.errors import InputError
from vditc.torch_transform import InputTransform


class TrainedLinear(torch.nn.Module, abc.ABC):
    """One quantized linear that learns. Its weight [N, K] is that behind the transforms; only what a method frees has gradients."""

    def __init__(self, start: LayerCalibration, weight: torch.Tensor, bias: torch.Tensor | None, now: Now) -> None:
        """`start`: transform and grid to begin with; `weight` and `bias`: the full-precision layer's."""
        super().__init__()
        self.scheme, self.start, self.now = start.scheme, start, now
        self.inputs = InputTransform(start.transform)
        whole, output = weight.detach().float().numpy(), start.output
        changed = start.transform.weight(whole if output is None else output.weight(whole))
        self.weight = torch.nn.Parameter(torch.from_numpy(np.array(changed, np.float32, order="C")), requires_grad=False)
        own = None if bias is None else bias.detach().clone().float()
        if own is not None and output is not None:
            own = torch.from_numpy(output.bias(own.numpy()))
        self.bias = None if own is None else torch.nn.Parameter(own, requires_grad=False)
        grid = start.weight.read()
        self.scale = torch.nn.Parameter(torch.from_numpy(grid.scale.astype(np.float32)), requires_grad=False)
        zero = None if grid.zero_point is None else torch.from_numpy(np.array(grid.zero_point))
        self.zero_point = None if zero is None else torch.nn.Parameter(zero, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N]."""
        with torch.autocast(x.device.type, enabled=False):  # codes are those of float32
            x = self.quantized_input(self.inputs(x.float()))
        return self.corrected(linear(x, self.quantized_weight(), self.bias), x)

    @abc.abstractmethod
    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """The transformed input through its codes."""

    @abc.abstractmethod
    def quantized_weight(self) -> torch.Tensor:
        """[N, K], what the product is computed with."""

    def corrected(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The output, with what the method adds; x is the quantized input."""
        return y

    @abc.abstractmethod
    def result(self) -> Quantized:
        """What the calibration file takes. All processes call this, layer by layer: a layer that is cut up is gathered."""


L = TypeVar("L", bound=TrainedLinear)


def student_of(job: TrainingJob, make: Callable[[str, torch.nn.Linear], L], *, checkpointing: bool) -> tuple[Predictor, dict[str, L]]:
    """The model on the job's device with `make(layer, linear)` in place of every quantized linear, and those; nothing else has gradients.

    It is cut up if the job says so. `checkpointing` computes each block's activations again for its gradients (Chen et al., arXiv
    1604.06174). InputError when the model's class has no such thing.
    """
    linears: dict[str, L] = {}

    def keep(layer: str, linear: torch.nn.Linear) -> L:
        linears[layer] = make(layer, linear)
        return linears[layer]

    if job.sharding is not None:
        job.progress.note(f"each of {job.ranks.size} processes holds its part of the model (FSDP)")
    student = predictor_of(job.sampled.adapter, job.sampled.source, job.device, job.sharding, job.start, keep)
    if checkpointing:
        if not getattr(student.model, "_supports_gradient_checkpointing", False):
            raise InputError(
                found=f"{job.sampled.source.model_class}, which cannot compute its activations again",
                wanted="checkpointing = false",
                where="[settings]",
                fix="train without it, with a smaller batch_size if memory is short",
            )
        student.model.enable_gradient_checkpointing()
    return student, linears


def results(linears: Mapping[str, TrainedLinear], ranks: Ranks) -> dict[str, Quantized]:
    """What the calibration file takes, on rank 0; nothing elsewhere. All ranks call this."""
    found = {}
    for layer, trained in linears.items():
        result = trained.result()
        if ranks.first:
            found[layer] = result._replace(output=trained.start.output)
    return found
