"""`vditc compile`: the main job."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vditc.cli.app import RichProgress, app, console
from vditc.cli.options import (
    ConditioningOption,
    DeviceOption,
    ForceOption,
    GuidanceOption,
    JsonOption,
    KeepTimePathOption,
    LoraOption,
    ModelArg,
    OutOption,
    PartOption,
    ProfileOption,
    PromptsOption,
    RecipeOption,
    ResumeOption,
    StepsOption,
    read_prompts,
)
from vditc.recipe import Recipe
from vditc.target import Target


@app.command("compile")
def compile_command(
    model: ModelArg,
    recipe: RecipeOption,
    target: Annotated[list[str], typer.Option("--target", help="built-in target or a .toml file; repeat for several")],
    out: OutOption,
    profile: ProfileOption = "",
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    prompts: PromptsOption = None,
    conditioning: ConditioningOption = None,
    part: PartOption = None,
    lora: LoraOption = None,
    clips: Annotated[int, typer.Option(help="clips sampled for the quality gate")] = 8,
    gate: Annotated[bool, typer.Option(help="exit 3 when the quality is below the recipe's gate")] = True,
    keep_time_path: KeepTimePathOption = False,
    plugins: Annotated[
        str,
        typer.Option(help="layers of few bits by the plugin library: auto (where it is there), on (build it if it is not) or off (Q/DQ)"),
    ] = "auto",
    device: DeviceOption = "auto",
    resume: ResumeOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Calibrate, export, lower, build and verify MODEL_DIR; write a bundle."""
    chosen, targets = Recipe.load(recipe), tuple(Target.load(t) for t in target)

    from vditc.pipeline.compile import Job, compile_bundle
    from vditc.pipeline.report_data import report_bundles

    job = Job(
        model_dir=model,
        recipe=chosen,
        targets=targets,
        out=out,
        profile=profile,
        steps=steps,
        guidance_scale=guidance,
        prompts=read_prompts(prompts),
        conditioning=conditioning,
        part=part,
        loras=tuple(lora or ()),
        clips=clips,
        gate=gate,
        keep_time_path=keep_time_path,
        plugins=plugins,
        device=device,
        resume=resume,
        force=force,
    )
    bundle = compile_bundle(job, RichProgress())
    report_bundles([bundle], bundle.path / "report" / "index.html")
    if as_json:
        print(json.dumps({"bundle": str(bundle.path), "quality": bundle.manifest.quality, "gate": bundle.manifest.gate}))
    else:
        console.print(f"wrote {bundle.path}; see {bundle.path / 'report' / 'index.html'}", markup=False, highlight=False, soft_wrap=True)
