"""The figures of one row: calibrate in a process of its own, then sample and compare with the full-precision model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rows import Row

from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.files import data_digest, write_text
from vditc.numerics import short
from vditc.pipeline.opened import OpenedModel
from vditc.pipeline.quality import Trajectories, compare, sample_clips
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.reference import ReferenceModel
from vditc.safetensors_file import read_header, write_tensors

ASSETS = Path(__file__).resolve().parents[2] / "src/vditc/assets"
VDITC = Path(sys.executable).with_name("vditc")
FIRST_SEED = 7_000  # of prompts and noise; calibrations use others
DIGITS = 5  # of the figures
FORCED_CLIPS = 4  # of each seed, for output_mse
BAD_INPUT = 2  # exit status of `vditc`
FIGURES = ("digit_accuracy", "motion_accuracy", "flicker", "psnr", "ssim", "final_latent_error", "output_mse")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A row's calibration and what it took."""

    calibration: Calibration
    seconds: float
    cpu_seconds: float  # of all its threads: what hardly changes on a loaded machine
    peak_rss_bytes: int


class Study:
    """One model, and the full-precision clips that its rows are compared with."""

    def __init__(self, model: str, clips: int, seeds: int, work: Path) -> None:
        self.model, self.clips, self.seeds, self.work = model, clips, range(FIRST_SEED, FIRST_SEED + seeds), work
        self.path = ASSETS / model
        self.opened = OpenedModel.open(self.path)
        self.source, self.adapter, self.sampling = self.opened.source, self.opened.adapter, self.opened.sampling
        self.schedule, self.specs = self.opened.schedule(), self.adapter.inputs(self.source)
        self.exact = ReferenceModel(self.adapter, self.source, None)

    def calibrate(self, row: Row, *, again: bool) -> Calibrated:
        """By `vditc calibrate`, measured; or, unless `again`, what an earlier run left in the work folder.

        InputError when `vditc calibrate` refuses the recipe.
        """
        folder = self.work / "calibrations" / self.model
        folder.mkdir(parents=True, exist_ok=True)
        recipe = row.write_recipe(folder)
        own = {"recipe": Recipe.load(recipe).digest, "model": self.source.digest}
        out, note = folder / f"{row.name}.safetensors", folder / f"{row.name}.json"
        known = json.loads(note.read_text()) if note.exists() and out.exists() else {}
        if again or any(known.get(key) != value for key, value in own.items()):
            note.unlink(missing_ok=True)
            shutil.rmtree(out.with_name(out.name + ".work"), ignore_errors=True)  # of a killed run: its time would be missing
            command = [str(VDITC), "calibrate", str(self.path), "--recipe", recipe, "--device", "cpu", "--force", "-o", str(out)]
            known = {**own, **measured(command)}
            write_text(note, json.dumps(known))
        took = {name: known[name] for name in ("seconds", "cpu_seconds", "peak_rss_bytes")}
        return Calibrated(calibration=Calibration.load(out), **took)

    def measure(self, row: Row, calibrated: Calibrated | None) -> dict[str, Any]:
        """FIGURES of the clips, each with its mean, its standard deviation and its values over the seeds; None in full precision."""
        calibration = None if calibrated is None else calibrated.calibration
        key = {"model": self.source.digest, "calibration": None if calibration is None else calibration.digest}
        ours = self.exact if calibration is None else ReferenceModel(self.adapter, self.source, calibration)
        folder = self.work / "clips" / self.model / row.name
        values: dict[str, list[float]] = {name: [] for name in FIGURES}
        for seed in self.seeds:
            given, reference = self.reference(seed)
            sampled = reference if calibration is None else self._sample(ours, given, folder, key)
            quality = compare(reference, sampled, given, self.opened.parts, self.sampling.semantics)
            found = {name: quality["quantized"].get(name) for name in ("digit_accuracy", "motion_accuracy", "flicker")}
            if calibration is not None:
                found |= {"psnr": quality["quantized"]["psnr_db"], "ssim": quality["quantized"]["ssim"]}
                found |= {"final_latent_error": quality["step_error"][-1], "output_mse": self._output_mse(ours, seed, given, reference)}
            for name, value in found.items():
                if value is not None:
                    values[name].append(float(value))
        shutil.rmtree(folder, ignore_errors=True)  # 0.5 MB a clip; what an interrupted row needs, a finished one does not
        means: dict[str, Any] = {name: short(float(np.mean(v)), DIGITS) if v else None for name, v in values.items()}
        spread = {name: short(float(np.std(v)), DIGITS) if v else None for name, v in values.items()}
        return means | {"std": spread, "per_seed": {name: [short(x, DIGITS) for x in v] for name, v in values.items() if v}}

    def reference(self, seed: int) -> tuple[Conditioning, Trajectories]:
        """The clips of a seed, and their trajectories in full precision, sampled once."""
        given = self.opened.prompted(self.clips, seed)
        return given, self._sample(self.exact, given, self.work / "clips" / self.model / "reference", {"model": self.source.digest})

    def _sample(self, model: ReferenceModel, given: Conditioning, folder: Path, key: dict[str, Any]) -> Trajectories:
        return sample_clips(lambda: model, self.opened.sampled(given), folder, key, SILENT, "")

    def _output_mse(self, ours: ReferenceModel, seed: int, given: Conditioning, reference: Trajectories) -> float:
        """Mean squared error of the model's output on the inputs of the full-precision trajectories, over steps and both branches."""
        exact = self._exact_outputs(seed, given, reference)
        return float(np.mean([np.square(self._forced(ours, given, reference, clip) - exact[clip]).mean() for clip in range(len(exact))]))

    def _exact_outputs(self, seed: int, given: Conditioning, reference: Trajectories) -> npt.NDArray[np.float32]:
        """[clips, steps, branches, C, F, H, W], computed once."""
        clips = range(min(FORCED_CLIPS, self.clips))
        name = data_digest({"model": self.source.digest, "clips": [given.digest(i) for i in clips], "schedule": self.schedule.to_json()})
        file = self.work / "outputs" / self.model / f"{name[:24]}.safetensors"
        if not file.exists():
            write_tensors(file, {"outputs": np.stack([self._forced(self.exact, given, reference, clip) for clip in clips])})
        return np.array(read_header(file)[0]["outputs"].read())

    def _forced(self, model: ReferenceModel, given: Conditioning, reference: Trajectories, clip: int) -> npt.NDArray[np.float32]:
        """Outputs [steps, branches, C, F, H, W] of `model` on the full-precision trajectory of a clip."""
        sampled = self.opened.sampled(given)
        chosen = sampled.clip(clip)
        before = [chosen.start(sampled.scheduler), *(latents[None] for latents in reference.latents[clip, :-1])]
        return np.stack([model(chosen.feeds(sampled.scheduler, i, x, guided=sampled.guided), i) for i, x in enumerate(before)])


def measured(command: list[str]) -> dict[str, Any]:
    """Run `vditc`: wall and CPU seconds, and peak resident memory of the process. InputError, as it says, when it refuses its input."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read().strip()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code == BAD_INPUT:
        raise InputError(found=errors, wanted="a recipe that this model takes", where="vditc calibrate", fix="correct the row")
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    seconds = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1)}
    return seconds | {"peak_rss_bytes": usage.ru_maxrss * 1024}
