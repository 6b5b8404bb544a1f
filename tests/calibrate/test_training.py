"""The training loop: resumes to the same numbers, shares batches between processes, stops at what is not finite."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from vditc.calibrate import training
from vditc.calibrate.training import Batch, Now, Plan, train
from vditc.errors import InputError, VditcError
from vditc.progress import SILENT
from vditc.safetensors_file import read_header

STEPS = 40


class Line(torch.nn.Module):
    """y = a x + b of a number a step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.full((), value)) for value in (0.0, 1.0))
        self.fixed = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.fixed * (self.a * feeds["x"] + self.b)


def batches(iteration: int, share: slice) -> Batch:
    x = torch.from_numpy(np.random.default_rng(iteration).standard_normal((4, 1)).astype(np.float32))[share]
    return Batch({"x": x}, 3 * x - 2, torch.arange(4)[share])


def plan(model: Line, run: str = "one", iterations: int = STEPS) -> Plan:
    return Plan(iterations=iterations, batch_size=4, groups=(([model.a], 0.3), ([model.b], 0.1)), run=run, warmup=4, weight_decay=0.01)


def learn(state: Path, *, stop: int | None = None, run: str = "one", fresh: tuple[int, ...] = ()) -> tuple[Line, list[tuple[int, float]]]:
    model = Line()

    def before(iteration: int) -> list[torch.nn.Parameter]:
        if iteration == stop:
            raise KeyboardInterrupt
        return [model.a] if iteration in fresh else []

    history = train(
        student=model,
        now=Now(steps=torch.zeros(1, dtype=torch.int64)),
        plan=plan(model, run),
        batches=batches,
        loss=torch.nn.functional.mse_loss,
        before=before,
        device=torch.device("cpu"),
        state=state,
        progress=SILENT,
    )
    return model, history


def test_it_learns(tmp_path: Path) -> None:
    model, history = learn(tmp_path / "s")
    assert history[0][1] > 3 * history[-1][1] and history[-1][0] == STEPS
    assert float(model.fixed) == 1 and abs(model.a.item() - 3) < 1


def test_a_killed_training_goes_on_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, wanted = learn(tmp_path / "a", fresh=(30,))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "b", stop=21, fresh=(30,))
    left = read_header(tmp_path / "b")[0]
    assert sorted(left) == sorted(f"{part}/{name}" for part in ("value", "exp_avg", "exp_avg_sq", "step") for name in "ab")
    again, history = learn(tmp_path / "b", fresh=(30,))
    assert (again.a.item(), again.b.item()) == (whole.a.item(), whole.b.item()) and history == wanted
    other, _ = learn(tmp_path / "c", fresh=())
    assert other.a.item() != whole.a.item(), "moments that are not dropped would not be seen"


def test_a_checkpoint_of_another_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "s", stop=21, run="other")
    model, _ = learn(tmp_path / "s")
    assert model.a.item() == float(learn(tmp_path / "t")[0].a)
    (tmp_path / "u").write_bytes(b"no checkpoint")
    assert float(learn(tmp_path / "u")[0].a) == model.a.item()


def test_warm_up_and_cosine() -> None:
    p = plan(Line())
    assert [p.rate(i) for i in (0, 3, 4)] == [0.2, 0.8, 1.0]
    np.testing.assert_allclose([p.rate(22), p.rate(40)], [0.5, 0], atol=1e-9)


def test_a_loss_that_is_not_finite_stops_it(tmp_path: Path) -> None:
    model = Line()
    with pytest.raises(VditcError, match=r"iteration 0: found a loss of nan; .*lower the learning rates"):
        train(
            student=model,
            now=Now(steps=torch.zeros(1, dtype=torch.int64)),
            plan=plan(model),
            batches=batches,
            loss=lambda said, wanted: (said - wanted).mean() * torch.nan,
            before=lambda _i: (),
            device=torch.device("cpu"),
            state=tmp_path / "s",
            progress=SILENT,
        )


def test_rows_of_clips_frames_and_tokens_find_their_step() -> None:
    now = Now(steps=torch.tensor([2, 0]))
    table = torch.tensor([10.0, 11.0, 12.0])
    assert now.of_rows(table, torch.zeros(2, 5, 7)).squeeze().tolist() == [12, 10]
    assert now.of_rows(table, torch.zeros(6, 5, 7)).shape == (6, 1, 1)
    assert now.of_rows(table, torch.zeros(6, 5, 7)).squeeze().tolist() == [12, 12, 12, 10, 10, 10]


SCRIPT = """
import sys, torch
sys.path[:0] = {paths!r}
import torch.distributed as dist
from pathlib import Path
from test_training import learn
model, history = learn(Path(sys.argv[1]))
if dist.get_rank() == 0:
    print("RESULT", model.a.item(), model.b.item())
dist.destroy_process_group()
"""


def test_two_processes_share_a_batch(tmp_path: Path) -> None:
    """Half of each batch each: gradients are means of halves, so the numbers are those of one process up to rounding."""
    alone, _ = learn(tmp_path / "alone")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path / "two")]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    line = next((text for text in run.stdout.splitlines() if text.startswith("RESULT")), run.stderr)
    np.testing.assert_allclose([float(v) for v in line.split()[1:]], [alone.a.item(), alone.b.item()], rtol=1e-4)


def test_a_batch_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Three:
        num_processes, process_index = 3, 1

    with pytest.raises(InputError, match=r"a batch of 4 on 3 processes; wanted a multiple"):
        training._share(4, Three())
    assert training._share(6, Three()) == slice(2, 4)
