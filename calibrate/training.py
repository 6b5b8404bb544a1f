"""Training of a whole model whose quantized linears learn: on one process, or on several under `torchrun` or `accelerate launch`.

Accelerate places the model and adds gradients up where every process holds the whole model (data parallel); one that is cut up
(`vditc.calibrate.sharding`) does both itself. Every iteration's batch depends on the seed and the iteration alone, so that a run that was
killed goes on from its checkpoint with the same numbers. Checkpoints are safetensors: learnt parameters and AdamW's moments, whole or not
at all, the same file however many processes wrote it; no pickle is written or read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, DistributedType

from vditc.calibrate.sharding import like, on_own_gpu, put, sharded, unasked, whole
from vditc.errors import InputError, VditcError
from vditc.progress import Progress
from vditc.safetensors_file import read_header
from vditc.safetensors_writer import tensor_file

CHECKPOINT_SECONDS = 120.0  # between two checkpoints
PRECISIONS = ("no", "bf16")
KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one process computes in one iteration."""

    feeds: Mapping[str, torch.Tensor]  # of the model
    target: torch.Tensor  # [B, C, F, H, W], what the full-precision model says
    steps: torch.Tensor  # int64 [B], index in the schedule


@dataclasses.dataclass(kw_only=True)
class Now:
    """What the linears want to know of the forward pass that runs. One object, shared by all of them."""

    steps: torch.Tensor  # int64 [B]

    def of_rows(self, table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Entries of a table [steps] for the rows of x [rows, ..., K], which are clips, or clips times frames or tokens: [rows, 1...]."""
        if x.ndim < 3 or x.shape[0] % len(self.steps):
            raise InputError(
                found=f"a layer that reads {list(x.shape)} for {len(self.steps)} clips",
                wanted="clips as the first axis: this family runs one clip after the other",
                where="training with a clip for every step",
                fix="use a method that needs no table of steps, as qvdit",
            )
        picked = table[self.steps].repeat_interleave(x.shape[0] // len(self.steps))
        return picked.reshape(-1, *(1,) * (x.ndim - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast."""

    iterations: int
    batch_size: int  # over all processes
    groups: Sequence[tuple[Sequence[torch.nn.Parameter], float]]  # parameters and their greatest learning rate
    run: str  # digest of all that the result depends on
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_norm: float | None = None
    precision: str = "no"

    def rate(self, iteration: int) -> float:
        """Share of the greatest learning rate: linear warm-up, then a cosine to 0."""
        if iteration < self.warmup:
            return (iteration + 1) / (self.warmup + 1)
        done = (iteration - self.warmup) / max(1, self.iterations - self.warmup)
        return 0.5 + 0.5 * math.cos(math.pi * done)


Batches = Callable[[int, slice], Batch]  # iteration, which of the batch's examples -> those
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # what the student says, what the teacher says -> a number


def train(
    *,
    student: torch.nn.Module,
    now: Now,
    plan: Plan,
    batches: Batches,
    loss: Loss,
    before: Callable[[int], Sequence[torch.nn.Parameter]],
    device: torch.device,
    state: Path,
    progress: Progress,
) -> list[tuple[int, float]]:
    """Train in place; the loss of some iterations, [(iteration, mean since the one before)].

    `before(iteration)` may change the student; parameters that it returns lose AdamW's moments. Resumes from `state`.

    Raises VditcError when the loss is not finite, InputError for a batch that the processes cannot share.
    """
    with _accelerator(plan, device) as accelerator:
        share = _share(plan.batch_size, accelerator)
        fused = {"fused": True} if accelerator.device.type == "cuda" else {}
        named = [{"params": list(params), "lr": rate} for params, rate in plan.groups]
        optimizer = torch.optim.AdamW(named, betas=plan.betas, weight_decay=plan.weight_decay, eps=1e-8, **fused)
        model: torch.nn.Module
        if sharded(student):
            model, optimizer = student, accelerator.prepare(optimizer)
        else:
            model, optimizer = accelerator.prepare(student, optimizer)
        first, history = _resume(student, optimizer.optimizer, plan, state, progress)
        saved, total, count = time.monotonic(), 0.0, 0
        with progress.task("train", plan.iterations, first) as advance:
            for iteration in range(first, plan.iterations):
                for parameter in before(iteration):
                    optimizer.optimizer.state.pop(parameter, None)
                for group, (_, rate) in zip(optimizer.param_groups, plan.groups, strict=True):
                    group["lr"] = rate * plan.rate(iteration)
                batch = batches(iteration, share)
                now.steps = batch.steps.to(accelerator.device)
                with accelerator.autocast():
                    said = model({n: t.to(accelerator.device) for n, t in batch.feeds.items()})
                value = loss(said.float(), batch.target.to(accelerator.device))
                if not torch.isfinite(value):
                    raise VditcError(
                        found=f"a loss of {float(value)}",
                        wanted="a finite one",
                        where=f"training, iteration {iteration}",
                        fix="lower the learning rates in [settings]; delete the work folder to begin anew",
                    )
                accelerator.backward(value)
                if iteration == first:
                    _check_gradients(student, plan)
                if plan.max_norm is not None:
                    accelerator.clip_grad_norm_([p for params, _ in plan.groups for p in params], plan.max_norm)
                optimizer.step()
                optimizer.zero_grad()
                total, count = total + float(accelerator.reduce(value.detach(), "mean")), count + 1
                if (iteration + 1) % max(1, plan.iterations // 50) == 0 or iteration + 1 == plan.iterations:
                    history.append((iteration + 1, total / count))
                    total, count = 0.0, 0
                    # At these iterations only, so that a resumed run has the same history. The first process's clock counts.
                    due = accelerator.is_main_process and time.monotonic() - saved > CHECKPOINT_SECONDS
                    if float(accelerator.reduce(torch.tensor(float(due), device=accelerator.device), "sum")):
                        _save(student, optimizer.optimizer, plan, state, iteration + 1, history, accelerator)
                        saved = time.monotonic()
                advance()
        _save(student, optimizer.optimizer, plan, state, plan.iterations, history, accelerator)
    return history


@contextlib.contextmanager
def _accelerator(plan: Plan, device: torch.device) -> Iterator[Accelerator]:
    AcceleratorState._reset_state(True)  # of an earlier training in this process: another precision, another group of processes
    on_own_gpu(device)
    with unasked():
        accelerator = Accelerator(mixed_precision=plan.precision, cpu=device.type == "cpu")
    if accelerator.distributed_type not in KNOWN:
        raise InputError(
            found=f"{accelerator.distributed_type.value}",
            wanted="processes on CPUs or on NVIDIA's GPUs",
            where="accelerate's configuration",
            fix="start with torchrun, or accelerate launch --multi_gpu or --use_fsdp --fsdp_version 2",
        )
    try:
        yield accelerator
    finally:
        accelerator.free_memory()


def _check_gradients(student: torch.nn.Module, plan: Plan) -> None:
    """InputError for layers whose result nothing reads: they would stay as they are, and no optimizer knows them."""
    wanted = {id(p) for params, _ in plan.groups for p in params}
    idle = sorted({name.rpartition(".")[0] for name, p in student.named_parameters() if id(p) in wanted and p.grad is None})
    if idle:
        raise InputError(
            found=f"{len(idle)} layers that the prediction does not depend on, first {idle[0]}",
            wanted="layers that learn",
            where="training",
            fix="give these layers a rule with keep",
        )


def _share(batch_size: int, accelerator: Accelerator) -> slice:
    world, rank = accelerator.num_processes, accelerator.process_index
    if batch_size % world:
        raise InputError(
            found=f"a batch of {batch_size} on {world} processes",
            wanted="a multiple",
            where="[settings] batch_size",
            fix="change batch_size or the number of processes",
        )
    own = batch_size // world
    return slice(rank * own, (rank + 1) * own)


def _learnt(student: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in student.named_parameters() if p.requires_grad}


def _save(
    student: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    state: Path,
    iteration: int,
    history: list[tuple[int, float]],
    accelerator: Accelerator,
) -> None:
    """Every process takes part; the first one writes, a tensor at a time, whole ones even where each process holds parts."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in _learnt(student).items():
        tensors[f"value/{name}"] = parameter
        tensors |= {f"{part}/{name}": moment for part, moment in optimizer.state.get(parameter, {}).items()}
    about = {"run": plan.run, "iteration": iteration, "history": history}
    shapes = {name: (np.dtype(np.float32), tuple(tensor.shape)) for name, tensor in tensors.items()}
    with contextlib.ExitStack() as stack:
        first = accelerator.is_main_process
        put_in_file = stack.enter_context(tensor_file(state, shapes, {"vditc": json.dumps(about)})) if first else None
        for name, tensor in tensors.items():
            value = whole(tensor)
            if put_in_file is not None:
                put_in_file(name, value.float().cpu().numpy())
    accelerator.wait_for_everyone()


def _resume(
    student: torch.nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, state: Path, progress: Progress
) -> tuple[int, list[tuple[int, float]]]:
    """Iterations that are done, and their losses. Written by however many processes, whole or cut up."""
    if not state.exists():
        return 0, []
    learnt = _learnt(student)
    try:
        entries, metadata = read_header(state)
        about = json.loads(metadata["vditc"])
        if about["run"] != plan.run:
            progress.note(f"{state} is of another model, recipe or set of clips: training starts anew")
            return 0, []
        iteration, history = int(about["iteration"]), [(int(i), float(v)) for i, v in about["history"]]
        if wrong := [name for name, p in learnt.items() if entries[f"value/{name}"].shape != tuple(p.shape)]:
            raise ValueError(f"{wrong[0]} has another shape")
        if unknown := {name.partition("/")[2] for name in entries} - set(learnt):
            raise ValueError(f"nothing is called {min(unknown)}")
    except (InputError, KeyError, ValueError, TypeError) as error:
        progress.note(f"{state} cannot be read ({error}): training starts anew")
        return 0, []

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(entries[name].read()))

    for name, parameter in learnt.items():
        put(parameter, read(f"value/{name}"))
    moments: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
    for entry in entries:
        part, _, name = entry.partition("/")
        if part != "value":
            value, parameter = read(entry), learnt[name]
            moments.setdefault(parameter, {})[part] = like(value, parameter) if value.shape == parameter.shape else value
    numbered = enumerate(p for group in optimizer.param_groups for p in group["params"])
    found = {number: moments[parameter] for number, parameter in numbered if parameter in moments}
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
    progress.note(f"{state} holds {iteration} of {plan.iterations} iterations: training goes on from there")
    return iteration, history
