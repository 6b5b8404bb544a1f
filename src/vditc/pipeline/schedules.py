"""Which solver walks a model, and the table of one-step moves over the same noise levels and times that calibration walks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vditc.bundle import Bundle
from vditc.checkpoint import read_json
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.runtimes.schedulers.options import plain
from vditc.runtimes.schedulers.pipelines import Given
from vditc.runtimes.schedulers.registry import CLASSES, scheduler_of, solver_config
from vditc.runtimes.schedulers.walk import Walk
from vditc.runtimes.step_table import StepTable
from vditc.schedule import Schedule, Scheduler

Size = tuple[int, int, int]  # of a latent clip: frames, height, width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver:
    """A scheduler of diffusers that vditc has in numpy, with its options, and what its pipeline hands it."""

    config: Mapping[str, Any]  # `_class_name` included
    pipeline: str | None = None
    patch: int = 1  # latents of a token
    in_place_of: str | None = None  # the model's own scheduler, where that is another class
    where: str = "scheduler_config.json"

    @classmethod
    def of_config(cls, config: Mapping[str, Any], where: str = "scheduler_config.json", solver: str | None = None, **more: Any) -> Solver:
        """The scheduler that walks for a configuration, or `solver` over the same noise levels; InputError for one that cannot."""
        chosen, own = solver_config(config, solver, where), str(config.get("_class_name"))
        return cls(config=chosen, where=where, in_place_of=None if chosen["_class_name"] == own else own, **more)

    @classmethod
    def of_model(cls, source: ModelDir | Path) -> Solver:
        """That of a model directory; from its path alone no clip size can be followed."""
        folder = source if isinstance(source, Path) else source.path
        file, index = folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"
        pipeline = read_json(index).get("_class_name") if index.exists() else None
        return cls.of_config(
            read_json(file), str(file), pipeline=pipeline, patch=1 if isinstance(source, Path) else patch_of(source.config)
        )

    def walk(self, steps: int, size: Sequence[int] | None = None) -> Walk:
        """In so many steps, for latents of `size` (frames, height, width)."""
        whole = None if size is None else (int(size[0]), int(size[1]), int(size[2]))
        return scheduler_of(self.config, steps, Given(self.pipeline, whole, self.patch), self.where)

    def shifted(self, shift: float) -> Solver:
        """The same with a fixed shift of its noise levels; InputError where it has none."""
        known = CLASSES[self.config["_class_name"]][1]
        name = "shift" if "shift" in known else "flow_shift" if self.config.get("use_flow_sigmas") else None
        if name is None or not (math.isfinite(shift) and shift > 0):
            raise InputError(
                found=f"--shift {shift:g} of {self.config['_class_name']}",
                wanted="a shift above 0, of a solver of flows",
                where=self.where,
                fix="leave out --shift" if name is None else "choose another shift",
            )
        return dataclasses.replace(self, config={**self.config, name: float(shift), "use_dynamic_shifting": False})

    def to_json(self) -> dict[str, Any]:
        """Plain data, for `of_json`."""
        about: dict[str, Any] = {
            "class": self.config["_class_name"],
            "config": plain(self.config),
            "pipeline": self.pipeline,
            "patch": self.patch,
        }
        return about | ({"in_place_of": self.in_place_of} if self.in_place_of else {})

    @classmethod
    def of_json(cls, data: Mapping[str, Any], where: str) -> Solver:
        """Read what `to_json` wrote; InputError for a class that this vditc does not have."""
        config = {"_class_name": data["class"], **data["config"]}
        found = cls.of_config(config, where, pipeline=data.get("pipeline"), patch=data.get("patch", 1))
        return dataclasses.replace(found, in_place_of=data.get("in_place_of"))


def patch_of(config: Mapping[str, Any]) -> int:
    """Latents that one token of a transformer covers, from its config.json."""
    patch = config.get("patch_size") or 1
    return math.prod(patch) if isinstance(patch, list | tuple) else int(patch) ** 2 * int(config.get("patch_size_t") or 1)


def load_schedule(model_dir: Path, steps: int) -> Schedule:
    """The table of a model directory for a number of steps; InputError for a scheduler that vditc does not have, or no such walk."""
    return Solver.of_model(model_dir).walk(steps).schedule


def schedule_of(config: Mapping[str, Any], steps: int, where: str = "scheduler_config.json") -> Schedule:
    """The same of a configuration, `_class_name` included."""
    return Solver.of_config(config, where).walk(steps).schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class WalkOptions:
    """What a user may ask of the walk of a bundle; None leaves it as it was compiled."""

    solver: str | None = None  # class of diffusers
    steps: int | None = None
    shift: float | None = None

    @property
    def asked(self) -> str:
        """The options that were given."""
        return " ".join(f"--{f.name} {v}" for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None)


AS_COMPILED = WalkOptions()


def bundle_schedule(bundle: Bundle) -> Schedule:
    """The table that the bundle was calibrated with; its step tables fit no other times."""
    return Schedule.from_json(bundle.manifest.sampling["schedule"])


def bundle_scheduler(bundle: Bundle, backend: str | None, size: Sequence[int], options: WalkOptions = AS_COMPILED) -> Scheduler:
    """What walks a bundle's model on clips of `size` (frames, height, width): its solver, or a table in bundles without one.

    `backend`: a target, or None for the portable graph. InputError for times that tables of its graph were not made for.
    """
    about, where = bundle.manifest.sampling.get("solver"), f"bundle {bundle.path}"
    if about is None:
        if options.asked:
            raise InputError(
                found=f"{options.asked} for a bundle without a solver", wanted="none of these", where=where, fix="compile the model again"
            )
        return bundle_schedule(bundle)
    solver = Solver.of_json(about, where)
    if options.solver is not None:
        chosen = Solver.of_config(solver.config, where, options.solver, pipeline=solver.pipeline, patch=solver.patch)
        solver = dataclasses.replace(chosen, in_place_of=solver.in_place_of)
    if options.shift is not None:
        solver = solver.shifted(options.shift)
    walk = solver.walk(bundle.manifest.sampling["steps"] if options.steps is None else options.steps, size)
    inputs = bundle.manifest.inputs if backend is None else bundle.manifest.targets[backend]["inputs"]
    if any(spec["name"] == "step" for spec in inputs):
        StepTable(tuple(bundle.manifest.sampling["schedule"]["timesteps"]), where).check_times(walk.timesteps.tolist())
    return walk
