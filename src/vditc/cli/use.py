"""`vditc run | verify | eval`: a bundle at work."""

from __future__ import annotations

import enum
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from vditc.build_options import byte_count
from vditc.bundle import Bundle
from vditc.cli.app import RichProgress, app
from vditc.cli.lists import show
from vditc.cli.options import (
    BundleArg,
    ConditioningOption,
    DeviceOption,
    ForceOption,
    Guidance2Option,
    JsonOption,
    Lora2Option,
    LoraOption,
    OutOption,
    PromptsOption,
    fresh,
    read_prompts,
)
from vditc.cli.stages import say


class GuidancePasses(enum.Enum):
    """How the two branches of guidance are run."""

    AUTO = "auto"
    BATCHED = "batched"
    TWO = "two"


StepCacheOption = Annotated[
    str | None,
    typer.Option("--step-cache", metavar="THRESHOLD|N%", help="leave out steps whose prediction would change little [default: none]"),
]
AgainstOption = Annotated[Path, typer.Option("--against", metavar="MODEL_DIR", help="the full-precision model")]


@app.command("run")
def run_command(
    bundle: BundleArg,
    out: OutOption,
    prompt: Annotated[str, typer.Option(help="what the clip shows")] = "",
    negative_prompt: Annotated[str, typer.Option(help="what the clip is to lead away from")] = "",
    conditioning: ConditioningOption = None,
    seed: Annotated[int | None, typer.Option(help="of the noise [default: 0, or those of the conditioning]")] = None,
    size: Annotated[str, typer.Option(help="a preset, or FRAMESxHEIGHTxWIDTH in frames and pixels [default: the bundle's]")] = "",
    backend: Annotated[str, typer.Option(help="onnxruntime, or the name of a target of the bundle whose engine runs")] = "onnxruntime",
    guidance: Annotated[float | None, typer.Option("--guidance", help="guidance scale [default: the bundle's]")] = None,
    embedded_guidance: Annotated[
        float | None, typer.Option("--embedded-guidance", help="guidance scale that a model with such an input is told [default: its own]")
    ] = None,
    passes: Annotated[GuidancePasses, typer.Option("--guidance-passes", help="both branches in one run, or in two")] = GuidancePasses.AUTO,
    solver: Annotated[str, typer.Option("--solver", help="auto, the model's own, or a scheduler class of diffusers")] = "auto",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="sampling steps, where the graph has no table of its own")] = None,
    shift: Annotated[float | None, typer.Option("--shift", help="of the noise levels of a flow, likewise")] = None,
    step_cache: StepCacheOption = None,
    guidance_2: Guidance2Option = None,
    weight_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="of the GPU, for the weights of an engine that streams them: 4GiB [default: as built]"),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Sample a clip: OUT is .mp4, .gif, .y4m or animated .png, or .safetensors for latents. Needs no PyTorch."""
    opened, path = Bundle.open(bundle), fresh(out, force)

    from vditc.pipeline.schedules import WalkOptions
    from vditc.pipeline.use import sample_bundle
    from vditc.pipeline.walk_plan import RunOptions

    options = RunOptions(
        walk=WalkOptions(solver=None if solver == "auto" else solver, steps=steps, shift=shift),
        guidance=guidance,
        guidance_2=guidance_2,
        embedded_guidance=embedded_guidance,
        passes=None if passes is GuidancePasses.AUTO else passes.value,
        step_cache=step_cache,
    )
    sample_bundle(
        opened,
        path,
        prompt,
        conditioning,
        seed,
        backend,
        RichProgress(),
        options,
        negative=negative_prompt,
        size=size,
        weight_budget=None if weight_budget is None else byte_count(weight_budget, "--weight-budget"),
    )
    say(f"wrote {path}")


@app.command("verify")
def verify_command(bundle: BundleArg, as_json: JsonOption = False) -> None:
    """Check every file of a bundle: hashes, the graphs' dialect, the integer codes against model.onnx; then its quality gate."""
    opened = Bundle.open(bundle)

    from vditc.pipeline.use import check_bundle

    found = check_bundle(opened)
    if as_json:
        print(json.dumps(found))
    else:
        say(f"{bundle}: {found['files']} files intact, {found['layers']} layers hold their codes, gate passed")


@app.command("eval")
def eval_command(
    bundle: BundleArg,
    against: AgainstOption,
    count: Annotated[int, typer.Option(help="fresh clips", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="of prompts and noise")] = 7,
    prompts: PromptsOption = None,
    lora: LoraOption = None,
    lora_2: Lora2Option = None,
    backend: Annotated[str, typer.Option(help="onnxruntime, reference (quantized PyTorch), or a target of the bundle")] = "onnxruntime",
    work: Annotated[Path | None, typer.Option(help="keeps finished clips here, so that a killed run goes on")] = None,
    device: DeviceOption = "auto",
    step_cache: StepCacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle's clips with the full-precision model's: same prompts, same noise."""
    opened = Bundle.open(bundle)

    from vditc.pipeline.use import evaluate_bundle

    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = evaluate_bundle(
            opened,
            against,
            tuple(lora or ()),
            count,
            seed,
            read_prompts(prompts),
            backend,
            work or Path(scratch),
            device,
            RichProgress(),
            tuple(lora_2 or ()),
            step_cache,
        )
    if as_json:
        print(json.dumps(found))
        return
    show([{"clips": name, **_numbers(found[name])} for name in ("full_precision", "quantized")], False)
    if cached := found.get("step_cache"):
        names = {"full_precision": "with step cache", "without": "… against the bundle without"}
        show([{"clips": title, **_numbers(cached[name])} for name, title in names.items()], False)
        say(f"step cache, threshold {cached['threshold']:.4g}: {cached['skipped']:.0%} of the model's runs left out")
    say("relative error after each step: " + " ".join(f"{e:.3f}" for e in found["step_error"]))


def _numbers(scores: dict[str, Any]) -> dict[str, str]:
    return {
        k: f"{v:.4g}" if isinstance(v, float) else "-" if v is None else str(v) for k, v in scores.items() if not isinstance(v, list | dict)
    }
