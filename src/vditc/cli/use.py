"""`vditc run | verify | eval`: a bundle at work."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from vditc.bundle import Bundle
from vditc.cli.app import RichProgress, app
from vditc.cli.lists import show
from vditc.cli.options import (
    BundleArg,
    ConditioningOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    LoraOption,
    OutOption,
    PromptsOption,
    fresh,
    read_prompts,
)
from vditc.cli.stages import say

AgainstOption = Annotated[Path, typer.Option("--against", metavar="MODEL_DIR", help="the full-precision model")]


@app.command("run")
def run_command(
    bundle: BundleArg,
    out: OutOption,
    prompt: Annotated[str, typer.Option(help="what the clip shows")] = "",
    conditioning: ConditioningOption = None,
    seed: Annotated[int, typer.Option(help="of the noise")] = 0,
    backend: Annotated[str, typer.Option(help="onnxruntime, or the name of a target of the bundle whose engine runs")] = "onnxruntime",
    guidance: Annotated[float | None, typer.Option("--guidance", help="guidance scale [default: the bundle's]")] = None,
    force: ForceOption = False,
) -> None:
    """Sample a clip: OUT is .mp4 or .gif, or .safetensors for latents."""
    opened, path = Bundle.open(bundle), fresh(out, force)

    from vditc.pipeline.use import sample_bundle

    sample_bundle(opened, path, prompt, conditioning, seed, backend, guidance, RichProgress())
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
    backend: Annotated[str, typer.Option(help="onnxruntime, reference (quantized PyTorch), or a target of the bundle")] = "onnxruntime",
    work: Annotated[Path | None, typer.Option(help="keeps finished clips here, so that a killed run goes on")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle's clips with the full-precision model's: same prompts, same noise."""
    opened = Bundle.open(bundle)

    from vditc.pipeline.use import evaluate_bundle

    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = evaluate_bundle(
            opened, against, tuple(lora or ()), count, seed, read_prompts(prompts), backend, work or Path(scratch), device, RichProgress()
        )
    if as_json:
        print(json.dumps(found))
        return
    show([{"clips": name, **_numbers(found[name])} for name in ("full_precision", "quantized")], False)
    say("relative error after each step: " + " ".join(f"{e:.3f}" for e in found["step_error"]))


def _numbers(scores: dict[str, Any]) -> dict[str, str]:
    return {
        k: f"{v:.4g}" if isinstance(v, float) else "-" if v is None else str(v) for k, v in scores.items() if not isinstance(v, list | dict)
    }
