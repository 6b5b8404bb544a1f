"""A small student that two processes train, whole or cut up: torchrun runs `sharded_training.py FOLDER`, tests import `learn`.

Its sizes are odd, so that parts of processes differ, and its table of clips has one entry, of which the second process has none.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from vditc.calibrate import training
from vditc.calibrate.methods.qvgen import BranchedLinear
from vditc.calibrate.rank_decay import RankDecay
from vditc.calibrate.sharding import Sharding, whole
from vditc.calibrate.training import Batch, Now, Plan, train
from vditc.calibration import LayerCalibration
from vditc.numerics import Granularity, QType
from vditc.progress import SILENT
from vditc.scheme import QuantSpec, Scheme, quantize_weight

ITERATIONS, STOP = 12, 7
DECAY = RankDecay(4, ITERATIONS)  # stages begin at 3, 6 and 9
CPU = torch.device("cpu")
SCHEME = Scheme(
    weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL, symmetric=False),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
)


class Toy(torch.nn.Module):
    """7 -> 5 -> 7 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.now, random = Now(steps=torch.zeros(1, dtype=torch.int64)), torch.Generator().manual_seed(0)
        self.blocks = torch.nn.ModuleList()
        for n, k in ((5, 7), (7, 5)):
            weight = torch.randn(n, k, generator=random)
            start = LayerCalibration(role="ffn.in", scheme=SCHEME, weight=quantize_weight(weight.numpy(), SCHEME.weight))
            linear = BranchedLinear(start, weight, torch.zeros(n), self.now)
            linear.free(DECAY, 1)
            self.blocks.append(linear)
        self.still = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.scalar = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """x [B, T, 7] -> [B, T, 7]"""
        said: torch.Tensor = self.blocks[1](torch.nn.functional.gelu(self.blocks[0](feeds["x"]))) * self.still.sum() * self.scalar
        return said


def batches(iteration: int, share: slice) -> Batch:
    x = torch.from_numpy(np.random.default_rng(iteration).standard_normal((4, 6, 7)).astype(np.float32))[share]
    return Batch({"x": x}, x.roll(1, -1).abs(), torch.zeros(len(x), dtype=torch.int64))


def learn(state: Path, *, cut: bool, stop: int | None = None, max_norm: float | None = None, progress: Any = SILENT) -> dict[str, Any]:
    """The end of a training: whole parameters and results by name, losses, and how many bytes of values and moments lay here."""
    student, held = Toy(), 0
    linears: Any = list(student.blocks)
    if dist.is_initialized() and dist.get_rank():
        with torch.no_grad():  # as a decomposition on another machine might differ: what the first process has counts
            for parameter in student.parameters():
                parameter.add_(1.0 if parameter.requires_grad else 0.0)
    if cut:
        for module in (*linears, student):
            Sharding().cut(module, CPU)

    def before(iteration: int) -> list[torch.nn.Parameter]:
        nonlocal held
        if iteration == stop:
            raise KeyboardInterrupt
        if iteration == ITERATIONS - 1:
            held = sum(_bytes(p) for p in student.parameters() if p.ndim)
            # Of their types: what a weak proxy stands for may be gone.
            optimizers = [found for found in gc.get_objects() if issubclass(type(found), torch.optim.AdamW)]
            held += sum(_bytes(t) for optimizer in optimizers for parts in optimizer.state.values() for t in parts.values())
        return [p for linear in linears for p in linear.fade(DECAY, iteration)]

    chosen = [p for p in student.parameters() if p.requires_grad]
    history = train(
        student=student,
        now=student.now,
        plan=Plan(iterations=ITERATIONS, batch_size=4, groups=((chosen, 1e-2),), run="toy", max_norm=max_norm),
        batches=batches,
        loss=torch.nn.functional.mse_loss,
        before=before,
        device=CPU,
        state=state,
        progress=progress,
    )
    before(ITERATIONS)
    values = {name: whole(p).tolist() for name, p in student.named_parameters()}
    codes = [linear.result().weight.read().codes.tolist() for linear in linears]
    return {"values": values, "codes": codes, "losses": [loss for _, loss in history], "bytes": held}


def _bytes(tensor: torch.Tensor) -> int:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.numel() * own.element_size() if tensor.ndim else 0


def killed(state: Path, *, cut: bool) -> None:
    """A training that leaves its checkpoint of `STOP` iterations."""
    training.CHECKPOINT_SECONDS = -1.0
    try:
        learn(state, cut=cut, stop=STOP)
    except KeyboardInterrupt:
        training.CHECKPOINT_SECONDS = 120.0


def main(folder: Path) -> None:
    """Everything that the tests compare, by name, in one file for each process."""
    dist.init_process_group("gloo")
    found = {}
    for name, cut in (("whole", False), ("cut", True)):
        found[name] = learn(folder / f"{name}.end", cut=cut)
        found[f"{name}, clipped"] = learn(folder / f"{name}-clipped.end", cut=cut, max_norm=1e-2)
        killed(folder / f"{name}.stopped", cut=cut)
    for name, cut in (("whole", True), ("cut", False), ("cut", True)):
        state = folder / f"{name}-{cut}.again"
        if dist.get_rank() == 0:
            state.write_bytes((folder / f"{name}.stopped").read_bytes())
        dist.barrier()
        found[f"{name}, then {'cut' if cut else 'whole'}"] = learn(state, cut=cut)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
