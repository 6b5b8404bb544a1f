"""Students that are cut up over processes learn what whole ones do, in less memory, and go on from each other's checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sharded_families
import sharded_training
import torchrun
from command import vditc
from family_case import cases
from tiny_model import tiny_sampled
from watcher import Watcher

from vditc.calibrate import sharding
from vditc.calibrate.sharding import Sharding, asked
from vditc.calibrate.stage import calibrate
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.recipe import Recipe, builtin_recipes

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def test_what_accelerate_was_told() -> None:
    assert asked({}) is None and asked({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}) is None
    assert asked(FSDP) == Sharding(reshard=True)
    assert asked(FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}) == Sharding(reshard=False)
    assert asked(FSDP | {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_OFFLOAD_PARAMS": "false"}) == Sharding()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "found DeepSpeed; .*--use_fsdp --fsdp_version 2"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "found Megatron-LM"),
        (FSDP | {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "more than one kind"),
        ({"ACCELERATE_USE_FSDP": "true"}, "found FSDP version 1; .*--fsdp_version 2"),
        (FSDP | {"FSDP_VERSION": "1"}, "found FSDP version 1"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params = true"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, r"checkpointing = true in \[settings\]"),
        (FSDP | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "leave the policy out"),
        (FSDP | {"FSDP_IGNORED_MODULES": "x"}, "fsdp_ignored_modules"),
    ],
)
def test_what_it_cannot_be_told(told: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        asked(told)


def test_accelerate_does_not_see_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with sharding.unasked():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_a_training_is_refused_before_any_work(
    tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And other methods, which cut nothing up, are not."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    watch = Watcher()

    def start(recipe: str) -> None:
        calibrate(
            tiny_sampled(tiny, tiny_conditioning, steps=1, guidance_scale=1.0),
            recipe=Recipe.load(recipe),
            out=tmp_path / "c.safetensors",
            work=tmp_path / "work",
            progress=watch,
        )

    with pytest.raises(InputError, match="found DeepSpeed"):
        start("w4a6")
    assert not watch.advanced
    start("w8a8")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """What two processes found, and the folder of their checkpoints."""
    folder = tmp_path_factory.mktemp("sharded")
    done = torchrun.script(2, sharded_training.__file__, str(folder))
    assert done.code == 0, done.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def learnt(of: Any) -> Any:
    return {key: of[key] for key in ("values", "codes", "losses")}


def test_a_student_cut_up_learns_what_a_whole_one_does(two: tuple[Path, list[Any]]) -> None:
    """Bit for bit: a sum of two gradients has one order. Stages of the branch begin meanwhile, which is decomposed whole."""
    first, second = two[1]
    assert learnt(first["cut"]) == learnt(first["whole"]) == learnt(second["cut"])
    losses = first["cut"]["losses"]
    assert losses[-1] < 0.9 * losses[0] and len(losses) == sharded_training.ITERATIONS


def test_gradients_are_clipped_by_their_norm_over_all_parts(two: tuple[Path, list[Any]]) -> None:
    """Its squares are added up in another order, a few last bits of float32, and AdamW divides by a gradient's size."""
    first = two[1][0]
    np.testing.assert_allclose(first["cut, clipped"]["losses"], first["whole, clipped"]["losses"], rtol=1e-5)
    assert first["whole, clipped"]["losses"] != first["whole"]["losses"], "nothing was clipped"


def test_each_process_holds_its_part(two: tuple[Path, list[Any]]) -> None:
    """Values, moments and what does not learn: together once, no process much more than half."""
    whole, parts = two[1][0]["whole"]["bytes"], [found["cut"]["bytes"] for found in two[1]]
    assert sum(parts) == whole and max(parts) < 0.6 * whole


def test_a_killed_training_goes_on_cut_up_or_whole(two: tuple[Path, list[Any]]) -> None:
    folder, (first, _) = two
    for name in ("whole, then cut", "cut, then whole", "cut, then cut"):
        assert learnt(first[name]) == learnt(first["whole"]), name
    for kind in ("stopped", "end"):
        assert (folder / f"cut.{kind}").read_bytes() == (folder / f"whole.{kind}").read_bytes()


def test_one_process_goes_on_from_what_two_left(two: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, (first, _) = two
    watch = Watcher()
    shutil.copy(folder / "cut.stopped", tmp_path / "state")
    found = sharded_training.learn(tmp_path / "state", cut=False, progress=watch)
    assert any("holds 7 of 12 iterations" in note for note in watch.notes)
    assert found["losses"][:7] == first["cut"]["losses"][:7]
    np.testing.assert_allclose(found["losses"], first["cut"]["losses"], rtol=1e-5)  # a mean of 4 is not one of 2 means of 2


CUT = ("--use_fsdp", "--fsdp_version", "2")


def calibrated(model: Path, folder: Path, method: str, ranks: int, *launch: str, iterations: int = 4) -> tuple[Calibration, str]:
    """By the command, of two prompts; and what it said."""
    settings = {"iterations": iterations, "batch_size": 4, "rate": 3e-4, "scale_rate": 1e-4}
    settings |= {"gamma": 1.0} if method == "qvdit" else {"rank": 4, "tail": 0.2}
    head, rest = builtin_recipes()["w4a6"].read_text().split("[settings]")
    lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
    text = f"{head.replace('qvdit', method)}[settings]\n{lines}\n[calibration]{rest.split('[calibration]')[1]}"
    (folder / "r.toml").write_text(text.replace("prompts = 8", "prompts = 2"))
    (folder / "prompts.txt").write_text("a 7 moving left\na 2 moving up\n")
    out = folder / f"{ranks}{len(launch)}.safetensors"
    options = ["--recipe", str(folder / "r.toml"), "--steps", "2", "--prompts", str(folder / "prompts.txt"), "-o", str(out)]
    command = ("calibrate", str(model), *options)
    done = vditc(*command) if ranks == 1 else torchrun.run(ranks, *command, launch=launch)
    assert done.code == 0, done.stderr
    return Calibration.load(out), " ".join((done.stdout + done.stderr).split())


def agree(one: Calibration, two: Calibration, least: float, rtol: float) -> None:
    losses = [[loss for _, loss in known.statistics["training"]["loss"]] for known in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=rtol)
    layers = two.layers
    assert min(np.mean(layer.weight.read().codes == layers[n].weight.read().codes) for n, layer in one.layers.items()) > least


def test_accelerate_launch_cuts_the_student_up(tiny_dir: Path, tmp_path: Path) -> None:
    """The tolerances of test_two_ranks_train_what_one_does, whose loss is that of the same weights."""
    two, said = calibrated(tiny_dir, tmp_path, "qvdit", 2, *CUT, iterations=1)
    assert "each of 2 processes holds its part" in said
    one, said = calibrated(tiny_dir, tmp_path, "qvdit", 1, iterations=1)
    assert "holds its part" not in said
    agree(one, two, 0.97, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qvdit", "qvgen"])
def test_a_calibration_of_students_cut_up(tiny_dir: Path, tmp_path: Path, method: str) -> None:
    """A last bit of the gradients' norm moves a code of an activation to the next one, and after a few iterations everything follows."""
    (two, _), (cut, _) = (calibrated(tiny_dir, tmp_path, method, 2, *launch) for launch in ((), CUT))
    agree(two, cut, 0.99, 1e-5)


@pytest.mark.slow
def test_every_family_can_be_cut_up(tmp_path: Path) -> None:
    """Predictions are the whole model's; gradients too, but for the order in which what two uses of a layer say is added up."""
    done = torchrun.script(2, sharded_families.__file__, str(tmp_path))
    assert done.code == 0, done.stderr
    assert done.stdout.split() == [str(case) for case in cases() if case.first]
