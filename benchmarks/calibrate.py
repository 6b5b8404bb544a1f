"""Measures calibration: what statistics cost, memory at the size of a published model, and time over depth.

    python benchmarks/calibrate.py [--case CASE] [--runs N] [--json] [--out FILE] [--work FOLDER] [--list]

    overhead      forward passes with and without observers, in turns, in one process: what observers add to the CPU time of all of them,
                  the bundled model and two blocks of the 1.3B, without and with sampled rows; one thread
    1.3b-rtn      `vditc calibrate` of a Wan 2.1 1.3B with random weights, recipe w8a8
    1.3b-viditq   the same, recipe w4a8 (method viditq)
    1.3b-capped   the first with --memory 1: blocks are read when they run
    depth         CPU time over 6, 12 and 24 blocks of that model, recipe w8a8

Each run is a process of its own; seconds, CPU seconds and peak RSS are medians over the runs. One clip, two steps, both guidance branches.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import MODEL, VDITC, machine, measured, options, save, with_json

from export import CASES as MODELS  # noqa: TID251 # benchmarks/export.py
from export import write_model  # noqa: TID251

WAN = "wan-1.3b"
CLIP = {"frames": 3, "height": 16, "width": 16}  # of latents: 192 tokens a branch
TEXT_TOKENS, STEPS, GUIDANCE = 64, 2, 5.0
RECIPES = {"rtn": "w8a8", "viditq": "w4a8"}  # method -> built-in recipe
DEPTHS = (6, 12, 24)
PAIRS = {"bundled": 24, "wide": 8}  # of passes of the overhead
WIDE = {"blocks": 2, "frames": 3, "height": 32, "width": 32}  # of the overhead at the width of the 1.3B: 768 tokens a branch


def model_dir(work: Path, layers: int | None = None) -> Path:
    """A model directory with random weights that can be sampled, and clips.safetensors in it."""
    name = WAN if layers is None else f"{WAN}-{layers}"
    folder = work / name
    if folder.exists():
        return folder
    MODELS[name] = {**MODELS[WAN], **({} if layers is None else {"num_layers": layers})}
    write_model(name, folder)
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "sampling.json").write_text(json.dumps({"steps": STEPS, "guidance_scale": GUIDANCE, **CLIP}))
    clips(folder / "clips.safetensors", tuple(CLIP.values()))
    return folder


def clips(path: Path, size: tuple[int, ...]) -> None:
    """One clip with a random text."""
    from vditc.conditioning import TEXT, Conditioning

    texts = np.random.default_rng(0).standard_normal((2, 1, TEXT_TOKENS, 4096), np.float32)
    f, h, w = size
    Conditioning(prompts=("random",), seeds=(0,), latent_shape=(16, f, h, w), inputs={TEXT: texts[0]}, empty={TEXT: texts[1]}).save(path)


def calibrate(folder: Path, work: Path, method: str, *options: str) -> dict[str, Any]:
    """One run of the command."""
    out = work / "calibration.safetensors"
    command = [str(VDITC), "calibrate", str(folder), "--recipe", RECIPES[method], "--conditioning", str(folder / "clips.safetensors")]
    row = measured([*command, "-o", str(out), "--force", *options])
    return {**row, "output_bytes": out.stat().st_size}


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every number; and the seconds of each run."""
    found = {name: statistics.median(r[name] for r in rows) for name in rows[0]}
    return {**found, "seconds": round(found["seconds"], 1), "runs_seconds": [round(r["seconds"], 1) for r in rows]}


def wan_case(method: str, *options: str) -> Callable[[Path, int], dict[str, Any]]:
    """Calibrate the 1.3B."""

    def run(work: Path, runs: int) -> dict[str, Any]:
        folder = model_dir(work)
        return {"clip": CLIP, "steps": STEPS, **medians([calibrate(folder, work, method, *options) for _ in range(runs)])}

    return run


def depth(work: Path, runs: int) -> dict[str, Any]:
    """CPU time at every depth, and what a block more costs between two of them."""
    rows = {layers: medians([calibrate(model_dir(work, layers), work, "rtn") for _ in range(runs)]) for layers in DEPTHS}
    seconds = [rows[n]["cpu_seconds"] for n in DEPTHS]
    steps = [(b - a) / (m - n) for a, b, n, m in zip(seconds, seconds[1:], DEPTHS, DEPTHS[1:], strict=False)]
    return {
        "seconds": round(sum(rows[n]["seconds"] for n in DEPTHS), 1),
        "peak_rss_bytes": max(rows[n]["peak_rss_bytes"] for n in DEPTHS),
        "cpu_seconds_by_depth": dict(zip(map(str, DEPTHS), seconds, strict=True)),
        "cpu_seconds_per_block": [round(s, 2) for s in steps],
        "peak_rss_by_depth": {str(n): rows[n]["peak_rss_bytes"] for n in DEPTHS},
    }


def overhead(work: Path, runs: int) -> dict[str, Any]:
    """In a process for each model and number of sampled rows."""
    found: dict[str, Any] = {"seconds": 0.0, "peak_rss_bytes": 0}
    for name in ("bundled", "wide"):
        folder = MODEL if name == "bundled" else model_dir(work, WIDE["blocks"])
        for rows in (0, 1024):
            command = [sys.executable, __file__, "--overhead", name, str(folder), str(rows), str(PAIRS[name] * runs)]
            # Threads that wait for each other would count as work.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
            found["seconds"] = round(found["seconds"] + done.pop("seconds"), 1)
            found["peak_rss_bytes"] = max(found["peak_rss_bytes"], done.pop("peak_rss_bytes"))
            found[f"{name}, {rows} rows"] = done
    return found


def print_overhead(name: str, folder: Path, rows: int, pairs: int) -> None:
    """Passes with and without observers in turns, so that what else the machine does meets both."""
    import resource

    import torch

    from vditc.calibrate.denoiser import FullPrecision
    from vditc.calibrate.observers import Observers
    from vditc.calibrate.trajectories import Seen, watched
    from vditc.conditioning import Conditioning
    from vditc.pipeline.opened import OpenedModel
    from vditc.recipe import Recipe

    began, opened = time.monotonic(), OpenedModel.open(folder, steps=pairs if name == "bundled" else STEPS)
    source, adapter = opened.source, opened.adapter
    if name == "bundled":
        given = opened.prompted(1, 0)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            clips(Path(scratch) / "clips", (WIDE["frames"], WIDE["height"], WIDE["width"]))
            given = Conditioning.load(Path(scratch) / "clips")
    sampled = opened.sampled(given)
    clip = sampled.clip(0)
    feeds = clip.feeds(sampled.scheduler, 0, clip.start(sampled.scheduler), guided=True)
    model = FullPrecision(adapter, source, torch.device("cpu"))
    quantized = [n for n, r in Recipe.load("w8a8").assign(adapter.layer_roles(source)).items() if r.scheme is not None]
    observers = Observers({n: source.weights[f"{n}.weight"].shape[1] for n in quantized}, pairs, rows)
    plain: list[float] = []
    seen: list[float] = []
    model(feeds, 0)
    for step in range(pairs):
        with watched(model, Seen(observers, None)) as watch:
            at = time.process_time()
            watch(feeds, step)
            seen.append(time.process_time() - at)
        at = time.process_time()
        model(feeds, step)
        plain.append(time.process_time() - at)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    told = {
        "plain_cpu_seconds": round(statistics.median(plain), 4),
        "watched_cpu_seconds": round(statistics.median(seen), 4),
        "overhead": round(sum(seen) / sum(plain) - 1, 4),
    }
    print(json.dumps({**told, "pairs": pairs, "seconds": time.monotonic() - began, "peak_rss_bytes": usage.ru_maxrss * 1024}))


CASES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "overhead": overhead,
    "1.3b-rtn": wan_case("rtn"),
    "1.3b-viditq": wan_case("viditq"),
    "1.3b-capped": wan_case("rtn", "--memory", "1"),
    "depth": depth,
}


def main() -> None:
    if sys.argv[1:2] == ["--overhead"]:
        which, model, sampled, pairs = sys.argv[2:]
        return print_overhead(which, Path(model), int(sampled), int(pairs))
    ask = with_json(options(__doc__, CASES))
    ask.add_argument("--runs", type=int, default=3, help="[default: 3]")
    ask.add_argument("--work", type=Path, help="folder for models and outputs; models stay there [default: a temporary one]")
    args = ask.parse_args()
    if args.list:
        print("\n".join(CASES))
        return None
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for case in args.case or CASES:
            load = round(os.getloadavg()[0], 1)
            row = {"bench": "calibrate", "case": case, **CASES[case](work, args.runs), "runs": args.runs, "load_before": load}
            sentence = f"{case}: {row['seconds']} s, peak {row['peak_rss_bytes'] / 2**30:.2f} GiB, load before {load}"
            print(json.dumps({**row, "machine": machine()}) if args.json else sentence, flush=True)
            rows.append(row)
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    save(args.out, rows)
    return None


if __name__ == "__main__":
    main()
