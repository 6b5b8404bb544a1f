"""What a rotation of blocks of 256 channels costs in quality next to one of the whole width: error of a quantized layer, random numbers.

    python benchmarks/rotation_block.py [--case CASE] [--tokens N] [--seeds N] [--out FILE] [--list]

x [tokens, K] is Gaussian; a share of its channels is greater by a factor each has of its own (log-normal around `FACTOR`), and every token
has a size of its own. The weights [256, K] are Gaussian. Both are rotated behind random signs as method quarot does it; weights are rounded per
output channel, activations per token. `relative_error` is |y' - y| / |y| of the product in float64, the mean over the seeds. Cases
are widths of Wan 2.1. Each line is one row, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import options, save

from vditc.calibrate.methods.quarot import hadamard
from vditc.hadamard import rotate

CASES = {"1536": 1536, "5120": 5120, "8960": 8960, "13824": 13824}
SHARES, FACTOR = {"spread": 0.01, "few": 0.001, "clustered": 0.01}, 30.0  # clustered: outliers side by side, most of them in one block
Array = npt.NDArray[np.float32]


def inputs(rng: np.random.Generator, tokens: int, k: int, kind: str) -> Array:
    """Tokens with channels that are greater than others."""
    x = rng.standard_normal((tokens, k)) * np.exp(0.3 * rng.standard_normal((tokens, 1)))
    count = max(1, round(k * SHARES[kind]))
    at = rng.integers(k - count) + np.arange(count) if kind == "clustered" else rng.choice(k, count, replace=False)
    x[:, at] *= FACTOR * np.exp(0.5 * rng.standard_normal(count))
    return x.astype(np.float32)


def rounded(rows: Array, bits: int) -> Array:
    """Every row to codes of its own scale, and back."""
    high = (1 << bits - 1) - 1
    scale = np.abs(rows).max(-1, keepdims=True) / high
    return np.asarray(np.clip(np.rint(rows / scale), -high - 1, high) * scale, np.float32)


def measure(k: int, tokens: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Of one width."""
    for kind in SHARES:
        for bits in ((4, 8), (4, 4)):
            for block in (None, 0, 256):
                errors = []
                for seed in range(seeds):
                    rng = np.random.default_rng((seed, k))
                    x, w = inputs(rng, tokens, k, kind), rng.standard_normal((256, k)).astype(np.float32)
                    wanted = x.astype(np.float64) @ w.T.astype(np.float64)
                    if block is not None:
                        change = hadamard(seed, k, block=block)
                        assert change.balance is not None and change.rotation is not None
                        x, w = rotate(x * change.balance, change.rotation), rotate(w * change.balance, change.rotation)
                    found = rounded(x, bits[1]).astype(np.float64) @ rounded(w, bits[0]).T.astype(np.float64)
                    errors.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
                name = "none" if block is None else block or "width"
                bits_said = f"w{bits[0]}a{bits[1]}"
                yield {"k": k, "outliers": kind, "bits": bits_said, "rotation": name, "relative_error": round(float(np.mean(errors)), 4)}


def main() -> None:
    """See the module's docstring."""
    ask = options(__doc__, CASES)
    ask.add_argument("--tokens", type=int, default=256)
    ask.add_argument("--seeds", type=int, default=3)
    given = ask.parse_args()
    if given.list:
        print("\n".join(CASES))
        return
    rows = []
    for case in given.case or CASES:
        for row in measure(CASES[case], given.tokens, given.seeds):
            rows.append(row)
            print(json.dumps(row))
    save(given.out, rows)


if __name__ == "__main__":
    main()
