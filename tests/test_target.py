from __future__ import annotations

from pathlib import Path

import pytest

from vditc.errors import InputError
from vditc.recipe import Recipe, builtin_recipes
from vditc.target import Target, builtin_targets


@pytest.mark.parametrize("name", builtin_targets())
def test_builtin_targets_are_whole(name: str) -> None:
    target = Target.load(name)
    assert target.name == name
    assert bool(target.arch) == (name != "cpu")
    assert all(a.startswith("sm_") and a[3:].isdigit() for a in target.arch)
    assert target.weight_qtypes and target.description and target.low_precision


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_run_on_the_cpu(name: str) -> None:
    Target.load("cpu").check(Recipe.load(name))


def test_recipe_with_a_type_that_the_target_lacks(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(builtin_targets()["l4"].read_text().replace('activation_qtypes = ["int8"', 'activation_qtypes = ["fp8_e4m3"'))
    with pytest.raises(InputError, match=r"target l4 \(sm_89, .*found rule 3 of recipe w8a8: activation int8; wanted one of fp8_e4m3"):
        Target.load(str(path)).check(Recipe.load("w8a8"))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('backend = "onnxruntime"', 'backend = "tvm"', "found backend = 'tvm'; wanted tensorrt_rtx, tensorrt, onnxruntime"),
        ('builds = "here"', 'builds = "there"', "found builds = 'there'; wanted here, on_device"),
        ("opset = 21", 'opset = "21"', "found opset = '21'; wanted int"),
        ("opset = 21", "", "wanted opset = int"),
        ("opset = 21", "opset = 21\nspeed = 3", "unknown key speed"),
    ],
)
def test_wrong_targets(tmp_path: Path, old: str, new: str, found: str) -> None:
    text = builtin_targets()["cpu"].read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=rf"mine\.toml: .*{found}"):
        Target.load(str(tmp_path / "mine.toml"))


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"found target 'tpu'; wanted one of a10, .*or a \.toml file; see `vditc targets`"):
        Target.load("tpu")
