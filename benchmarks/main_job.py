"""Measures the main job: time, peak memory and sizes.

    python benchmarks/main_job.py [--case CASE] [--repeat N] [--json] [--out FILE] [--list]

Each run is a process of its own; seconds and peak RSS (of the largest process of the run) are medians over the repeats.
`bare-clone` clones the repository and runs `make demo` from nothing, installation included.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "src/vditc/assets/digits"
VDITC = Path(sys.executable).with_name("vditc")


def measured(command: list[str], cwd: Path = REPOSITORY) -> dict[str, Any]:
    """Run a command; wall and CPU seconds, and peak RSS in bytes of the largest process in its tree."""
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
    seconds = time.monotonic() - began
    return {"seconds": seconds, "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "peak_rss_bytes": usage.ru_maxrss * 1024}


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


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    packages = ("vditc", "torch", "diffusers", "onnx", "onnxruntime", "tensorrt_rtx_cu13")
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "packages": {p: importlib.metadata.version(p) for p in packages},
        "gpu": None,
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--case", choices=CASES, action="append", help="default: all")
    ask.add_argument("--repeat", type=int, default=3)
    ask.add_argument("--out", type=Path, help="also write everything to this JSON file")
    ask.add_argument("--list", action="store_true", help="name the cases")
    ask.add_argument("--json", action="store_true", help="one JSON object a line instead of a sentence")
    args = ask.parse_args()
    if args.list:
        print("\n".join(CASES))
        return
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in args.case or CASES:
            runs = [CASES[name](Path(work)) for _ in range(args.repeat)]
            row = {"bench": "main_job", "case": name, **runs[-1], "runs": len(runs), "machine": machine()}
            for key in ("seconds", "peak_rss_bytes"):
                row[key] = statistics.median(r[key] for r in runs)
            row["seconds"] = round(row["seconds"], 2)
            sentence = f"{name}: {row['seconds']} s, peak {row['peak_rss_bytes'] / 2**30:.2f} GiB, median of {len(runs)}"
            print(json.dumps(row) if args.json else sentence, flush=True)
            rows.append(row)
    if args.out:
        command = "python " + " ".join([str(Path(__file__).relative_to(REPOSITORY)), *sys.argv[1:]])
        data = {"date": datetime.date.today().isoformat(), "command": command, "rows": rows}
        args.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
