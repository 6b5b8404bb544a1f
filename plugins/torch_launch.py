"""Which library computes torch's tensors, what it wants of them, and one call of it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vditc.plugins.emulated import emulated_library
from vditc.plugins.interface import FLOATS, filled, tactics
from vditc.plugins.library import KernelError, Library

TYPES = {torch.float32: FLOATS["fp32"], torch.float16: FLOATS["fp16"], torch.bfloat16: FLOATS["bf16"]}
_ALIGNED = 16
_chosen: list[Path] = []


def use_library(path: Path) -> None:
    """Run CUDA tensors by this library from now on. InputError when it is none."""
    Library(path)
    _chosen[:] = [path]
    _real.cache_clear()


def library_of(device: torch.device) -> Library:
    """Who computes tensors of a device."""
    if device.type not in ("cuda", "cpu"):
        raise KernelError(f"tensors on {device}; wanted cuda, or cpu for the emulated library")
    return _real() if device.type == "cuda" else _emulated()


@functools.cache
def _real() -> Library:
    from vditc.plugins.build import library_here

    return Library(_chosen[0] if _chosen else library_here(int((torch.version.cuda or "13").partition(".")[0])))


@functools.cache
def _emulated() -> Library:
    return Library(emulated_library())


class Check:
    """What an operator wants of its inputs, so that no kernel reads beside a tensor."""

    def __init__(self, where: str, x: Tensor) -> None:
        self.where, self.device = where, x.device

    def tensor(self, name: str, found: Tensor, dtype: torch.dtype, shape: Sequence[int] | None = None) -> None:
        """Of this type and shape, on the device of x."""
        if found.dtype != dtype or found.device != self.device or (shape is not None and tuple(found.shape) != tuple(shape)):
            wanted = f"{dtype}{'' if shape is None else list(shape)} on {self.device}"
            raise KernelError(f"{self.where}: {name} is {found.dtype}{list(found.shape)} on {found.device}; wanted {wanted}")

    def optional(self, name: str, found: Tensor | None, dtype: torch.dtype, shape: Sequence[int] | None) -> None:
        """The same, if it is there."""
        if found is not None:
            self.tensor(name, found, dtype, shape)

    def choice(self, name: str, found: Any, wanted: Any) -> None:
        """One of `wanted`."""
        if found not in wanted:
            raise KernelError(f"{self.where}: {name} {found!r}; wanted one of {', '.join(map(str, wanted))}")

    def broadcast(self, name: str, found: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> tuple[int, int]:
        """Which row of it a row of `shape` reads: (inner, count) of `vditc_rows`."""
        self.tensor(name, found, dtype)
        own = (1,) * (len(shape) - found.ndim) + tuple(found.shape)
        spanned = [i for i, size in enumerate(own[:-1]) if size > 1]
        first, last = (spanned[0], spanned[-1]) if spanned else (0, -1)
        fits = len(own) == len(shape) and own[-1] == shape[-1] and all(size in (1, to) for size, to in zip(own, shape, strict=True))
        if not fits or any(own[i] != shape[i] for i in range(first, last + 1)):
            wanted = f"a shape that broadcasts to {list(shape)}, whose axes next to each other differ: expand it and make it contiguous"
            raise KernelError(f"{self.where}: {name} is {list(found.shape)}; wanted {wanted}")
        inner = torch.Size(shape[last + 1 : -1]).numel() if spanned else 1
        return inner, torch.Size(own[:-1]).numel()


class Launch:
    """One call: its library, device and stream; keeps copies alive until the work is on the stream."""

    def __init__(self, device: torch.device) -> None:
        self.library = library_of(device)
        self._cuda = device.type == "cuda"
        self._device = torch.cuda.device(device) if self._cuda else None
        self._kept: list[Tensor] = []

    def __enter__(self) -> Launch:
        if self._device is not None:
            self._device.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        if self._device is not None:
            self._device.__exit__(*error)

    def tensor(self, found: Tensor) -> Tensor:
        """Contiguous and aligned."""
        made = found.contiguous()
        made = made if made.data_ptr() % _ALIGNED == 0 else made.clone()
        self._kept.append(made)
        return made

    def strided(self, found: Tensor) -> Tensor:
        """Aligned, the last axis without gaps and the others' strides whole vectors of 16 bytes."""
        vector = _ALIGNED // found.element_size()
        fits = found.stride(-1) == 1 and all(s % vector == 0 for s, size in zip(found.stride()[:-1], found.shape, strict=False) if size > 1)
        return self.tensor(found) if not fits or found.data_ptr() % _ALIGNED else found

    def tensors(self, structure: type[ctypes.Structure], given: Mapping[str, Tensor | None]) -> Any:
        """The struct of addresses."""
        return filled(structure, {name: self.tensor(part).data_ptr() for name, part in given.items() if part is not None})

    def tactic(self, name: str) -> int:
        """Its number."""
        known = {said: number for number, said in tactics(self.library).items()}
        if name not in known:
            raise KernelError(f"qlinear: tactic {name!r}; wanted any, {', '.join(known)}")
        return known[name]

    def __call__(self, function: str, problem: Any, tensors: Any, *arguments: Any) -> None:
        """Enqueue it on torch's stream."""
        stream = torch.cuda.current_stream().cuda_stream if self._cuda else None
        self.library.call(function, ctypes.byref(problem), ctypes.byref(tensors), *arguments, ctypes.c_void_p(stream))
