"""Students that are cut up over processes learn what whole ones do, in less memory, and go on from each other's checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sharded_training
import torchrun
from watcher import Watcher

from vditc.calibrate.sharding import Sharding, asked
from vditc.calibrate.stage import calibrate
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.pipeline.schedules import load_schedule
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


def test_a_training_is_refused_before_any_work(
    tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And other methods, which cut nothing up, are not."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    watch = Watcher()

    def start(recipe: str) -> None:
        calibrate(
            source=tiny,
            adapter=adapter_for(tiny),
            recipe=Recipe.load(recipe),
            conditioning=tiny_conditioning,
            scheduler=load_schedule(tiny.path, 1),
            guidance_scale=1.0,
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


@pytest.mark.parametrize("method", ["qvdit", "qvgen"])
def test_a_calibration_by_accelerate_launch(tiny_dir: Path, tmp_path: Path, method: str) -> None:
    """The whole command. AdamW's first steps hang on signs of gradients, and the norm that clips them is added up in another order."""
    settings = {"iterations": 4, "batch_size": 4, "rate": 3e-4, "scale_rate": 1e-4}
    settings |= {"gamma": 1.0} if method == "qvdit" else {"rank": 4, "tail": 0.2}
    head, rest = builtin_recipes()["w4a6"].read_text().split("[settings]")
    lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
    text = f"{head.replace('qvdit', method)}[settings]\n{lines}\n[calibration]{rest.split('[calibration]')[1]}"
    (tmp_path / "r.toml").write_text(text.replace("prompts = 8", "prompts = 2"))
    (tmp_path / "prompts.txt").write_text("a 7 moving left\na 2 moving up\n")
    found = []
    for launch in ((), ("--use_fsdp", "--fsdp_version", "2")):
        out = tmp_path / f"{len(launch)}.safetensors"
        options = ["--recipe", str(tmp_path / "r.toml"), "--steps", "2", "--prompts", str(tmp_path / "prompts.txt"), "-o", str(out)]
        done = torchrun.run(2, "calibrate", str(tiny_dir), *options, launch=launch)
        assert done.code == 0, done.stderr
        found.append(Calibration.load(out))
    losses = [[loss for _, loss in known.statistics["training"]["loss"]] for known in found]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    one, two = (known.layers for known in found)
    assert min(np.mean(one[n].weight.read().codes == two[n].weight.read().codes) for n in one) > 0.99
