from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.recipe import Gate, Recipe, builtin_recipes

HEAD = 'schema = 1\nname = "mine"\ndescription = "d"\nmethod = "rtn"\n'
RULE = '[[rules]]\nmatch = ["ffn.*"]\nweight = { qtype = "int8", granularity = "per_channel" }\n'
KEEP = '[[rules]]\nmatch = ["*"]\nkeep = "why"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def load(file: Path, text: str) -> Recipe:
    file.write_text(text)
    return Recipe.load(str(file))


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_fit_the_wan_family(name: str, tiny: ModelDir) -> None:
    recipe = Recipe.load(name)
    roles = adapter_for(tiny).layer_roles(tiny)
    assert recipe.name == name
    assert recipe.assign(roles).keys() == roles.keys()
    assert recipe.digest == hashlib.sha256(builtin_recipes()[name].read_bytes()).hexdigest()


def test_every_key_is_read(file: Path) -> None:
    text = HEAD + "[calibration]\nprompts = 9\nseed = 7\n[gate]\nmin_psnr_db = 30\nmax_digit_accuracy_drop = 0.1\n"
    text += '[[rules]]\nmatch = ["ffn.*", "head"]\nlayers = ["blocks.0.*"]\n'
    text += 'weight = { qtype = "int4", granularity = "per_channel" }\n'
    text += 'activation = { qtype = "int8", granularity = "per_tensor", per_step = true }\n'
    recipe = load(file, text)
    assert (recipe.calibration_prompts, recipe.calibration_seed, recipe.method) == (9, 7, "rtn")
    assert recipe.gate == Gate(min_psnr_db=30.0, max_digit_accuracy_drop=0.1)
    (rule,) = recipe.rules
    assert rule.scheme is not None and rule.scheme.activation is not None
    assert (rule.match, rule.layers, rule.keep) == (("ffn.*", "head"), ("blocks.0.*",), None)
    assert (rule.scheme.weight.qtype, rule.scheme.weight.granularity) == (QType.INT4, Granularity.PER_CHANNEL)
    assert (rule.scheme.activation.per_step, rule.scheme.activation.dynamic) == (True, False)


def test_the_first_matching_rule_decides(file: Path) -> None:
    first = '[[rules]]\nmatch = ["ffn.*"]\nlayers = ["blocks.0.*"]\nkeep = "first block"\n'
    recipe = load(file, HEAD + first + RULE + KEEP)
    chosen = recipe.assign({"blocks.0.ffn": "ffn.in", "blocks.1.ffn": "ffn.in", "proj_out": "head"})
    assert [recipe.rules.index(r) for r in chosen.values()] == [0, 1, 2]


def test_patterns_match_whole_names_and_case(file: Path) -> None:
    rule = load(file, HEAD + RULE).rules[0]
    assert rule.matches("x", "ffn.in")
    assert not rule.matches("x", "FFN.in") and not rule.matches("x", "my.ffn.in")


def test_layer_without_a_rule(file: Path) -> None:
    with pytest.raises(InputError, match=r"recipe mine: found layer proj_out \(role head\) matched by no rule"):
        load(file, HEAD + RULE).assign({"a": "ffn.in", "proj_out": "head"})


def test_rule_that_decides_nothing(file: Path) -> None:
    with pytest.raises(InputError, match=r"found rule 2 \(match \['ffn\.\*'\].*decides no layer.*roles of this model: ffn.in"):
        load(file, HEAD + KEEP + RULE).assign({"a": "ffn.in"})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (HEAD.replace("schema = 1", "schema = 2") + RULE, "found schema = 2; wanted 1"),
        (HEAD, "found 0 rules"),
        (HEAD + "[calibration]\nprompts = 0\n" + RULE, "0 calibration prompts"),
        (HEAD + "colour = 1\n" + RULE, "unknown key colour"),
        (HEAD + "[gate]\nmin_psnr = 3.0\n" + RULE, r"\[gate\]: found unknown key min_psnr"),
        (HEAD + RULE + "groups = 2\n", r"\[\[rules\]\] #1: found unknown key groups"),
        (HEAD + RULE + 'keep = "x"\n', r"with keep and a weight"),
        (HEAD + '[[rules]]\nmatch = ["*"]\n', "with no keep and no weight"),
        (HEAD + '[[rules]]\nkeep = "x"\n', r"found match = \[\]"),
        (HEAD + RULE.replace("int8", "int5"), r"#1 \[weight\]: found qtype = 'int5'; wanted int8, int6"),
        (HEAD + RULE.replace("per_channel", "per_row"), "found granularity = 'per_row'; wanted per_tensor"),
        (HEAD + RULE.replace("per_channel", "per_group"), "group_size None with per_group"),
        (HEAD + RULE.replace("per_channel", "per_token"), "static per_token"),
    ],
)
def test_wrong_recipes(file: Path, text: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        load(file, text)


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"found recipe 'w3'; wanted one of fp16, .*w8a8.* or a \.toml file; see `vditc recipes`"):
        Recipe.load("w3")
