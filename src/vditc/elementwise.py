"""Weighted sums of large float32 arrays, block by block on all cores: each array is read from memory once."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.threads import cores

Array = npt.NDArray[Any]
BLOCK = 1 << 16  # numbers: a few blocks stay in a core's cache, and calls of numpy cost little beside them


@dataclasses.dataclass(frozen=True)
class Weighted:
    """The sum of weights[i] * terms[i]; terms are [n] and of one length, those beyond the weights are left out."""

    weights: tuple[float, ...]
    terms: tuple[Array, ...]


def combine(out: Array, total: Weighted, scratch: Array) -> None:
    """`out` [n] = the sum, each product and each sum rounded to float32, in order. `out` may be the first term; scratch [>= n]."""
    scratch, so_far = scratch[: len(out)], None
    for weight, term in zip(total.weights, total.terms, strict=False):
        if weight == 0.0:
            continue
        if so_far is None:  # a first term of weight 1 needs no product, and no place of its own
            so_far = term if weight == 1.0 else np.multiply(term, np.float32(weight), out=out)
        else:
            product = term if weight == 1.0 else np.multiply(term, np.float32(weight), out=scratch)
            so_far = np.add(so_far, product, out=out)
    if so_far is None:
        out[...] = 0
    elif so_far is not out:
        np.copyto(out, so_far)


def in_blocks(size: int, task: Callable[[slice, Array], None]) -> None:
    """Call `task(slice, scratch [BLOCK or more])` for all of `size` numbers, on all cores where there are two blocks for each."""
    workers = min(cores(), size // (2 * BLOCK))

    def run(first: int) -> None:
        scratch = _scratch()
        for begin in range(first * BLOCK, size, max(workers, 1) * BLOCK):
            task(slice(begin, min(begin + BLOCK, size)), scratch)

    others = [_pool().submit(run, first) for first in range(1, workers)]
    try:
        run(0)
    finally:
        wait(others)  # before an error leaves: they write to arrays of the caller
    for other in others:
        other.result()


def guide_block(out: Array, with_text: Array, without: Array, scale: float) -> Array:
    """`out` = without + scale * (with_text - without), float32 [n]; `out` is none of the others."""
    np.subtract(with_text, without, out=out)
    np.multiply(out, np.float32(scale), out=out)
    return np.add(without, out, out=out)


def guide(out: Array, with_text: Array, without: Array, scale: float) -> Array:
    """The same of contiguous arrays of one shape, of which `out` may be one."""
    flat, a, b = (array.reshape(-1) for array in (out, with_text, without))

    def block(at: slice, scratch: Array) -> None:
        flat[at] = guide_block(scratch[: len(a[at])], a[at], b[at], scale)

    in_blocks(flat.size, block)
    return out


def _scratch() -> Array:
    """This thread's, kept: fresh memory would be given out page by page."""
    if not hasattr(_local, "scratch"):
        _local.scratch = np.empty(BLOCK, np.float32)
    found: Array = _local.scratch
    return found


_local = threading.local()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay behind in the parent
