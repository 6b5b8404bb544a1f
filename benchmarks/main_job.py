"""Measures the main job: time, peak memory and sizes.

    python benchmarks/main_job.py [--case CASE] [--repeat N] [--json] [--out FILE] [--list]

Each run is a process of its own; seconds and peak RSS (of the largest process of the run) are medians over the repeats.
`bare-clone` clones the repository and runs `make demo` from nothing, installation included.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import MODEL, REPOSITORY, VDITC, machine, measured, options, save, with_json


def compile_case(recipe: str) -> Callable[[Path], dict[str, Any]]:
    """Compile the bundled model with one recipe for both demo targets."""

    def run(work: Path) -> dict[str, Any]:
        out = work / "out.bundle"
        targets = ["--target", "rtx-ada", "--target", "cpu"]
        row = measured([str(VDITC), "compile", str(MODEL), "--recipe", recipe, *targets, "-o", str(out), "--force"])
        manifest = json.loads((out / "manifest.json").read_text())
        graph = sum(f["bytes"] for n, f in manifest["files"].items() if n.startswith("model.onnx"))
        stages = json.loads((out / "report/run.json").read_text())["stages"]
        return {
            **row,
            "model_onnx_bytes": graph,
            "share_of_float32": graph / (4 * manifest["model"]["weights"]),
            "mean_bits": manifest["mean_bits"],
            "psnr_db": manifest["quality"]["quantized"]["psnr_db"],
            "stage_seconds": {n: s["seconds"] for n, s in stages.items()},
        }

    return run


def demo(work: Path) -> dict[str, Any]:
    """`vditc demo`, everything installed."""
    return measured([str(VDITC), "demo", "-o", str(work / "demo"), "--force"])


def inspect(work: Path) -> dict[str, Any]:
    """`vditc inspect` of a bundle, hashes checked."""
    out = work / "inspected.bundle"
    if not out.exists():
        measured([str(VDITC), "compile", str(MODEL), "--recipe", "w4a16", "--target", "cpu", "-o", str(out), "--clips", "1", "--no-gate"])
    return measured([str(VDITC), "inspect", str(out)])


def bare_clone(work: Path) -> dict[str, Any]:
    """`make demo` in a fresh clone: virtual environment, installation, demo."""
    clone = work / "clone"
    shutil.rmtree(clone, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    os.environ.clear()
    os.environ.update(environment)
    return measured(["make", "demo"], cwd=clone)


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "compile-w8a8": compile_case("w8a8"),
    "compile-w8a8-static": compile_case("w8a8-static"),
    "compile-w4a16": compile_case("w4a16"),
    "demo": demo,
    "inspect": inspect,
    "bare-clone": bare_clone,
}


def main() -> None:
    ask = with_json(options(__doc__, CASES))
    ask.add_argument("--repeat", type=int, default=3)
    args = ask.parse_args()
    if args.list:
        print("\n".join(CASES))
        return
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in args.case or CASES:
            runs = [CASES[name](Path(work)) for _ in range(args.repeat)]
            row = {"bench": "main_job", "case": name, **runs[-1], "runs": len(runs)}
            for key in ("seconds", "peak_rss_bytes"):
                row[key] = statistics.median(r[key] for r in runs)
            row["seconds"] = round(row["seconds"], 2)
            sentence = f"{name}: {row['seconds']} s, peak {row['peak_rss_bytes'] / 2**30:.2f} GiB, median of {len(runs)}"
            print(json.dumps({**row, "machine": machine()}) if args.json else sentence, flush=True)
            rows.append(row)
    save(args.out, rows)


if __name__ == "__main__":
    main()
