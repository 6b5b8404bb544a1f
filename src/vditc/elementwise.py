"""Weighted sums of large float32 arrays, block by block on all cores: each array is read from memory once."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.threads import cores

Array = npt.NDArray[Any]
BLOCK = 1 << 15  # numbers: a few blocks stay in a core's cache


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
    """Call `task(slice, scratch [BLOCK])` for all of `size` numbers, on all cores where there is more than one block for each."""
    workers = min(cores(), size // (2 * BLOCK))

    def run(first: int) -> None:
        scratch = np.empty(BLOCK, np.float32)
        for begin in range(first * BLOCK, size, max(workers, 1) * BLOCK):
            task(slice(begin, min(begin + BLOCK, size)), scratch)

    if workers < 2:
        run(0)
        return
    for _ in _pool().map(run, range(workers)):
        pass


def guide(out: Array, with_text: Array, without: Array, scale: float) -> Array:
    """`out` = without + scale * (with_text - without), float32; the arrays are contiguous and of one shape, `out` may be one of them."""
    flat, a, b = (array.reshape(-1) for array in (out, with_text, without))

    def block(at: slice, scratch: Array) -> None:
        difference = np.subtract(a[at], b[at], out=scratch[: len(a[at])])
        np.multiply(difference, np.float32(scale), out=difference)
        np.add(b[at], difference, out=flat[at])

    in_blocks(flat.size, block)
    return out


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay behind in the parent
