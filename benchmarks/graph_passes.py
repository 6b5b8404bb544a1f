"""Measures graph passes on models of published sizes with random bfloat16 weights: what precomputing the time path takes and saves.

    python benchmarks/graph_passes.py [--case CASE] [--steps N] [--work FOLDER] [--out FILE] [--list]

Each model is exported by `vditc export --recipe fp16 --steps N`; `precompute-time-path` runs on the graph in a process of its own, once
with tables of float32 and once of float16. Bytes are of the graph's initialisers; nothing is written. Each line is one case, as JSON.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import VDITC, measured, options, save

from export import write_model  # noqa: TID251 # benchmarks/export.py

CASES = ("wan-1.3b", "cogvideox-2b")
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


def exported(case: str, steps: int, work: Path) -> Path:
    """The case's graph; its weights go when it is written."""
    model, out = work / "model", work / "model.onnx"
    write_model(case, model)
    (model / "scheduler").mkdir()
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    measured([str(VDITC), "export", str(model), "--recipe", "fp16", "--steps", str(steps), "-o", str(out)])
    shutil.rmtree(model)
    return out


def precompute(model: Path, store: str) -> None:
    """Print what the pass did, and what it took beyond the graph itself."""
    from vditc.graph_passes.core import run_passes
    from vditc.graph_passes.precompute_time_path import PrecomputeTimePath
    from vditc.graph_passes.spec import Spec
    from vditc.graph_passes.stage import load

    graph = load(model)
    names = {n: v.const_value.nbytes for n, v in graph.graph.initializers.items() if v.const_value is not None}
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, (facts,) = run_passes(graph, [PrecomputeTimePath(store=store)], Spec.canonical())
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gone = [names[n] for n in set(names) - set(graph.graph.initializers)]
    row = {**facts.figures, "largest_weight_bytes": max(gone), "seconds": round(seconds, 2), "peak_rss_bytes": (after - before) * 1024}
    print(json.dumps(row | {"refusals": [r.reason for r in facts.refusals]}))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        return precompute(Path(sys.argv[2]), sys.argv[3])
    ask = options(__doc__, CASES)
    ask.add_argument("--steps", type=int, default=50, help="of the schedule [default: 50]")
    ask.add_argument("--work", type=Path, help="folder for models [default: a temporary one]")
    args = ask.parse_args()
    if args.list:
        print("\n".join(CASES))
        return None
    rows: list[dict[str, Any]] = []
    for case in args.case or CASES:
        with tempfile.TemporaryDirectory(dir=args.work) as work:
            model = exported(case, args.steps, Path(work))
            for store in ("fp32", "fp16"):
                done = subprocess.run([sys.executable, __file__, "--child", str(model), store], check=True, capture_output=True, text=True)
                rows.append(
                    {"bench": "graph_passes", "case": case, "pass": f"precompute-time-path{{store={store}}}", **json.loads(done.stdout)}
                )
                print(json.dumps(rows[-1]), flush=True)
    save(args.out, rows)
    return None


if __name__ == "__main__":
    main()
