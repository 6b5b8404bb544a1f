"""The work of several processes: real ones, started by torchrun."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from torchrun import run

from vditc.calibrate.ranks import Ranks, joined_ranks
from vditc.calibration import Calibration
from vditc.conditioning import TEXT, Conditioning
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.recipe import builtin_recipes


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


@pytest.mark.slow
def test_a_dataset_of_two_ranks_is_that_of_one(tiny_dir: Path, tmp_path: Path, prompts: str) -> None:
    for ranks in (1, 2):
        out = str(tmp_path / f"of {ranks}")
        done = run(ranks, "dataset", str(tiny_dir), "-o", out, "--prompts", prompts, "--clips", "3", "--shard-size", "1")
        assert done.code == 0, done.stderr
        assert done.stdout.count("wrote") == 1
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / f"of {ranks}").iterdir()} for ranks in (1, 2))
    assert one == two and len(one) == 4


@pytest.mark.demo
@pytest.mark.parametrize(("ranks", "count"), [(2, 3), pytest.param(3, 2, marks=pytest.mark.slow)], ids=["3 clips", "2 clips"])
def test_a_calibration_of_several_ranks_is_that_of_one(tiny_dir: Path, tmp_path: Path, prompts: str, ranks: int, count: int) -> None:
    """With a method that sees sampled rows."""
    recipe = tmp_path / "own.toml"
    recipe.write_text(builtin_recipes()["w4a8-gptq"].read_text().replace("prompts = 4", f"prompts = {count}"))
    for n in (1, ranks):
        out = tmp_path / f"of {n}"
        done = run(n, "calibrate", str(tiny_dir), "--recipe", str(recipe), "--prompts", prompts, "-o", str(out))
        assert done.code == 0, done.stderr
        assert done.stdout.count("wrote") == 1 and not out.with_name(out.name + ".work").exists()
        assert ("the others have nothing to sample" in done.stderr) == (n > count)
    assert (tmp_path / "of 1").read_bytes() == (tmp_path / f"of {ranks}").read_bytes()
    assert Calibration.load(tmp_path / "of 1").statistics["clips"] == count


@pytest.mark.demo
def test_an_error_of_one_rank_ends_all(tiny_dir: Path, tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path) -> None:
    """The second rank's clip has a text that the model cannot bear."""
    text = tiny_conditioning.inputs[TEXT].copy()
    text[1, 0, 0] = 3e38
    dataclasses.replace(tiny_conditioning, inputs={TEXT: text}).save(tmp_path / "clips.safetensors")
    out = tmp_path / "out"
    clips = str(tmp_path / "clips.safetensors")
    done = run(2, "calibrate", str(tiny_dir), "--recipe", "w4a8-gptq", "--conditioning", clips, "-o", str(out))
    assert done.code != 0 and not out.exists()
    assert "found an input that is not finite" in done.stderr and "exitcode  : 2" in done.stderr, done.stderr


@pytest.mark.demo
def test_other_commands_are_refused(tiny_dir: Path, tmp_path: Path) -> None:
    done = run(2, "export", str(tiny_dir), "--recipe", "fp16", "-o", str(tmp_path / "m.onnx"))
    assert done.code != 0 and "found vditc export under torchrun; wanted one of calibrate, dataset" in done.stderr
    assert not (tmp_path / "m.onnx").exists()
