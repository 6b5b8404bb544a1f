"""Small models of every family, cut up over two processes: torchrun runs `sharded_families.py FOLDER`. Prints names of those that pass."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from family_case import Case, cases, save

from vditc.calibrate.predictor import predictor_of
from vditc.calibrate.sharding import Sharding, whole
from vditc.export.adapters.registry import adapter_for
from vditc.torch_device import exact_float32

CPU = torch.device("cpu")


def check(case: Case, folder: Path) -> None:
    """AssertionError where the prediction or a gradient of a linear's weight is another one than the whole model's."""
    source = save(case, folder)
    adapter, random, found = adapter_for(source), np.random.default_rng(0), []
    feeds = {s.name: torch.from_numpy(s.example(case.shapes[0], random)) for s in adapter.inputs(source)}
    layers = [layer for layer in adapter.layer_roles(source) if len(source.weights[f"{layer}.weight"].shape) == 2]
    for sharding in (None, Sharding()):
        linears: dict[str, torch.nn.Linear] = {}

        def freed(layer: str, linear: torch.nn.Linear, linears: dict[str, torch.nn.Linear] = linears) -> torch.nn.Linear:
            linears[layer] = linear
            linear.weight.requires_grad_()
            return linear

        with exact_float32():
            still = predictor_of(adapter, source, CPU, sharding)(feeds)
        said = predictor_of(adapter, source, CPU, sharding, layers, freed)(feeds)
        said.square().mean().backward()
        gradients = {layer: whole(linear.weight.grad) for layer, linear in linears.items() if linear.weight.grad is not None}
        found.append((still, said.detach(), gradients))
    (still, said, gradients), (still_cut, said_cut, gradients_cut) = found
    assert torch.equal(still, still_cut) and torch.equal(said, said_cut), case
    assert gradients.keys() == gradients_cut.keys(), case
    for layer, gradient in gradients.items():
        assert (gradient - gradients_cut[layer]).norm() <= 1e-6 * gradient.norm(), (case, layer)  # at most 2e-7 was seen


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for case in cases():
        if case.first:
            check(case, Path(sys.argv[1]) / f"{dist.get_rank()}" / case.name)
            if dist.get_rank() == 0:
                print(case, flush=True)
    dist.destroy_process_group()
