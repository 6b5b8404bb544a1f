"""What INT8 scores cost in quality: attention's output beside exact attention, by how scales are shared and whether k is smoothed.

    python benchmarks/quantized_attention.py --out docs/measurements/quantized_attention.json

Relative L2 error of one head's output, float64 attention on the same 16-bit inputs being exact. `random`: q, k and v are normal. `peaked`:
q is four times as large, so that few keys weigh much. `channels`: one channel in 16 of k is eight times as large. `offsets`: one channel in
16 of k is 20 more in all keys, the form that SageAttention (arXiv 2410.02367, section 4.2) found outliers of k to have. `kernel`: the
plugin library's kernel with smoothed k, in the emulator for the CPU; the others in float32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from vditc.attention import AttentionScheme
from vditc.calibrate.quantized_attention import quantized_attention
from vditc.numerics import QType, short
from vditc.plugins.emulated import emulated_library
from vditc.plugins.library import Library
from vditc.plugins.qattention.kernels import qattention
from vditc.plugins.qattention.op import QAttention

Array = npt.NDArray[Any]
WIDTHS, QUERIES, KEYS = (64, 128), 128, 4096
BLOCKS = (1, 64, 128)
KINDS = ("random", "peaked", "channels", "offsets")
TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def inputs(kind: str, width: int) -> list[Array]:
    """q, k and v, float32."""
    rng = np.random.default_rng(width)
    q, k, v = (rng.standard_normal((1, 1, n, width)).astype(np.float32) for n in (QUERIES, KEYS, KEYS))
    odd = rng.permutation(width) < width // 16
    if kind == "peaked":
        q *= 4
    if kind == "channels":
        k[..., odd] *= 8
    if kind == "offsets":
        k[..., odd] += 20
    return [q, k, v]


def exact(q: Array, k: Array, v: Array) -> Array:
    """Attention in float64."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v)


def measure(kind: str, width: int, library: Library) -> list[dict[str, Any]]:
    """Errors of every way."""
    rows = []

    def row(way: str, dtype: str, found: Array, wanted: Array) -> None:
        error = float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))
        rows.append({"inputs": kind, "width": width, "type": dtype, "way": way, "error": short(error)})

    for dtype, made in TYPES.items():
        given = [a.astype(made) for a in inputs(kind, width)]
        wanted = exact(*given)
        q, k, v = (torch.from_numpy(a.astype(np.float32)) for a in given)
        for smooth in (False, True):
            for block in BLOCKS if dtype == "fp16" else ():
                scheme = AttentionScheme(qk=QType.INT8, smooth_k=smooth, block_size=block)
                found = quantized_attention(q, k, v, scheme).numpy()
                row(f"a scale per {'token' if block == 1 else f'{block} tokens'}{', smoothed' if smooth else ''}", dtype, found, wanted)
        row("kernel", dtype, qattention(library, QAttention(scale=float(np.float32(width**-0.5))), *given), wanted)
    return rows


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, help="a file for the rows; they are printed anyhow")
    args = ask.parse_args()
    library = Library(emulated_library())
    rows = [row for kind in KINDS for width in WIDTHS for row in measure(kind, width, library)]
    for row in rows:
        print(json.dumps(row))
    if args.out:
        data = {"command": "python benchmarks/quantized_attention.py --out FILE", "queries": QUERIES, "keys": KEYS, "rows": rows}
        args.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
