"""`vditc sensitivity`: which layers a recipe hurts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from vditc.cli.app import RichProgress, app
from vditc.cli.options import (
    ConditioningOption,
    DeviceOption,
    ForceOption,
    GuidanceOption,
    JsonOption,
    LoraOption,
    MemoryOption,
    ModelArg,
    OutOption,
    PartOption,
    PromptsOption,
    RecipeOption,
    StepsOption,
    fresh,
    memory_bytes,
    read_prompts,
)
from vditc.cli.stages import say
from vditc.errors import InputError
from vditc.recipe import Recipe

SEED = 3  # of the clips that are looked at; the recipes calibrate with 0
ROWS = 20  # of the table


@app.command("sensitivity")
def sensitivity_command(
    model: ModelArg,
    recipe: RecipeOption,
    out: OutOption,
    clips: Annotated[int, typer.Option("--clips", min=1, help="how many trajectories; prompts take turns")] = 2,
    step_groups: Annotated[int, typer.Option("--step-groups", min=1, help="groups of steps that are looked at apart")] = 4,
    prompts: PromptsOption = None,
    conditioning: ConditioningOption = None,
    calibration: Annotated[Path | None, typer.Option("--calibration", help="of this recipe, if there is one already")] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    part: PartOption = None,
    lora: LoraOption = None,
    device: DeviceOption = "auto",
    memory: MemoryOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize one layer at a time as the recipe says, and measure what that does to the model's prediction, by groups of steps.

    Every step starts from the full-precision trajectory. With --conditioning all clips of the file are looked at. A killed run leaves
    OUT.work and goes on from it.
    """
    chosen, path, limit, given = Recipe.load(recipe), fresh(out, force), memory_bytes(memory), read_prompts(prompts)

    from vditc.calibrate.stage import calibrate
    from vditc.calibration import Calibration
    from vditc.pipeline.opened import OpenedModel
    from vditc.pipeline.sensitivity_report import analyse

    opened = OpenedModel.open(model, part=part, loras=lora or (), steps=steps, guidance_scale=guidance)
    saved = opened.saved(conditioning)
    looked_at = opened.sampled(saved or opened.prompted(clips, SEED, given))
    work, progress = path.with_name(path.name + ".work"), RichProgress()
    quantized = work / "calibration.safetensors"
    if calibration is not None:
        codes = Calibration.load(calibration)
        if codes.recipe_digest != chosen.digest:
            raise InputError(
                found=f"a calibration by recipe {codes.recipe}",
                wanted=f"recipe {chosen.name}",
                where=str(calibration),
                fix="leave --calibration out, or give that of this recipe",
            )
    else:
        data = saved or opened.prompted(chosen.calibration_prompts, chosen.calibration_seed, given)
        calibrate(
            opened.sampled(data),
            recipe=chosen,
            out=quantized,
            work=work,
            progress=progress,
            device=device,
            memory=limit,
        )
        codes = Calibration.load(quantized)
    found = analyse(
        looked_at,
        calibration=codes,
        groups=step_groups,
        out=path,
        work=work,
        progress=progress,
        device=device,
    )
    shutil.rmtree(work, ignore_errors=True)
    if as_json:
        print(json.dumps(found))
        return
    groups = [f"{first}-{last}" for first, last in found["step_groups"]]
    wide = max((len(row["layer"]) for row in found["layers"]), default=0)
    say(f"{'layer':{wide}}  {'all steps':>9}  {'  '.join(f'{g:>8}' for g in groups)}  {'own':>8}")
    for row in found["layers"][:ROWS]:
        own = "-" if row["own_error"] is None else f"{row['own_error']:.2e}"
        say(f"{row['layer']:{wide}}  {row['error']:9.2e}  {'  '.join(f'{e:8.2e}' for e in row['errors'])}  {own:>8}")
    say(f"wrote {path}: {len(found['layers'])} layers, the worst first; squared errors relative to the prediction; own: to the layer's")
