"""The quality study: clips of quantized models against the full-precision model's, from the same prompts and noise.

    python benchmarks/quality/run.py [--model digits] [--row rtn-w4a8 …] [--clips 64] [--seeds 3] [--work FOLDER] [--out FILE]

The rows are those of rows.toml. Each is calibrated in a process of its own and sampled in PyTorch as the reference computes it
(`vditc.runtimes.reference`), which every graph is held against. OUT is rewritten after every row; a row that is in it already, of the same
model, calibration, clips and seeds, is not sampled again, so that a killed study goes on where it was. WORK keeps the full-precision clips
and the calibrations; after a change to a method's code, calibrate --again. Two of these may run at once on rows of their own, as with
OMP_NUM_THREADS=1 and a --model each. `table.py` writes the tables of docs/quality.md.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import Study
from rows import FULL_PRECISION, Row, load_rows

from vditc.errors import InputError
from vditc.files import write_text

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "docs/measurements/quality.json"
WORK = REPOSITORY / "runs/quality"
SAME = ("model_digest", "calibration_digest", "clips", "seed")  # a row whose figures would be these again


def hardware() -> str:
    """One line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {platform.machine()} cores, {memory:.0f} GiB, PyTorch {version('torch')} on the CPU"


def measure(row: Row, study: Study, done: dict[str, Any] | None, *, again: bool) -> dict[str, Any]:
    """The row as it is stored; `done` itself if that is what it would be."""
    about: dict[str, Any] = {"model": row.model, "method": row.method, "recipe": row.name, "bits": row.bits}
    try:
        calibrated = None if row.name == FULL_PRECISION else study.calibrate(row, again=again)
    except InputError as error:
        return about | {"refused": str(error).replace(f"{study.work}/", "").replace(f"{REPOSITORY}/", "")}
    about |= {"model_digest": study.source.digest, "clips": study.clips, "seed": list(study.seeds)}
    if calibrated is None:
        about |= {"method": "none", "mean_bits": 16.0, "calibration_digest": None}
        about |= dict.fromkeys(("calibration_seconds", "calibration_cpu_seconds", "peak_rss_bytes"))
    else:
        known = calibrated.calibration
        about |= {"method": known.method, "mean_bits": round(known.mean_bits, 3), "calibration_digest": known.digest}
        about |= {"calibration_seconds": calibrated.seconds, "calibration_cpu_seconds": calibrated.cpu_seconds}
        about |= {"peak_rss_bytes": calibrated.peak_rss_bytes}
    if done is not None and all(done.get(name) == about[name] for name in SAME):
        return done
    about |= study.measure(row, calibrated)
    sampled = f"{study.schedule.scheduler}, {study.sampling.steps} steps, guidance {study.sampling.guidance_scale:g}"
    return about | {"sampled": sampled, "hardware": hardware(), "date": datetime.date.today().isoformat()}


def stored(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows in `out` by model and name."""
    return {(r["model"], r["recipe"]): r for r in json.loads(out.read_text())} if out.exists() else {}


def store(out: Path, found: dict[str, Any], order: list[Row], lock: Path) -> None:
    """Put a row into `out`, those of rows.toml first and in its order. Others may write there too: `lock` is held meanwhile."""
    places = {(row.model, row.name): i for i, row in enumerate(order)}
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        results = {**stored(out), (found["model"], found["recipe"]): found}
        listed = sorted(results.values(), key=lambda r: places.get((r["model"], r["recipe"]), len(places)))
        write_text(out, json.dumps(listed, indent=1) + "\n")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", action="append", help="default: all")
    ask.add_argument("--row", action="append", help="name of a row; default: all. Full precision is always there")
    ask.add_argument("--clips", type=int, default=64, help="of each seed")
    ask.add_argument("--seeds", type=int, default=3, help="each has prompts and noise of its own")
    ask.add_argument("--work", type=Path, default=WORK, help=f"[default: {WORK.relative_to(REPOSITORY)}]")
    ask.add_argument("--out", type=Path, default=OUT, help=f"[default: {OUT.relative_to(REPOSITORY)}]")
    ask.add_argument("--again", action="store_true", help="calibrate again what WORK holds a calibration of")
    ask.add_argument("--list", action="store_true", help="name the rows")
    args = ask.parse_args()
    order = load_rows()
    for given, known in ((args.model, {r.model for r in order}), (args.row, {r.name for r in order})):
        if strangers := set(given or ()) - known:
            ask.error(f"{', '.join(sorted(strangers))}: not in rows.toml; see --list")
    chosen = [r for r in order if r.model in (args.model or (r.model,)) and r.name in (FULL_PRECISION, *(args.row or (r.name,)))]
    if args.list:
        print("\n".join(f"{row.model}: {row.name}" for row in chosen))
        return
    results = stored(args.out)
    study: Study | None = None
    for row in chosen:
        if study is None or study.model != row.model:
            study = Study(row.model, args.clips, args.seeds, args.work)
        done = results.get((row.model, row.name))
        found = measure(row, study, done, again=args.again)
        print(json.dumps(found), flush=True)
        if found is not done:
            store(args.out, found, order, args.work / "lock")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
