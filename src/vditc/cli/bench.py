"""`vditc bench`: how fast a bundle is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vditc.bundle import Bundle
from vditc.cli.app import RichProgress, app, console
from vditc.cli.options import BundleArg, DeviceOption, ForceOption, JsonOption, LoraOption, fresh
from vditc.cli.stages import say
from vditc.errors import InputError

if TYPE_CHECKING:
    from vditc.timing import Timing

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
    out: Annotated[Path | None, typer.Option("-o", "--out", help="write all figures as JSON, which `vditc report --timing` reads")] = None,
    report: Annotated[bool, typer.Option("--report", help="keep the figures in the bundle and write its report anew with them")] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Seconds of a step, memory, and shares of layers, of the bundle's backends and the full-precision model in one run."""
    opened, path = Bundle.open(bundle), None if out is None else fresh(out, force)

    from vditc.pipeline.bench import BenchJob, bench

    if report:
        from vditc.pipeline.report_data import report_bundle  # before minutes of work: it may not be installed
        from vditc.pipeline.report_notes import add_timing, check_report

        check_report(opened)
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
    if path is not None:
        found.write(path)
    if as_json:
        print(json.dumps({"bundle": str(bundle), **found.to_json()}))
    else:
        _show(found)
    if report:
        add_timing(opened, found)
        page = report_bundle(opened)
        if not as_json:
            say(f"wrote {page}")


def _show(found: Timing) -> None:
    """Tables for people."""
    gpu = any(f.device_bytes is not None for f in found.of)
    columns = ("", "ms a step", "10 % to 90 %", "times faster", "steps/s", "a clip, s", "first, s", "open, s", "peak RSS, MB")
    table = Table(*columns, *(("GPU, MB",) if gpu else ()))
    for f in found.of:
        low, high = f.spread
        cells = [f"{f.median * 1e3:.2f}", f"{low * 1e3:.2f} to {high * 1e3:.2f}", f"{found.ratio(f):.2f}", f"{1 / f.median:.2f}"]
        cells += [f"{found.clip_seconds(f):.2f}", f"{f.first_seconds:.2f}", f"{f.open_seconds:.2f}", f"{f.peak_rss_bytes / 1e6:.0f}"]
        table.add_row(f.name, *cells, *((("-" if f.device_bytes is None else f"{f.device_bytes / 1e6:.0f}"),) if gpu else ()))
    console.print(table)
    sizes = ", ".join(f"{axis} {n}" for axis, n in found.sizes.items())
    calls = f"{found.steps} steps" + (f" of {found.calls} calls" if found.calls > 1 else "")
    together = f", {found.clips} clips at once" if found.clips > 1 else ""
    say(f"{found.device}; {sizes}; a clip is {calls}{together}; medians of {found.runs} runs after {found.warmup}")
    for f in found.of:
        if f.layers:
            whole = sum(f.layers.values())
            shares = [f"{name} {100 * seconds / whole:.1f} %" for name, seconds in list(f.layers.items())[:_SHOWN]]
            say(f"{f.name}: " + ", ".join(shares))
        elif found.profiled:
            say(f"{f.name}: this backend does not tell the time of its layers")


def _sizes(text: str) -> dict[str, int]:
    found = {}
    for word in filter(None, (w.strip() for w in text.split(","))):
        axis, equals, size = word.partition("=")
        if not equals or not size.isdigit() or int(size) < 1:
            raise InputError(found=f"{word!r}", wanted="AXIS=SIZE", where="--sizes", fix="write frames=21,batch=1")
        found[axis] = int(size)
    return found
