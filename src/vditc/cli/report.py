"""`vditc report`: a page about one or several bundles, with what has become known of them since they were compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vditc.bundle import Bundle
from vditc.cli.app import app
from vditc.cli.options import ForceOption, fresh
from vditc.cli.stages import say
from vditc.errors import InputError
from vditc.timing import Timing


@app.command("report")
def report_command(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="one, or several of one model that are to be compared")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="HTML file [default: that of the bundle]")] = None,
    timing: Annotated[
        list[Path] | None, typer.Option("--timing", help="what `vditc bench -o` wrote, for example on a device: kept in its bundle")
    ] = None,
    sensitivity: Annotated[
        list[Path] | None, typer.Option("--sensitivity", help="what `vditc sensitivity` wrote: kept in the bundle of the same recipe")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write the report of a bundle anew, with engines that were built and times that were measured since; or compare several."""
    if out is None and len(bundles) > 1:
        raise InputError(found=f"{len(bundles)} bundles", wanted="-o FILE.html", where="vditc report", fix="say where to write it")
    path = None if out is None else fresh(out, force)
    opened, times = [Bundle.open(bundle, hashes=False) for bundle in bundles], [Timing.read(file) for file in timing or ()]

    from vditc.pipeline.report_data import report_bundle, report_bundles
    from vditc.pipeline.report_notes import add_sensitivity, add_timing, analysed, check_report, check_timing

    if path is None or times or sensitivity:
        for bundle in opened:
            check_report(bundle)
    measured = [(next((b for b in opened if b.manifest.recipe["digest"] == one.recipe_digest), opened[0]), one) for one in times]
    for bundle, one in measured:  # all of them before anything is written
        check_timing(bundle, one)
    for file in sensitivity or ():
        analysed(opened, file)
    for bundle, one in measured:
        add_timing(bundle, one)
    for file in sensitivity or ():
        add_sensitivity(opened, file)
    if path is None:
        path = report_bundle(opened[0])
    else:
        report_bundles(opened, path)
    say(f"wrote {path}")
