"""Measures the plugin library's kernels on a GPU, each beside what torch has for it.

    python benchmarks/kernels.py [--case CASE] [--library FILE] [--runs 50] [--seconds S] [--json] [--out FILE] [--list]
    python benchmarks/kernels.py --emulated                    # every call once, tiny, on the CPU: no times

qlinear: every tactic of W8A8, W4A8, W3A6 and W4A4 beside torch._int_mm (cuBLASLt INT8, int32 without scales), bfloat16 and FP8, M of 4096,
32760 and 75600 tokens times every distinct (N, K) of the linear layers of Wan 1.3B, CogVideoX 5B and Wan 14B. quantize-token: its variants
beside a copy that moves as many bytes. qattention: beside every backend of scaled_dot_product_attention. block: a whole block of Wan around
the same attention.

Times are medians of CUDA events around CUDA graphs, on random data, L2 flushed in front of every run, candidates in turn run by run, so
that a ratio is of one time. Slow candidates have fewer runs (10 at least); rows say how many. Peaks are of gpu_peaks.toml, by the GPU's
name. Python's cost of a launch is no part of a graph. Without a GPU nothing is measured and the exit code is 2.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import options, save, with_json

NOT_RUN = "not run: needs a GPU"
CASES = {
    "qlinear": "tactics of every scheme at the shapes of published models, beside cuBLASLt's INT8, bfloat16 and FP8",
    "quantize-token": "variants, beside a copy on the device",
    "qattention": "attention with INT8 scores, beside every backend of torch's",
    "block": "a block of Wan with W8A8, W4A8, W3A6 and W4A4 layers, beside bfloat16",
}


def gpu_name() -> str | None:
    """Of the current GPU; None where torch sees none."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def rows_of(case: str, timer: Any) -> Iterator[dict[str, Any]]:
    """Of one case, as they are measured."""
    import kernel_block
    import kernel_cases

    makers: dict[str, Callable[[Any], Iterator[dict[str, Any]]]] = {
        "qlinear": kernel_cases.qlinear_rows,
        "quantize-token": kernel_cases.quantize_token_rows,
        "qattention": kernel_cases.qattention_rows,
        "block": kernel_block.block_rows,
    }
    yield from makers[case](timer)


def sentence(row: dict[str, Any]) -> str:
    """A row for people: the problem, then candidates from the fastest on."""
    keys = ("case", "model", "variant", "m", "n", "k", "tokens", "layers")
    head = " ".join(f"{key} {', '.join(row[key]) if key == 'layers' else row[key]}" for key in keys if key in row)
    lines = [head.removeprefix("case ")]
    for name, seconds in sorted(row["seconds"].items(), key=lambda item: item[1]):
        shares = [
            f"{row[key][name]:.0%} {said}" for key, said in (("of_peak", "of peak"), ("of_floor", "of the floor")) if name in row[key]
        ]
        lines.append(f"  {1e6 * seconds:12,.1f} us  {name:34} {', '.join(shares)} ({row['runs'][name]} runs)")
    lines += [f"  {key.replace('_', ' ')}: {row[key]}" for key in row if key.startswith(("ratio", "of_copy", "relative")) and row[key]]
    lines += [f"  failed: {name}: {why}" for name, why in row["failed"].items()]
    lines += [f"  DIFFERENT BITS: {name}" for name in row.get("different_bits", [])]
    return "\n".join(lines)


def main() -> int:
    """See the module's docstring."""
    ask = with_json(options(__doc__, CASES))
    ask.add_argument("--library", type=Path, help="libvditc_plugins.so [default: where `vditc plugins build` put it]")
    ask.add_argument("--runs", type=int, default=50)
    ask.add_argument("--seconds", type=float, help="begin no problem after so many")
    ask.add_argument("--emulated", action="store_true", help="tiny problems on the CPU, no times")
    args = ask.parse_args()
    chosen, gpu = args.case or list(CASES), gpu_name()
    if args.list:
        for case in chosen:
            print(f"{case:16} {CASES[case]}" + ("" if gpu else f" ({NOT_RUN})"))
        return 0
    if args.emulated and args.out:
        ask.error("--out with --emulated: the emulated library has no times to keep")
    if not (gpu or args.emulated):
        for case in chosen:
            print(json.dumps({"case": case, "result": NOT_RUN}) if args.json else f"{case:16} {NOT_RUN}")
        print("torch sees no CUDA GPU: nothing was measured", file=sys.stderr)
        return 2
    import kernel_timing
    import torch

    from vditc.plugins.torch_ops import use_library

    if args.library:
        use_library(args.library)
    torch.manual_seed(0)
    timer = kernel_timing.Dry() if args.emulated else kernel_timing.Timer(args.runs)
    if not args.json:
        print(f"{timer.name}; peaks: {timer.peaks['source']}")
    begun, rows, different = time.monotonic(), [], False
    for case in chosen:
        for row in rows_of(case, timer):
            rows.append(row)
            different = different or bool(row.get("different_bits"))
            print(json.dumps(row) if args.json else sentence(row), flush=True)
            save(args.out, rows, gpu={"name": timer.name, "peaks": dict(timer.peaks)})  # what was measured is kept whatever comes
            if args.seconds and time.monotonic() - begun > args.seconds:
                print(f"stopped after {args.seconds:g} s: the problems that are left were not run", file=sys.stderr)
                return 1
    if different:
        print("tactics of one problem gave different bits", file=sys.stderr)
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
