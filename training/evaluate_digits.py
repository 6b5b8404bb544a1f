"""Sample fresh prompts from a digits model in full precision and print how good the clips are, as one JSON object.

python training/evaluate_digits.py src/vditc/assets/digits --count 200 --steps 16 --guidance 3 --out sheet.png
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vditc import clips, digits, metrics
from vditc.codec import PixelShuffleCodec
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.pipeline.components import Components
from vditc.pipeline.schedules import Solver
from vditc.sampling import Denoiser, Feeds, sample

Array = npt.NDArray[Any]
SCHEDULERS = {"euler": "FlowMatchEulerDiscreteScheduler", "unipc": "UniPCMultistepScheduler"}
SHEET_ROWS = 40  # more would make an image that nobody can look at


def denoiser(source: ModelDir) -> Denoiser:
    """The full-precision torch model."""
    adapter = adapter_for(source)
    model = adapter.load(source)

    def denoise(feeds: Feeds, step: int) -> Array:
        with torch.inference_mode():
            velocity = adapter.forward(model, {name: torch.from_numpy(array) for name, array in feeds.items()})
        return np.asarray(velocity.numpy())

    return denoise


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model", type=Path, help="diffusers directory")
    ask.add_argument("--count", type=int, default=200, help="clips to sample")
    ask.add_argument("--seed", type=int, default=1234, help="of the prompts; clip i starts from noise seed + i")
    ask.add_argument("--steps", type=int, help="default: the model's")
    ask.add_argument("--guidance", type=float, help="default: the model's")
    ask.add_argument("--scheduler", choices=list(SCHEDULERS), default="euler")
    ask.add_argument("--batch", type=int, default=10, help="clips sampled at once")
    ask.add_argument("--out", type=Path, help=f"contact sheet (PNG) of the first {SHEET_ROWS} clips")
    args = ask.parse_args()

    source = ModelDir.open(args.model)
    defaults = source.sampling
    if defaults is None or defaults.semantics != "digits":
        raise InputError(
            found="no semantics = digits", wanted="a model of moving digits", where=str(args.model / "sampling.json"), fix="choose another"
        )
    steps, guidance = args.steps or defaults.steps, defaults.guidance_scale if args.guidance is None else args.guidance
    components, codec = Components.open(args.model), PixelShuffleCodec.load(args.model / "vae")
    captions, shape = (
        digits.sample_captions(args.count, args.seed),
        (source.config["out_channels"], defaults.frames, defaults.height, defaults.width),
    )
    solver = Solver.of_model(source)
    scheduler = Solver.of_config(solver.config, solver.where, SCHEDULERS[args.scheduler]).walk(steps)
    denoise, began, parts = denoiser(source), time.monotonic(), []
    conditioning = components.encode(
        tuple(map(str, captions)), tuple(args.seed + i for i in range(args.count)), shape, defaults.extra_channels
    )
    for first in range(0, args.count, args.batch):
        chosen = conditioning.clips(range(first, min(first + args.batch, args.count)), adapter_for(source).inputs(source))
        parts.append(codec.decode(sample(denoise, scheduler, chosen, guidance)))
    seconds, sampled = time.monotonic() - began, np.concatenate(parts)

    summary = metrics.evaluate(sampled, captions)
    result = {name: getattr(summary, name) for name in ("digit_accuracy", "motion_accuracy", "flicker")}
    result |= {"count": args.count, "scheduler": args.scheduler, "steps": steps, "guidance": guidance, "seconds": round(seconds, 1)}
    print(json.dumps(result))
    if args.out:
        shown = [f"{s.prompt}: {s.digit} {s.direction}" for s in summary.clips[:SHEET_ROWS]]
        clips.write_sheet(args.out, sampled[:SHEET_ROWS], shown)


if __name__ == "__main__":
    main()
