"""A model cut up over processes (FSDP2): each holds its part of every parameter, and all of one block's while that block runs.

Zhao et al., "PyTorch FSDP" (arXiv 2304.11277), in its second form, `torch.distributed.fsdp.fully_shard`. It is asked for where processes
are started, by `accelerate launch --use_fsdp --fsdp_version 2`: a recipe says what is computed, not where. Accelerate hands its wish on in
the environment, and is not shown it again, because it cuts nothing up on CPUs (it takes whole models there, without a word), and under
bf16 it would round weights before they are quantized.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vditc.errors import InputError

_ASKED = "ACCELERATE_USE_FSDP"
_OTHERS = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "PARALLELISM_CONFIG": "a parallelism of more than one kind"}
# What accelerate may hand on of FSDP, what of it this training cannot follow, and what to do instead.
_REFUSED = (
    ("FSDP_OFFLOAD_PARAMS", "true", "use more processes, or checkpointing = true in [settings]"),
    ("FSDP_ACTIVATION_CHECKPOINTING", "true", "use checkpointing = true in [settings], which does the same"),
    ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "leave the policy out: the model's blocks are what is gathered at a time"),
)


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How models are cut up, over all processes of torch.distributed's default group."""

    reshard: bool = True  # whether a block's parameters are gathered again for its gradients, or kept from the forward pass on

    def cut(self, module: torch.nn.Module, device: torch.device) -> None:
        """Leave this process its part of what no module inside has cut up yet; all call this. What learns is made rank 0's first.

        Parameters are DTensors then, but for those of the module that runs. Scalars cannot be cut: those that do not learn stay.
        """
        on_own_gpu(device)
        for parameter in module.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                dist.broadcast(parameter.detach(), 0)
        scalars = {p for p in module.parameters() if p.ndim == 0 and not p.requires_grad}
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        fully_shard(module, mesh=mesh, reshard_after_forward=self.reshard, ignored_params=scalars)


def asked(environment: Mapping[str, str] = os.environ) -> Sharding | None:
    """What `accelerate launch` was told; None where every process holds the whole model.

    InputError for ways of training that there are not.
    """
    for name, kind in _OTHERS.items():
        if _true(environment, f"ACCELERATE_USE_{name}"):
            raise _refused(kind, "start with torchrun, or accelerate launch --multi_gpu or --use_fsdp --fsdp_version 2")
    if not _true(environment, _ASKED):
        return None
    if (version := environment.get("FSDP_VERSION", "1")) != "2":
        raise _refused(f"FSDP version {version}", "start with accelerate launch --use_fsdp --fsdp_version 2")
    for name, value, fix in _REFUSED:
        if environment.get(name, "").lower() == value.lower():
            raise _refused(f"{name.lower()} = {value}", fix)
    if environment.get("FSDP_IGNORED_MODULES"):
        raise _refused("fsdp_ignored_modules", "leave it out")
    return Sharding(environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false")


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Accelerate does not see inside that it was told to cut models up."""
    told = os.environ.pop(_ASKED, None)
    try:
        yield
    finally:
        if told is not None:
            os.environ[_ASKED] = told


def on_own_gpu(device: torch.device) -> None:
    """What computes on the current GPU, as collectives do, is to mean this one."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def sharded(module: torch.nn.Module) -> bool:
    """Whether it is cut up."""
    return isinstance(module, FSDPModule)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter itself, without gradients; of one that is cut up, a copy of all of it. All processes call this, in one order."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor of the parameter's shape, cut up as it is, if it is: all processes call this, and rank 0's values count."""
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else value


def put(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Set all of a parameter, as `like` does."""
    with torch.no_grad():
        parameter.copy_(like(value, parameter))


def _true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1")


def _refused(found: str, fix: str) -> InputError:
    return InputError(
        found=found,
        wanted="data parallel processes, each with the whole model, or FSDP version 2",
        where="accelerate's configuration",
        fix=fix,
    )
