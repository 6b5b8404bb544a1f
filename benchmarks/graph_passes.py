"""Measures graph passes on models of published sizes with random weights: the lists of passes of targets, and tables for the time path.

    python benchmarks/graph_passes.py [--case CASE] [--target TARGET] [--layers N] [--runs N] [--steps N] [--work FOLDER]
                                      [--out FILE] [--list]

lower-MODEL: a graph of ViDiT-Q's form at W4A8 (`random_graphs`), at several depths, is lowered for each target in a process of its own;
figures are medians of `--runs`. `copied_bytes` are weights that no pass touched, `rewritten_bytes` what passes made; `copy_seconds` is a
plain copy of the former on the same disk in the same run. MODEL alone: the model is exported by `vditc export --recipe fp16 --steps N`,
and `precompute-time-path` runs in a process of its own, with tables of float32 and of float16; nothing is written. Bytes of it are of
the graph's initialisers. Each line is one row, as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from harness import VDITC, measured, options, save

from export import CASES as MODELS  # noqa: TID251 # benchmarks/export.py
from export import write_model  # noqa: TID251

TIME_PATH = ("wan-1.3b", "cogvideox-2b")


class Lowered(NamedTuple):
    """A model, its depths, how often each is lowered, and whether layers of few bits go to the plugin library."""

    model: str
    layers: tuple[int, ...]
    runs: int = 1
    plugins: bool = False


LOWERED = {
    "lower-wan-1.3b": Lowered("wan-1.3b", (10, 20, 30), 3),
    "lower-wan-1.3b-plugins": Lowered("wan-1.3b", (30,), plugins=True),
    "lower-wan-14b": Lowered("wan-14b", (10, 20, 40)),
}
FORM = "ViDiT-Q w4a8"
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


def time_path(case: str, steps: int, work: Path) -> Iterator[dict[str, Any]]:
    """Two rows."""
    model = exported(case, steps, work)
    for store in ("fp32", "fp16"):
        done = child("--child", str(model), store)
        yield {"bench": "graph_passes", "case": case, "pass": f"precompute-time-path{{store={store}}}", **done}


def write_graph(case: str, layers: int, work: Path) -> None:
    """A graph and its data."""
    from random_graphs import FORMS, random_graph, sparse_model

    from vditc.export.write import write_model as write
    from vditc.recipe import Recipe

    form = FORMS[FORM]
    source = sparse_model({**MODELS[case], "num_layers": layers}, work / "model", Recipe.load(form.recipe))
    write(random_graph(source, form), work / "model.onnx", lambda: None)


def lower_once(model: Path, target: str, plugins: bool, out: Path) -> None:
    """Print what `vditc lower` would say of itself, and what it took."""
    from vditc.graph_passes.stage import lower
    from vditc.progress import SILENT
    from vditc.target import Target

    began = time.monotonic()
    facts = lower(model=model, target=Target.load(target), out=out, progress=SILENT, plugins=plugins)
    seconds = time.monotonic() - began
    sizes = [f.stat().st_size for f in facts.files]
    row = {
        "plugins": plugins,
        "nodes": facts.nodes_before,
        "nodes_lowered": facts.nodes_after,
        "graph_bytes": sizes[0],
        "copied_bytes": sum(n for f, n in zip(facts.files, sizes, strict=True) if f.name == "model.onnx.data"),
        "rewritten_bytes": sum(n for f, n in zip(facts.files, sizes, strict=True) if f.name == f"{out.name}.data"),
        "seconds": round(seconds, 2),
        "passes_seconds": {f.name: round(f.seconds, 2) for f in facts.passes},
        "cpu_seconds": round(time.process_time(), 2),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(row))


def lowered(case: str, layers: int, targets: list[str], runs: int, plugins: bool, work: Path) -> Iterator[dict[str, Any]]:
    """A row for each target."""
    subprocess.run([sys.executable, __file__, "--graph", case, str(layers), str(work)], check=True, stdout=subprocess.DEVNULL)
    model = work / "model.onnx"
    for target in targets:
        rows, load = [], os.getloadavg()[0]
        for _ in range(runs):
            rows.append(child("--lower", str(model), target, str(int(plugins)), str(work / "lowered" / f"{target}.onnx")))
            shutil.rmtree(work / "lowered")
        began = time.monotonic()
        shutil.copyfile(f"{model}.data", work / "copy")
        copy_seconds = time.monotonic() - began
        (work / "copy").unlink()
        middle = sorted(rows, key=lambda row: row["seconds"])[len(rows) // 2]
        yield {
            "bench": "graph_passes",
            "case": f"lower-{case}",
            "form": FORM,
            "target": target,
            "layers": layers,
            **middle,
            "in_passes_seconds": round(sum(middle["passes_seconds"].values()), 2),
            "peak_rss_bytes": int(statistics.median(row["peak_rss_bytes"] for row in rows)),
            "copy_seconds": round(copy_seconds, 2),
            "runs_seconds": [row["seconds"] for row in rows],
            "load_before": round(load, 1),
        }


def child(*arguments: str) -> dict[str, Any]:
    """What this file, run with these arguments, prints."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    match sys.argv[1:]:
        case ["--child", graph, store]:
            return precompute(Path(graph), store)
        case ["--graph", name, layers, work]:
            return write_graph(name, int(layers), Path(work))
        case ["--lower", graph, target, plugins, out]:
            return lower_once(Path(graph), target, plugins == "1", Path(out))
    cases = (*LOWERED, *TIME_PATH)
    ask = options(__doc__, cases)
    ask.add_argument("--target", action="append", help="of lower-MODEL [default: rtx-ada]")
    ask.add_argument("--layers", type=int, action="append", help="of lower-MODEL [default: several]")
    ask.add_argument("--runs", type=int, help="of lower-MODEL, each [default: 3, or 1 of the large]")
    ask.add_argument("--steps", type=int, default=50, help="of the schedule, for the time path alone [default: 50]")
    ask.add_argument("--work", type=Path, help="folder for models [default: a temporary one]")
    args = ask.parse_args()
    if args.list:
        print("\n".join(cases))
        return None
    rows: list[dict[str, Any]] = []
    for case in args.case or cases:
        of = LOWERED.get(case)
        for depth in (0,) if of is None else args.layers or of.layers:
            with tempfile.TemporaryDirectory(dir=args.work) as folder:
                if of is None:
                    found = time_path(case, args.steps, Path(folder))
                else:
                    found = lowered(of.model, depth, args.target or ["rtx-ada"], args.runs or of.runs, of.plugins, Path(folder))
                for row in found:
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    save(args.out, rows)
    return None


if __name__ == "__main__":
    main()
