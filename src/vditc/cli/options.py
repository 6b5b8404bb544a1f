"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vditc.errors import InputError

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="model in diffusers format")]
BundleArg = Annotated[Path, typer.Argument(metavar="BUNDLE", help="bundle that `vditc compile` wrote")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="built-in recipe or a .toml file")]
PartOption = Annotated[str | None, typer.Option("--part", help="one expert of a model with two: transformer or transformer_2")]
TargetOption = Annotated[str, typer.Option("--target", help="built-in target or a .toml file")]
OutOption = Annotated[Path, typer.Option("-o", "--out", help="what to write")]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="sampling steps [default: the model's]")]
KeepTimePathOption = Annotated[
    bool, typer.Option("--keep-time-path", help="leave the timestep an input, instead of tables for the steps of one schedule")
]
GuidanceOption = Annotated[float | None, typer.Option("--guidance", help="classifier-free guidance scale [default: the model's]")]
Guidance2Option = Annotated[
    float | None, typer.Option("--guidance-2", help="of the second of two experts [default: the model's, else that of the first]")
]
Lora2Option = Annotated[
    list[str] | None, typer.Option("--lora-2", metavar="FILE[:SCALE]", help="LoRA to fuse with the second of two experts")
]
PromptsOption = Annotated[Path | None, typer.Option("--prompts", help="text file, one prompt a line")]
ConditioningOption = Annotated[Path | None, typer.Option("--conditioning", help="saved conditionings (safetensors)")]
LoraOption = Annotated[list[str] | None, typer.Option("--lora", metavar="FILE[:SCALE]", help="LoRA to fuse; repeat for several")]
SizeOption = Annotated[str, typer.Option("--size", help="of the clip: 480p81, or 49x480x720 frames and pixels [default: the model's]")]
ProfileOption = Annotated[str, typer.Option("--profile", help="sizes to serve: 480p81,batch=1:2:2 or frames=1f:41f:81f,height=480px")]
EngineOption = Annotated[
    list[str] | None,
    typer.Option("--engine", metavar="[TARGET:]OPTIONS", help="how engines are built: level=5,workspace=8GiB,refit (docs/engines.md)"),
]
SegmentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--segments",
        metavar="[TARGET:]N|auto",
        help="build N engines of whole blocks one by one, run them as one; auto: as few as the builder's memory allows",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:N]")]
MemoryOption = Annotated[float | None, typer.Option("--memory", help="GiB that weights may take [default: half of what is free]")]
ForceOption = Annotated[bool, typer.Option("--force", help="replace what is there")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable output")]


def engine_texts(engine: list[str] | None, segments: list[str] | None) -> tuple[str, ...]:
    """Of --engine and --segments: `[TARGET:]OPTIONS` as vditc.build_options reads them."""
    cuts = [text.rpartition(":") for text in segments or ()]
    return (*(engine or ()), *(f"{target}{colon}segments={count}" for target, colon, count in cuts))


def memory_bytes(gibibytes: float | None) -> int | None:
    """Of --memory; None without it."""
    if gibibytes is not None and not 0 < gibibytes < 2**20:
        raise InputError(found=f"{gibibytes:g} GiB", wanted="more than 0", where="--memory", fix="say how many GiB weights may take")
    return None if gibibytes is None else int(gibibytes * 2**30)


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """Prompts of a file, one a line, blank lines skipped."""
    if path is None:
        return ()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(found=str(error), wanted="a text file", where="--prompts", fix="check the path") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            found=f"bytes that are not UTF-8 ({error.reason})",
            wanted="UTF-8 text",
            where=f"{path}, line {line}",
            fix="save the file as UTF-8",
        ) from error
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise InputError(found="no prompt", wanted="one prompt a line", where=str(path), fix="write at least one")
    return prompts


def fresh(path: Path, force: bool, *, folder: bool = False, option: str = "-o") -> Path:
    """A path that a file, or a `folder`, may be written to; InputError when something is there and `force` is not given."""
    if path.exists() and not force:
        raise InputError(
            found=f"{path} exists", wanted="a path that does not exist", where=option, fix="choose another, or --force to replace it"
        )
    if path.exists() and path.is_dir() != folder:
        raise InputError(
            found=f"{path}, a {'folder' if path.is_dir() else 'file'}",
            wanted=f"a {'folder' if folder else 'file'}, or nothing there",
            where=option,
            fix="choose another path",
        )
    there = next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(found=f"{there}, which cannot be written to", wanted="a folder", where=option, fix="choose another path")
    return path
