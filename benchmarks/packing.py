"""How fast weights of `vditc.QLinear` are packed: gigabytes of codes a second on one core, one byte a code, whatever their bits.

    python benchmarks/packing.py [--case CASE] [--runs N] [--out FILE] [--list]

pack-BITS and unpack-BITS: codes int8 [N, K] to packed bytes and back, `vditc.plugins.packing`. lower-4 and lower-3: codes of an ONNX tensor
INT4 [K, N], two a byte in a data file, read once to see in how many bits they fit and once to be packed, as `lower-subbyte-linear` lowers
and writes a layer. Figures are medians over `--runs` of the process's CPU time, which other processes disturb less than the clock's; sizes
are those of Wan 2.1's layers. Each line is one row, as JSON.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from harness import options, save

from vditc.graph_passes.subbyte_weights import bits_of, packed
from vditc.plugins.packing import code_range, pack, unpack
from vditc.plugins.qlinear.op import QLinear

SIZES = ((1536, 1536), (8960, 1536), (5120, 5120), (5120, 13824))  # N, K


def work(case: str, n: int, k: int) -> Callable[[], Any]:
    """What is measured, its data made."""
    kind, _, bits = case.partition("-")
    low, high = code_range(int(bits))
    codes = np.random.default_rng(0).integers(low, high + 1, (n, k), dtype=np.int8)
    if kind == "pack":
        return lambda: pack(codes, int(bits))
    if kind == "unpack":
        stored = pack(codes, int(bits))
        return lambda: unpack(stored, n, k, int(bits))
    pairs = codes.reshape(-1, 2).view(np.uint8)
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115  the tensor is read from it in every run
    (pairs[:, 0] & 15 | pairs[:, 1] << 4).tofile(file.name)
    tensor = ir.ExternalTensor(file.name, 0, n * k // 2, ir.DataType.INT4, shape=ir.Shape([k, n]), name="codes")

    def lower(_: object = file) -> Any:
        return packed(tensor, QLinear(n=n, k=k, bits=bits_of(tensor))).numpy()

    return lower


CASES = (*(f"{kind}-{bits}" for kind in ("pack", "unpack") for bits in (8, 4, 3)), "lower-4", "lower-3")


def main() -> None:
    """See the module's docstring."""
    ask = options(__doc__, CASES)
    ask.add_argument("--runs", type=int, default=5)
    given = ask.parse_args()
    if given.list:
        print("\n".join(CASES))
        return
    rows = []
    for case in given.case or CASES:
        for n, k in SIZES:
            run, seconds = work(case, n, k), []
            for _ in range(given.runs + 1):
                began = time.process_time()
                run()
                seconds.append(time.process_time() - began)
            rows.append({"case": case, "n": n, "k": k, "gigabytes_per_second": round(n * k / statistics.median(seconds[1:]) / 1e9, 2)})
            print(json.dumps(rows[-1]))
    save(given.out, rows)


if __name__ == "__main__":
    main()
