"""Builds engines of models of published size in segments with TensorRT-RTX, and compares the segments with the whole graph.

    python benchmarks/segments.py [--case CASE] [--memory SIZE] [--check] [--work FOLDER] [--plugins LIB] [--out FILE] [--list]

Weights are random, layers, widths and depths are those of the model, the recipe is w4a8 (ViDiT-Q). Cases that end in -plugins hand
the quantized layers to the plugin library, which must have the target's GPUs (`vditc plugins build --arch 80,86,89,120a`). There are as
many segments as --memory (8 GiB unless told) asks for; memory is the peak RSS of the largest process: the builder's or the command's.
--check runs one step of the smallest clip in ONNX Runtime, the whole lowered graph and then segment by segment, a slice of nodes at a
time, and gives the relative distance of the two. Graphs in float16 round where a slice ends, so theirs is not 0. A 14B model takes 20 GB of
the disk of --work.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from harness import VDITC, measured, options, save

TARGET = "rtx-ada"
PROFILE = "batch=1,frames=1:21:21,height=2:60:60,width=2:104:104,text_tokens=512"


class Case(NamedTuple):
    """A model of benchmarks/export.py, its depth, and whether layers of few bits go to the plugin library."""

    model: str
    layers: int
    plugins: bool = False


CASES = {
    "wan-1.3b": Case("wan-1.3b", 30),
    "wan-14b": Case("wan-14b", 40),
    "wan-14b-plugins": Case("wan-14b", 40, plugins=True),
}


def write_lowered(case: str, work: str) -> None:
    """The lowered graph; the graph that it comes from goes."""
    from graph_passes import write_graph  # noqa: TID251 # benchmarks/graph_passes.py
    from vditc.graph_passes.stage import lower
    from vditc.progress import SILENT
    from vditc.target import Target

    about, folder = CASES[case], Path(work)
    write_graph(about.model, about.layers, folder)
    (folder / "lowered").mkdir()
    lower(
        model=folder / "model.onnx",
        target=Target.load(TARGET),
        out=folder / "lowered" / f"{TARGET}.onnx",
        progress=SILENT,
        plugins=about.plugins,
    )
    shutil.rmtree(folder / "model")
    _tell_apart(folder / "lowered" / f"{TARGET}.onnx")


def _tell_apart(lowered: Path) -> None:
    """Other random codes for every weight: a builder may keep constants that are equal once."""
    import numpy as np
    import onnx

    random = np.random.default_rng(0)
    for tensor in onnx.load(lowered, load_external_data=False).graph.initializer:
        if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.INT4) and tensor.external_data:
            place = {entry.key: entry.value for entry in tensor.external_data}
            with (lowered.parent / place["location"]).open("r+b") as file:
                file.seek(int(place["offset"]))
                file.write(random.bytes(int(place["length"])))


def distance(lowered: str, memory: str) -> None:
    """Print the relative distance of the segments' outputs from the whole graph's, and what was compared."""
    import numpy as np

    from vditc.build_options import BuildOptions
    from vditc.pipeline.build_engine import segments_of
    from vditc.profile import Profile
    from vditc.runtimes.graph_inputs import graph_outputs, graph_sizes, input_specs
    from vditc.runtimes.graph_slices import run_in_slices

    path = Path(lowered)
    profile = Profile.parse(PROFILE, Profile({}), graph_sizes(path))
    segments = segments_of(path, profile, BuildOptions.parse(f"segments=auto,memory={memory}"))
    least = {axis: r.min for axis, r in profile.axes.items()}
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {s.name: s.example(least, random) if s.name != "step" else np.array([1]) for s in input_specs(path)}
    ((want, *_),) = run_in_slices(path, [feeds])
    for segment in segments:
        found = run_in_slices(segment.graph, [{spec.name: feeds[spec.name] for spec in segment.inputs}])
        feeds |= dict(zip(segment.outputs, found[0], strict=True))
        segment.graph.unlink()
    got = feeds[graph_outputs(path)[0]]
    apart = float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64)))
    print(
        json.dumps(
            {"segments": len(segments), "relative_distance": apart, "elements": int(want.size), "finite": bool(np.isfinite(want).all())}
        )
    )


def child(*arguments: str) -> str:
    """What this file, run with these arguments, prints: a process's peak RSS counts its parent's from before exec."""
    return subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def run(case: str, work: Path, memory: str, check: bool, library: Path | None) -> dict[str, Any]:
    """Lower, build in segments, compare."""
    child("--lower", case, str(work))
    lowered, out = work / "lowered" / f"{TARGET}.onnx", work / "engine"
    row: dict[str, Any] = {"bench": "segments", "case": case, "target": TARGET, "profile": PROFILE, "memory": memory}
    row["weights_bytes"] = sum(p.stat().st_size for p in lowered.parent.glob("*.data"))
    command = [str(VDITC), "build", str(lowered), "--target", TARGET, "--profile", PROFILE, "--segments", "auto"]
    command += ["--engine", f"memory={memory}", "-o", str(out), "--json"]
    row["build"] = measured(command if library is None else [*command, "--plugins", str(library)])
    segments = json.loads((out / "segments.json").read_text())["segments"]
    row["blocks"] = [len(segment["blocks"]) for segment in segments]
    row["plan_bytes"] = [(out / f"{segment['name']}.plan").stat().st_size for segment in segments]
    if check:
        row["check"] = json.loads(child("--distance", str(lowered), memory))
    return row


def main() -> None:
    """Measure what --case names."""
    ask = options(__doc__, CASES)
    ask.add_argument("--memory", default="8GiB", help="that a builder may take")
    ask.add_argument("--check", action="store_true", help="also compare the numbers")
    ask.add_argument("--work", type=Path, help="folder for the files [default: a temporary one]")
    ask.add_argument("--plugins", type=Path, help="plugin library [default: where vditc looks for it]")
    ask.add_argument("--lower", nargs=2, help="of the benchmark itself")
    ask.add_argument("--distance", nargs=2, help="of the benchmark itself")
    given = ask.parse_args()
    if given.list:
        print("\n".join(CASES))
    elif given.lower:
        write_lowered(*given.lower)
    elif given.distance:
        distance(*given.distance)
    else:
        rows = []
        for case in given.case or CASES:
            with tempfile.TemporaryDirectory(dir=given.work) as work:
                rows.append(run(case, Path(work), given.memory, given.check, given.plugins))
            print(json.dumps(rows[-1]), flush=True)
        save(given.out, rows)


if __name__ == "__main__":
    main()
