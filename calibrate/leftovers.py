"""What a training keeps in the working folder until its calibration is written, so that a killed run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

START = "start.safetensors"  # the calibration that a training begins with
CHECKPOINT = "training.safetensors"
TRAJECTORIES, DATASET = "trajectories", "dataset"  # folders, with one folder in them for each run


def forget_training(work: Path) -> None:
    """Remove all of it."""
    for name in (START, CHECKPOINT):
        (work / name).unlink(missing_ok=True)
    for name in (TRAJECTORIES, DATASET):
        shutil.rmtree(work / name, ignore_errors=True)
