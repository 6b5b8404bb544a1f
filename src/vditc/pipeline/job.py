"""What `vditc compile` is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vditc.pipeline.opened import ALL_PARTS
from vditc.pipeline.parts import PartChoice
from vditc.recipe import Recipe
from vditc.target import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a bundle depends on, and how to go about it."""

    model_dir: Path
    recipe: Recipe
    targets: tuple[Target, ...]
    out: Path
    profile: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    size: str = ""  # a preset, or FRAMESxHEIGHTxWIDTH
    exported: PartChoice = ALL_PARTS  # what else of the pipeline goes into the bundle
    prompts: tuple[str, ...] = ()
    conditioning: Path | None = None
    part: str | None = None  # of a model with two experts: this one alone
    loras: tuple[str, ...] = ()  # FILE or FILE:SCALE, fused in this order
    clips: int = 8  # sampled with both models for the quality gate
    gate: bool = True
    keep_time_path: bool = False
    plugins: str = "auto"  # or on, off: vditc.pipeline.plugin_choice
    engine: tuple[str, ...] = ()  # [TARGET:]OPTIONS of building engines: vditc.build_options
    fallback: bool = False  # layers that do not land go down the ladder of vditc.pipeline.fallback
    device: str = "cpu"
    resume: bool = False
    force: bool = False
    references: Path | None = None  # where full-precision clips are kept between jobs on the same model
    # Of the second of two experts, where they are not those of the first; LoRAs never are.
    recipe_2: Recipe | None = None
    guidance_scale_2: float | None = None
    loras_2: tuple[str, ...] = ()
