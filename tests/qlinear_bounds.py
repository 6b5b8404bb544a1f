"""Every kernel of QLinear over tensors that end where they say, for -fsanitize=address: python qlinear_bounds.py LIBRARY.

A read or a write outside of a tensor, or of shared memory, ends the process with the sanitizer's report.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import qlinear_layers
from qlinear_layers import Array, accumulated, exact_sums, layer

from vditc.plugins.library import Library
from vditc.plugins.qlinear import kernels
from vditc.plugins.qlinear.kernels import Tactic
from vditc.plugins.qlinear.op import QLinear

# Tails on all sides, rows that are not aligned, and exact tiles.
SHAPES = ((130, 97, 672), (70, 33, 104), (65, 40, 50), (3, 5, 3), (128, 128, 128))


def exactly(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros in a piece of the heap that has no byte more, at a multiple of 16. It is never freed."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    address = ctypes.c_void_p()
    assert ctypes.CDLL(None).posix_memalign(ctypes.byref(address), ctypes.c_size_t(16), ctypes.c_size_t(max(size, 1))) == 0
    assert address.value
    made = np.frombuffer((ctypes.c_char * size).from_address(address.value), dtype).reshape(shape)
    made.view(np.uint8)[...] = 0
    return made


def run(library: Library) -> int:
    """How many launches there were."""
    launches = 0
    for m, n, k in SHAPES:
        for bits, unsigned in ((8, False), (4, False), (4, True), (3, False)):
            for packed, group, low_rank in ((False, 0, 0), (True, 0, 16), (False, 128, 48)):
                if (packed and k % 32) or (group and k % group):
                    continue
                op = QLinear(
                    n=n,
                    k=k,
                    bits=bits,
                    unsigned=unsigned,
                    activation_bits=4,
                    packed=packed,
                    group=group,
                    low_rank=low_rank,
                    rank=2,
                    bias=True,
                    activation="gelu",
                    gated=True,
                    output=("fp16", "fp32", "bf16")[launches % 3],
                )
                made = layer(op, m, launches, gate_rows=(7, 3), residual_rows=(1, m))
                tactics = [Tactic.UNPACK_128, Tactic.UNPACK_64]
                if not group:
                    tactics += [Tactic.CARRIER, *[Tactic.INT4] * (bits == 4)]
                for tactic in tactics:
                    qlinear_layers.computed(made, tactic)
                    if not group:
                        np.testing.assert_array_equal(accumulated(made, tactic), exact_sums(made))
                    launches += 1
                kernels.expand(library, made.problem, made.tensors["weight"], exactly((n, k), np.int8))
    return launches


if __name__ == "__main__":
    loaded = Library(Path(sys.argv[1]))
    qlinear_layers.library = lambda: loaded  # type: ignore[assignment]
    qlinear_layers.aligned = exactly  # type: ignore[attr-defined]
    print(f"{run(loaded)} launches")
