"""Where PyTorch computes, and how exactly: for every stage that runs a model. Only this root module and torch_transform import torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from vditc.errors import InputError


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inference without gradients, in whole float32 (cuDNN would convolve in TF32) and the same way each time."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def torch_device(name: str) -> torch.device:
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`; InputError for another name or a GPU that is not there."""
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None or (name != "cpu" and int(match[1] or 0) >= gpus):
        raise InputError(
            found=f"device {name!r}",
            wanted=f"auto, cpu or cuda[:N]; PyTorch sees {gpus} GPU{'' if gpus == 1 else 's'}",
            where="--device",
            fix="choose a device that is there",
        )
    return torch.device(name)
