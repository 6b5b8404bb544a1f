"""`vditc bench`: how fast a bundle is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vditc.bundle import Bundle
from vditc.cli.app import RichProgress, app, console
from vditc.cli.options import BundleArg, DeviceOption, JsonOption, LoraOption
from vditc.cli.stages import say
from vditc.errors import InputError

_SHOWN = 12  # rows of the table of layers


@app.command("bench")
def bench_command(
    bundle: BundleArg,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", help="onnxruntime, or a target of the bundle; repeat for several [default: all that run here]"),
    ] = None,
    against: Annotated[Path | None, typer.Option("--against", metavar="MODEL_DIR", help="the full-precision model, in PyTorch")] = None,
    lora: LoraOption = None,
    device: DeviceOption = "auto",
    sizes: Annotated[str, typer.Option("--sizes", help="frames=21,batch=1: in steps of the latent [default: the profile's best]")] = "",
    runs: Annotated[int, typer.Option(help="steps that count, of each", min=1)] = 10,
    warmup: Annotated[int, typer.Option(help="steps before them", min=0)] = 2,
    layers: Annotated[int, typer.Option(help="steps profiled for the shares of layers; 0 for none", min=0)] = 3,
    apart: Annotated[bool, typer.Option("--apart", help="one after the other, not in turns: where memory does not hold all")] = False,
    as_json: JsonOption = False,
) -> None:
    """Seconds of a step, memory, and shares of layers, of the bundle's backends and the full-precision model in one run."""
    opened = Bundle.open(bundle)

    from vditc.pipeline.bench import BenchJob, bench

    job = BenchJob(
        bundle=opened,
        backends=tuple(dict.fromkeys(backend or ())),
        against=against,
        loras=tuple(lora or ()),
        device=device,
        sizes=_sizes(sizes),
        runs=runs,
        warmup=warmup,
        layers=layers,
        apart=apart,
    )
    found = bench(job, RichProgress())
    rows = [figures.to_json(found[0]) for figures in found]
    if as_json:
        print(
            json.dumps(
                {"bundle": str(bundle), "sizes": dict(job.sizes), "runs": runs, "steps": opened.manifest.sampling["steps"], "of": rows}
            )
        )
        return
    table = Table("", "ms a step", "10 % to 90 %", "times faster", "a clip, s", "open, s", "peak RSS, MB")
    for row in rows:
        low, high = row["step_seconds_p10"] * 1e3, row["step_seconds_p90"] * 1e3
        clip = row["step_seconds"] * opened.manifest.sampling["steps"]
        cells = (f"{row['step_seconds'] * 1e3:.2f}", f"{low:.2f} to {high:.2f}", f"{row['ratio']:.2f}", f"{clip:.2f}")
        table.add_row(row["name"], *cells, f"{row['open_seconds']:.2f}", f"{row['peak_rss_bytes'] / 1e6:.0f}")
    console.print(table)
    for row in rows:
        if row["layers"]:
            whole = sum(row["layers"].values())
            shares = [f"{name} {100 * seconds / whole:.1f} %" for name, seconds in list(row["layers"].items())[:_SHOWN]]
            say(f"{row['name']}: " + ", ".join(shares))
        elif layers:
            say(f"{row['name']}: this backend does not tell the time of its layers")


def _sizes(text: str) -> dict[str, int]:
    found = {}
    for word in filter(None, (w.strip() for w in text.split(","))):
        axis, equals, size = word.partition("=")
        if not equals or not size.isdigit() or int(size) < 1:
            raise InputError(found=f"{word!r}", wanted="AXIS=SIZE", where="--sizes", fix="write frames=21,batch=1")
        found[axis] = int(size)
    return found
