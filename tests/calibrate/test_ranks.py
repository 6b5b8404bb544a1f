"""The work of several processes: real ones, started by torchrun."""

from __future__ import annotations

from pathlib import Path

import pytest
from torchrun import run

from vditc.calibrate.ranks import Ranks, joined_ranks
from vditc.errors import InputError


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "prompts.txt").write_text("a 7 moving left\na 2 moving up\na 1 moving down\n")
    return str(tmp_path / "prompts.txt")


def test_every_part_has_one_rank() -> None:
    assert [list(Ranks(rank, 3).share(7)) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert list(Ranks().share(2)) == [0, 1] and Ranks().first


def test_alone_nothing_is_waited_for() -> None:
    with joined_ranks() as ranks, ranks.together():
        ranks.look()
        assert ranks.size == 1 and list(ranks.collect(b"x")) == [] and ranks.device("auto") == "auto"


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="RANK expected"), joined_ranks():
        pass


def test_a_dataset_of_two_ranks_is_that_of_one(tiny_dir: Path, tmp_path: Path, prompts: str) -> None:
    for ranks in (1, 2):
        done = run(
            "dataset",
            str(tiny_dir),
            "-o",
            str(tmp_path / f"of {ranks}"),
            "--prompts",
            prompts,
            "--clips",
            "3",
            "--shard-size",
            "1",
            ranks=ranks,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote") == 1
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / f"of {ranks}").iterdir()} for ranks in (1, 2))
    assert one == two and len(one) == 4
