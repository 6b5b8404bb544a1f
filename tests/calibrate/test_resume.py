"""Killed calibrations go on where they were, and end with the bytes of a run that was never killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

if __name__ == "__main__":  # a process of its own, which will be killed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_model import sampled_and_rest, save_tiny_model, tiny_clips
from torchrun import ENVIRONMENT
from watcher import Watcher

import vditc.calibrate.groups as groups_module
import vditc.calibrate.trajectories as trajectories_module
from vditc.calibrate.methods.gptq import Gptq
from vditc.calibrate.stage import calibrate
from vditc.conditioning import TEXT, Conditioning
from vditc.export.adapters.registry import adapter_for
from vditc.export.adapters.wan import Wan
from vditc.model_dir import ModelDir
from vditc.pipeline.schedules import load_schedule
from vditc.recipe import Recipe

STEPS, CLIPS, LAYERS = 3, 2, 20
SAMPLED, CHOSEN = STEPS * CLIPS, STEPS * CLIPS + LAYERS  # parts of the work when these phases are over


class CannotRun(Wan):
    """An adapter whose model must not be touched."""

    def load(self, source: ModelDir, memory: int | None = None) -> Any:
        raise AssertionError("the model was loaded")


class Killer(Watcher):
    """Ends the process as the kernel does."""

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def gptq() -> Recipe:
    return dataclasses.replace(Recipe.load("w4a8-gptq"), method="gptq", settings={})


def arguments(folder: Path, conditioning: Conditioning, out: Path, work: Path) -> dict[str, Any]:
    source = ModelDir.open(folder)
    return {
        "source": source,
        "adapter": adapter_for(source),
        "recipe": gptq(),
        "conditioning": conditioning,
        "scheduler": load_schedule(source.path, STEPS),
        "guidance_scale": 2.0,
        "out": out,
        "work": work,
        "progress": Watcher(),
    }


def save_everything() -> None:
    """States after every step, files of every group."""
    trajectories_module.SAVE_PAUSE, trajectories_module.SAVE_SHARE = 0.0, 1.0
    groups_module.KEEP = 0.0


@pytest.fixture
def run(tiny_dir: Path, tiny_conditioning: Conditioning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Calibrate the tiny model into tmp_path / out; keywords replace the defaults."""
    for module, name in ((trajectories_module, "SAVE_PAUSE"), (trajectories_module, "SAVE_SHARE"), (groups_module, "KEEP")):
        monkeypatch.setattr(module, name, getattr(module, name))  # to be put back
    save_everything()

    def call(out: str = "out", work: str = "work", **changes: Any) -> None:
        sampled, rest = sampled_and_rest(arguments(tiny_dir, tiny_conditioning, tmp_path / out, tmp_path / work) | changes)
        calibrate(sampled, **rest)

    return call


@pytest.mark.parametrize(
    ("kill_at", "kept"),
    [
        (1, "0 of 2 clips and 1 steps"),
        (STEPS, "0 of 2 clips and 2 steps"),
        (STEPS + 2, "1 of 2 clips and 2 steps"),
        (SAMPLED + 1, "2 of 2 clips:"),
        (SAMPLED + LAYERS // 2, "2 of 2 clips:"),
        (CHOSEN + 1, "2 of 2 clips:"),
        (CHOSEN + LAYERS, "2 of 2 clips:"),
    ],
)
def test_killed_run_resumes_to_the_same_bytes(run: Callable[..., None], tmp_path: Path, kill_at: int, kept: str) -> None:
    run("whole", work="elsewhere")
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watcher(kill_at))
    assert not (tmp_path / "out").exists()
    again = Watcher()
    run(progress=again, **({"adapter": CannotRun()} if kill_at > SAMPLED else {}))
    assert f"holds {kept}" in again.notes[0]
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert list((tmp_path / "work").iterdir()) == []


def test_groups_that_are_done_are_not_computed_again(run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    quantize = Gptq.quantize

    def counted(self: Gptq, weights: Any, statistics: Any, schemes: Any, head: Any) -> Any:
        done.extend(weights)
        return quantize(self, weights, statistics, schemes, head)

    monkeypatch.setattr(Gptq, "quantize", counted)
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watcher(SAMPLED + LAYERS // 2))
    before = list(done)
    again = Watcher()
    run(progress=again)
    assert len(before) < LAYERS and sorted(done) == sorted(set(done)) and len(done) == LAYERS
    assert any(f"held {len(before)} of {LAYERS} layers" in note for note in again.notes)


def test_a_damaged_group_is_computed_again(run: Callable[..., None], tmp_path: Path) -> None:
    run("whole", work="elsewhere")
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watcher(CHOSEN + 1))
    files = sorted((tmp_path / "work" / "groups").iterdir())
    assert len(files) == 14  # of a block: q, k, v together, k and v of the text together, five alone
    files[0].write_bytes(files[0].read_bytes()[:-7])
    files[1].write_bytes(files[2].read_bytes())
    again = Watcher()
    run(progress=again)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not any(f"held {LAYERS} of" in note for note in again.notes)


def test_rounding_to_nearest_leaves_no_files(run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "KEEP", 60.0)
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watcher(CHOSEN + 1), recipe=Recipe.load("w8a8"))
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["observers.safetensors"]


def test_states_are_saved_seldom(run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories_module, "SAVE_PAUSE", 60.0)
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watcher(SAMPLED))
    assert not (tmp_path / "work").exists()  # the last state is written behind the last step
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watcher(SAMPLED + 1))
    assert (tmp_path / "work" / "observers.safetensors").exists()


def test_a_pause_makes_up_for_what_saving_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(trajectories_module, "time", SimpleNamespace(monotonic=lambda: now))
    pause = trajectories_module._Pause()
    assert not pause.over()
    now = 105.0
    assert pause.over()
    with pause.begins():
        now = 107.0
    now = 107.0 + 2 * 49 - 0.1
    assert not pause.over()  # 2 of 100 seconds
    now += 0.2
    assert pause.over()


@pytest.mark.parametrize("kill_at", [STEPS + 2, SAMPLED + LAYERS // 2, CHOSEN + 3])
def test_a_process_that_was_killed(run: Callable[..., None], tiny_dir: Path, tmp_path: Path, kill_at: int) -> None:
    run("whole", work="elsewhere")
    command = [sys.executable, __file__, str(tiny_dir), str(tmp_path / "out"), str(tmp_path / "work"), str(kill_at)]
    here = {
        **ENVIRONMENT,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # sums depend on it
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = Watcher()
    run(progress=again)
    assert len(again.notes) == (1 if kill_at < SAMPLED else 2)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("what", ["seed", "text", "model", "recipe", "guidance", "schedule"])
def test_state_of_another_run_is_not_used(
    run: Callable[..., None], tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path, what: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watcher(kill_at=STEPS + 1))
    c = tiny_conditioning
    choices: dict[str, Callable[[], dict[str, Any]]] = {
        "seed": lambda: {"conditioning": dataclasses.replace(c, seeds=(7, 6))},
        "text": lambda: {"conditioning": dataclasses.replace(c, inputs={TEXT: c.inputs[TEXT][::-1].copy()})},
        "model": lambda: {"source": ModelDir.open(save_tiny_model(tmp_path / "other", seed=1))},
        "recipe": lambda: {"recipe": dataclasses.replace(gptq(), digest="edited")},
        "guidance": lambda: {"guidance_scale": 3.0},
        "schedule": lambda: {"scheduler": load_schedule(tiny.path, 2)},
    }
    changes = choices[what]()
    again = Watcher()
    run(progress=again, **changes)
    assert len(again.notes) == 1 and again.notes[0].endswith("sampling starts anew")
    run("fresh", work="elsewhere", **changes)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "fresh").read_bytes()


def test_damaged_state_is_said_and_not_used(run: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "observers.safetensors").write_bytes(b"\x08\x00\x00")
    again = Watcher()
    run(progress=again)
    assert "cannot be read" in again.notes[0] and again.notes[0].endswith("sampling starts anew")


if __name__ == "__main__":
    save_everything()
    model, out_, work_, at = sys.argv[1:]
    whole, others = sampled_and_rest(arguments(Path(model), tiny_clips(Path(model)), Path(out_), Path(work_)))
    calibrate(whole, **(others | {"progress": Killer(int(at))}))
