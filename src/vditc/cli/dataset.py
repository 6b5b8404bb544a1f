"""`vditc dataset`: clips of the full-precision model, to train a quantized one on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from vditc.cli.app import app, progress_of
from vditc.cli.options import (
    ConditioningOption,
    DeviceOption,
    ForceOption,
    GuidanceOption,
    LoraOption,
    MemoryOption,
    ModelArg,
    OutOption,
    PartOption,
    PromptsOption,
    StepsOption,
    fresh,
    memory_bytes,
    read_prompts,
)
from vditc.cli.stages import say
from vditc.errors import InputError

SEED = 2  # the recipes calibrate with 0


class Precision(StrEnum):
    """Type of the numbers in the files."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


@app.command("dataset")
def dataset_command(
    model: ModelArg,
    out: OutOption,
    prompts: PromptsOption = None,
    clips: Annotated[int | None, typer.Option("--clips", min=1, help="how many; prompts take turns [default: 64]")] = None,
    conditioning: ConditioningOption = None,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="clips of a file")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of prompts and noise")] = SEED,
    precision: Annotated[Precision, typer.Option("--dtype", help="of the numbers in the files")] = Precision.FLOAT16,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    part: PartOption = None,
    lora: LoraOption = None,
    device: DeviceOption = "auto",
    memory: MemoryOption = None,
    force: ForceOption = False,
) -> None:
    """Sample a training set from the full-precision model: the folder OUT of finished latents and what the model was told.

    With --conditioning the clips are those of the file. A killed run leaves OUT.partial and goes on from it. torchrun shares the work.
    """
    if conditioning is not None and (clips is not None or prompts is not None):
        raise InputError(
            found="--conditioning, and --clips or --prompts",
            wanted="one source of clips",
            where="vditc dataset",
            fix="leave out the others: the clips are those of the file",
        )
    path, limit, given = fresh(out, force, folder=True), memory_bytes(memory), read_prompts(prompts)

    from vditc.calibrate.dataset import sample_dataset
    from vditc.calibrate.ranks import joined_ranks
    from vditc.pipeline.opened import OpenedModel

    with joined_ranks() as ranks:
        opened = OpenedModel.open(model, part=part, loras=lora or (), steps=steps, guidance_scale=guidance)
        found = sample_dataset(
            opened.sampled(opened.saved(conditioning) or opened.prompted(64 if clips is None else clips, seed, given)),
            out=path,
            progress=progress_of(ranks.rank),
            shard_size=shard_size,
            dtype=precision.value,
            device=device,
            memory=limit,
            ranks=ranks,
        )
    if found is not None:
        say(f"wrote {path}: {len(found)} clips in {len(found.shards)} shards")
