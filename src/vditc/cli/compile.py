"""`vditc compile`: the main job."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vditc.cli.app import RichProgress, app, console
from vditc.cli.options import (
    ConditioningOption,
    DeviceOption,
    EngineOption,
    ForceOption,
    Guidance2Option,
    GuidanceOption,
    JsonOption,
    KeepTimePathOption,
    Lora2Option,
    LoraOption,
    ModelArg,
    OutOption,
    PartOption,
    ProfileOption,
    PromptsOption,
    RecipeOption,
    ResumeOption,
    SegmentsOption,
    SizeOption,
    StepsOption,
    engine_texts,
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
    size: SizeOption = "",
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
    engine: EngineOption = None,
    segments: SegmentsOption = None,
    fallback: Annotated[
        bool,
        typer.Option("--fallback", help="layers that a target does not compute as calibrated: codes to weights alone to floating point"),
    ] = False,
    parts: Annotated[
        str,
        typer.Option(
            help="of the pipeline that go into the bundle: all (text encoder and VAE decoder, where vditc knows them) or transformer"
        ),
    ] = "all",
    text_encoder_dtype: Annotated[
        str, typer.Option(help="matrices of the text encoder: model (the checkpoint's type), w8 or fp8 (8 bits, a scale for every channel)")
    ] = "model",
    vae_tiles: Annotated[bool, typer.Option("--vae-tiles", help="decode in the VAE's spatial tiles: less memory, other numbers")] = False,
    device: DeviceOption = "auto",
    resume: ResumeOption = False,
    force: ForceOption = False,
    recipe_2: Annotated[str | None, typer.Option("--recipe-2", help="of the second of two experts [default: that of the first]")] = None,
    guidance_2: Guidance2Option = None,
    lora_2: Lora2Option = None,
    as_json: JsonOption = False,
) -> None:
    """Calibrate, export, lower, build and verify MODEL_DIR; write a bundle. A model of two experts is compiled whole, unless --part."""
    chosen, targets = Recipe.load(recipe), tuple(Target.load(t) for t in target)

    from vditc.pipeline.compile import compile_bundle
    from vditc.pipeline.job import Job
    from vditc.pipeline.parts import PartChoice
    from vditc.pipeline.report_data import report_bundle

    job = Job(
        model_dir=model,
        recipe=chosen,
        targets=targets,
        out=out,
        profile=profile,
        steps=steps,
        guidance_scale=guidance,
        size=size,
        exported=PartChoice(parts=parts, text_encoder=text_encoder_dtype, tiled=vae_tiles),
        prompts=read_prompts(prompts),
        conditioning=conditioning,
        part=part,
        loras=tuple(lora or ()),
        clips=clips,
        gate=gate,
        keep_time_path=keep_time_path,
        plugins=plugins,
        engine=engine_texts(engine, segments),
        fallback=fallback,
        device=device,
        resume=resume,
        force=force,
        recipe_2=None if recipe_2 is None else Recipe.load(recipe_2),
        guidance_scale_2=guidance_2,
        loras_2=tuple(lora_2 or ()),
    )
    bundle = compile_bundle(job, RichProgress())
    page = report_bundle(bundle)
    if as_json:
        print(json.dumps({"bundle": str(bundle.path), "quality": bundle.manifest.quality, "gate": bundle.manifest.gate}))
    else:
        console.print(f"wrote {bundle.path}; see {page}", markup=False, highlight=False, soft_wrap=True)
