"""`vditc demo`: the main job on the bundled model."""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from vditc.cli.app import RichProgress, app
from vditc.cli.options import DeviceOption, ForceOption, OutOption, fresh
from vditc.cli.stages import say
from vditc.recipe import Recipe
from vditc.target import Target

RECIPES = ("w8a8", "w4a16")
TARGETS = ("rtx-ada", "cpu")


@app.command("demo")
def demo_command(
    out: OutOption = Path("demo-out"),
    clips: Annotated[int, typer.Option(help="clips sampled with every model", min=1)] = 8,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Compile the bundled model with w8a8 and w4a16 for rtx-ada and cpu; write bundles, clips and a report that compares them."""
    root = fresh(out, force, folder=True)

    from vditc.clips import side_by_side, write_pixels
    from vditc.pipeline.compile import compile_bundle
    from vditc.pipeline.job import Job
    from vditc.pipeline.report_data import clips_of, report_bundles

    bundles = []
    with tempfile.TemporaryDirectory() as references:
        for name in RECIPES:
            job = Job(
                model_dir=Path(str(files("vditc") / "assets" / "digits")),
                recipe=Recipe.load(name),
                targets=tuple(Target.load(t) for t in TARGETS),
                out=root / f"{name}.bundle",
                clips=clips,
                device=device,
                force=force,
                references=Path(references),  # both recipes are compared with the same full-precision clips
            )
            say(f"compiling {job.out}")
            bundles.append(compile_bundle(job, RichProgress()))
    report_bundles(bundles, root / "report" / "index.html")
    quality = bundles[0].manifest.quality
    assert quality is not None, "compile_bundle verifies"
    shown = {"full precision": clips_of(bundles[0], "full_precision")} | {
        b.manifest.recipe["name"]: clips_of(b, "quantized") for b in bundles
    }
    for index, prompt in enumerate(quality["prompts"]):
        frames = side_by_side({name: c[index] for name, c in shown.items() if c is not None})
        for suffix in (".mp4", ".gif"):
            write_pixels(root / "clips" / f"{prompt.replace(' ', '-')}{suffix}", frames)
    for bundle in bundles:
        ours, base = bundle.manifest.quality, quality["full_precision"]
        assert ours is not None, "compile_bundle verifies"
        q = ours["quantized"]
        say(
            f"{bundle.manifest.recipe['name']}: {bundle.manifest.mean_bits:.2f} bits per weight, PSNR {q['psnr_db']:.1f} dB, "
            f"digits read {q['digit_accuracy']:.0%} (full precision {base['digit_accuracy']:.0%}), "
            f"directions {q['motion_accuracy']:.0%} ({base['motion_accuracy']:.0%})"
        )
    say(f"see {root / 'report' / 'index.html'}")
