from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vditc.errors import InputError
from vditc.numerics import Granularity, QType
from vditc.quirk import Products, Quirk, builtin_quirks
from vditc.recipe import Recipe, Rule, builtin_recipes
from vditc.recipe_distance import distance, nearest
from vditc.scheme import QuantSpec, Scheme
from vditc.target import Target, builtin_targets
from vditc.version_range import VersionRange

DOCS = Path(__file__).resolve().parents[1] / "docs" / "targets.md"
RECIPES = {name: Recipe.load(name) for name in builtin_recipes()}
TARGETS = {name: Target.load(name) for name in builtin_targets()}


def weight(qtype: QType, group: int | None = None) -> QuantSpec:
    return QuantSpec(qtype=qtype, granularity=Granularity.PER_GROUP if group else Granularity.PER_CHANNEL, group_size=group)


def per_token(qtype: QType) -> QuantSpec:
    return QuantSpec(qtype=qtype, granularity=Granularity.PER_TOKEN, dynamic=True)


def own(*schemes: Scheme, method: str = "rtn") -> Recipe:
    rules = tuple(Rule(match=("*",), scheme=s) for s in schemes)
    return dataclasses.replace(RECIPES["w8a8"], name="own", rules=rules, method=method)


@pytest.mark.parametrize("name", builtin_targets())
def test_builtin_targets_are_whole(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name
    assert bool(target.arch) == (name != "cpu")
    assert all(re.fullmatch(r"sm_\d+", a) for a in target.arch)
    assert target.description and target.low_precision and target.products
    assert {q.value for q in QType if target.refusal(Scheme(weight=weight(q, 16 if q is QType.FP4_E2M1 else None))) is None}
    for row in target.products:  # none that a quirk refuses whole
        assert not any(
            r.weight and set(row.weight) <= set(r.weight) and not (r.granularity or r.activation) for q in target.quirks for r in q.refuses
        )


@pytest.mark.parametrize("name", builtin_quirks())
def test_quirks_of_gpus_are_in_every_target_with_one_of_them(name: str) -> None:
    quirk = Quirk.load(name, Path())
    assert quirk.says and quirk.source
    users = {t.name for t in TARGETS.values() if quirk in t.quirks}
    assert users
    if quirk.arch:
        assert users == {t.name for t in TARGETS.values() if set(t.arch) & set(quirk.arch)}
    elif name == "functions-before-plugins":
        assert users == {t.name for t in TARGETS.values() if t.backend == "tensorrt" and not VersionRange("10.7").holds(t.versions.least)}
    elif name == "kernels-chosen-when-loaded":
        assert users == {t.name for t in TARGETS.values() if t.backend == "tensorrt_rtx"}
    elif name == "no-tiling-in-10-3":
        assert users == {t.name for t in TARGETS.values() if t.versions == VersionRange("10.3", "10.3")}
    elif name != "fp4-not-lowered":
        assert users == TARGETS.keys() - {"cpu"}
    named = re.match(r"(docs|tests)/[\w/]+\.\w+", quirk.source)
    assert quirk.source.startswith("https://") or (named is not None and (DOCS.parents[1] / named[0]).is_file())


def matrix() -> str:
    """A row for every recipe: for every target "yes" or the recipe that runs instead."""
    cells: dict[tuple[str, str], str] = {}
    for (r, recipe), (t, target) in itertools.product(RECIPES.items(), TARGETS.items()):
        found = None if target.runs(recipe) else nearest(recipe, target.runs)
        cells[r, t] = "yes" if found is None else found[0].name
    same: dict[tuple[str, ...], list[str]] = {}  # targets that agree share a column
    for t in TARGETS:
        same.setdefault(tuple(cells[r, t] for r in RECIPES), []).append(t)
    return table(["recipe", *(", ".join(names) for names in same.values())], [[r, *row] for r, *row in zip(RECIPES, *same, strict=True)])


def targets_table() -> str:
    return table(
        ["target", "what", "GPUs", "runtime", "engines are built", "opsets", "lowering writes", "computes in"],
        [
            [
                t.name,
                t.description,
                ", ".join(t.arch) or "-",
                t.runtime,
                t.builds.replace("_", " "),
                " to ".join(map(str, t.opsets)),
                f"opset {t.opset}",
                ", ".join(t.computes),
            ]
            for t in TARGETS.values()
        ],
    )


def quirks_table() -> str:
    rows = []
    for name in builtin_quirks():
        quirk = Quirk.load(name, Path())
        users = [t.name for t in TARGETS.values() if quirk in t.quirks]
        where = "all but cpu" if len(users) == len(TARGETS) - 1 else ", ".join(users)
        rows.append([name, quirk.says, "; ".join(quirk.effects), where, quirk.source])
    return table(["quirk", "says", "follows", "targets", "source"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.mark.parametrize("made", [matrix, targets_table, quirks_table])
def test_the_tables_of_the_documentation(made: Callable[[], str]) -> None:
    """docs/targets.md holds them as they are."""
    assert made() in DOCS.read_text(), made()


@pytest.mark.parametrize("name", builtin_targets())
def test_every_recipe_runs_or_is_refused_with_one_that_does(name: str) -> None:
    target = TARGETS[name]
    for recipe in RECIPES.values():
        if target.runs(recipe):
            target.check(recipe)
            continue
        with pytest.raises(InputError) as refused:
            target.check(recipe)
        said = re.search(r"nearest built-in recipe that runs here is ([\w-]+) \(", refused.value.fix)
        assert said is not None
        assert target.runs(RECIPES[said[1]])
        assert refused.value.found.startswith(f"rule 3 of recipe {recipe.name}: W[")
        assert refused.value.where.startswith(f"target {name} (")


def test_what_runs_where() -> None:
    """Known facts, row by row."""
    int8 = Scheme(weight=weight(QType.INT8), activation=per_token(QType.INT8))
    w4a8 = Scheme(weight=weight(QType.INT4), activation=per_token(QType.INT8))
    fp8 = Scheme(weight=weight(QType.FP8_E4M3), activation=per_token(QType.FP8_E4M3))
    nvfp4 = Scheme(weight=weight(QType.FP4_E2M1, 16))
    runs = {name: [t.refusal(s) is None for s in (int8, w4a8, fp8, nvfp4)] for name, t in TARGETS.items()}
    old, new = [True, True, False, False], [True, True, True, False]
    assert runs == {
        **dict.fromkeys(("a10", "a100", "jetson-orin", "jetson-orin-jp6", "rtx-ada"), old),
        **dict.fromkeys(("b200", "h100", "h200", "jetson-thor", "l4", "l40s", "rtx-blackwell"), new),
        "b300": [False, False, True, False],
        "cpu": [True, True, True, True],
    }


@pytest.mark.parametrize(
    ("name", "scheme", "why"),
    [
        ("a100", Scheme(weight=weight(QType.FP8_E4M3)), r"FP8 products exist from sm_89 on \(here sm_80\) \[https://docs\.nvidia"),
        ("rtx-ada", Scheme(weight=weight(QType.FP8_E4M3)), r"\(here sm_80, sm_86\)"),
        ("h100", Scheme(weight=weight(QType.FP4_E2M1, 16)), r"FP4 products exist from Blackwell \(sm_100\) on \(here sm_90\)"),
        ("rtx-blackwell", Scheme(weight=weight(QType.FP4_E2M1, 16)), r"NVFP4 needs TensorRT's own operators"),
        ("b300", Scheme(weight=weight(QType.INT8), activation=per_token(QType.INT8)), r"INT8 products on sm_103 .*pytorch/issues/187094"),
        ("l4", Scheme(weight=weight(QType.INT8, 64)), "8-bit weights with block scales are dequantized"),
        (
            "l4",
            Scheme(weight=weight(QType.INT4, 48)),
            r"it runs int8 or int6 per_channel .*int4 or int3 per_group \(16, 32, 64, 128\) x float",
        ),
        (
            "l4",
            Scheme(weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_TENSOR), activation=per_token(QType.INT8)),
            "INT4 weights with one scale for the whole tensor do not build beside INT8 codes",
        ),
    ],
)
def test_refusals_say_why_and_who_says_so(name: str, scheme: Scheme, why: str) -> None:
    TARGETS["cpu"].check(own(scheme))
    with pytest.raises(InputError, match=rf"target {name} \(.*found rule 1 of recipe own: .*what this target runs: .*{why}"):
        TARGETS[name].check(own(scheme))


def test_every_rule_is_checked() -> None:
    fine, bad = Scheme(weight=weight(QType.INT8), activation=per_token(QType.INT8)), Scheme(weight=weight(QType.INT8, 64))
    with pytest.raises(InputError, match="found rule 2 of recipe own"):
        TARGETS["l4"].check(own(fine, bad))


def test_the_nearest_recipe() -> None:
    """Method first, then bits of weights, of activations, then granularity, then the name."""
    w4a8 = RECIPES["w4a8"]
    assert distance(w4a8, w4a8)[:5] == (False, 0, 0, 0, False)
    assert distance(w4a8, RECIPES["w6a6"])[:3] == (False, 2, 2)
    assert distance(w4a8, RECIPES["w4a16"])[:3] == (True, 0, 8)
    assert distance(w4a8, RECIPES["fp16"])[:3] == (True, 12, 8)

    def among(recipe: Recipe, *names: str) -> str | None:
        found = nearest(recipe, lambda r: r.name in names)
        return None if found is None else found[0].name

    assert among(w4a8, "w6a6", "w4a8-rtn") == "w6a6"  # the method is more than bits
    assert among(w4a8, "fp8", "w3a8", "w4a4") == "w4a4"  # bits of weights are more than bits of activations
    assert among(w4a8, "w4a16", "w4a6", "w4a4") == "w4a6"
    assert among(RECIPES["fp8"], "w8a8", "w8a8-static") == "w8a8"  # per token, as before
    assert among(RECIPES["fp8"], "w8a8-attn", "w8a8") == "w8a8"
    assert among(w4a8) is None
    assert str(distance(w4a8, RECIPES["w4a16"])) == "another method, 8 bits of activations apart"
    assert str(distance(w4a8, w4a8)) == "the same method, the same bits"


def test_no_recipe_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vditc.recipe_distance.builtin_recipes", lambda: {"nvfp4": builtin_recipes()["nvfp4"]})
    with pytest.raises(InputError, match=r"exist from Blackwell.*; choose another target$"):
        TARGETS["h100"].check(RECIPES["nvfp4"])


def test_attention_over_more_keys_than_float16_counts() -> None:
    for name, target in TARGETS.items():
        target.check_attention(65_504, "here")
        if name == "cpu":
            target.check_attention(75_600, "here")
            continue
        with pytest.raises(
            InputError,
            match=rf"^here: found attention over 65505 tokens in fp16; wanted at most 65504 on target {name}: .*"
            rf"; lower with --attention bf16, or lower for --target {name}-bf16, or give",
        ):
            target.check_attention(65_505, "here")


def test_attention_in_bfloat16_where_float16_does_not_count() -> None:
    for name, target in TARGETS.items():
        assert target.for_keys(65_504) == target
        assert target.for_keys(65_505).attention == (None if name == "cpu" else "bf16")
    h100 = TARGETS["h100"]
    wide = h100.for_keys(65_505)
    assert wide == h100.attending("bf16") == wide.for_keys(70_000) and (wide.name, wide.compute) == ("h100", "fp16")
    assert wide.attending("fp16") == h100
    assert Target.load("h100-bf16").for_keys(65_505) == Target.load("h100-bf16")
    narrow = dataclasses.replace(h100, computes=("fp16",))
    assert narrow.for_keys(65_505) == narrow
    with pytest.raises(InputError, match=r"give a --profile with smaller clips$") as refused:
        narrow.check_attention(65_505, "here")
    assert "--attention" not in str(refused.value)
    for target, compute in ((narrow, "bf16"), (h100, "fp32"), (TARGETS["cpu"], "bf16"), (Target.load("h100-bf16"), "fp16")):
        with pytest.raises(InputError, match=f"found attention in {compute}; wanted"):
            target.attending(compute)


def test_a_target_with_another_type() -> None:
    wide = Target.load("h100-bf16")
    assert (wide.name, wide.compute) == ("h100-bf16", "bf16")
    assert dataclasses.replace(wide, name="h100", compute="fp16") == TARGETS["h100"]
    assert wide.computing("fp16").name == "h100-fp16"
    with pytest.raises(InputError, match="target cpu: found compute bf16; wanted fp32"):
        Target.load("cpu-bf16")


def test_own_files_with_own_quirks(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('says = "odd"\nsource = "https://example.org"\nint4_blocks = [256, 64, 16]\nfp16_keys = 9\n')
    text = (
        builtin_targets()["l4"].read_text().replace("quirks = [", 'quirks = [\n    "own.toml",').replace('"fp16", "bf16"', '"fp16", "fp32"')
    )
    (tmp_path / "mine.toml").write_text(text.replace('name = "l4"', 'name = "mine"'))
    mine = Target.load(str(tmp_path / "mine.toml"))
    assert mine.name == "mine"
    assert mine.int4_blocks == (64, 16)  # those that both quirks allow
    with pytest.raises(InputError, match=r"at most 9 on target mine: odd \[https://example.org\]; give a --profile with smaller clips"):
        mine.check_attention(10, "here")
    with pytest.raises(InputError, match='put "bf16" first in the target\'s compute, or give'):
        dataclasses.replace(mine, computes=("fp16", "bf16")).check_attention(10, "here")


def test_no_blocks_where_none_are_needed() -> None:
    assert TARGETS["cpu"].int4_blocks == ()
    assert {t.int4_blocks for name, t in TARGETS.items() if name != "cpu"} == {(128, 64, 32, 16)}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('backend = "onnxruntime"', 'backend = "tvm"', "found backend = 'tvm'; wanted tensorrt_rtx, tensorrt, onnxruntime"),
        ('builds = "here"', 'builds = "there"', "found builds = 'there'; wanted here, on_device"),
        ('compute = ["fp32"]', 'compute = ["fp64"]', r"found compute = \['fp64'\]; wanted some of fp32, fp16, bf16"),
        ('compute = ["fp32"]', "compute = []", r"found compute = \[\]"),
        ("opset_least = 7", 'opset_least = "7"', "found opset_least = '7'; wanted int"),
        ("opset_least = 7", "", "wanted opset_least = int"),
        ("opset_least = 7", "opset_least = 7\nspeed = 3", "unknown key speed"),
        ('runtime_least = "1.20"', 'runtime_least = "new"', "found version 'new'; wanted numbers and dots"),
        ('runtime_least = "1.20"', 'runtime_least = "1.20"\nruntime_greatest = "1.19"', "found 1.20 to 1.19; wanted a range that grows"),
        ("quirks = []", 'quirks = ["slow"]', "found quirk 'slow'; wanted one of .*fp32-scales"),
        ("quirks = []", 'quirks = ["no-int8-on-sm103"]', "found quirk no-int8-on-sm103 of sm_103; wanted quirks of any CPU"),
        ("[[products]]", '[[products]]\nweight = ["int5"]', r"#1: found weight int5; wanted int8, int6"),
        ("[[products]]", '[[products]]\ngranularity = ["per_row"]', "found granularity per_row; wanted per_tensor"),
        ("[[products]]", '[[products]]\ngroup_sizes = ["64"]', "found group_sizes = .*; wanted a list of whole numbers"),
        ("[[products]]", "[[products]]\nspeed = 1", "unknown key speed"),
    ],
)
def test_wrong_targets(tmp_path: Path, old: str, new: str, found: str) -> None:
    text = builtin_targets()["cpu"].read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=found):
        Target.load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('says = "s"\n', "wanted source = str"),
        ('says = "s"\nsource = "u"\n', "found nothing that follows; wanted one of refuses, operators"),
        ('says = "s"\nsource = "u"\nfp16_keys = "9"\n', "found fp16_keys = '9'; wanted int"),
        ('says = "s"\nsource = "u"\nfp16_keys = 9\ncolour = 1\n', "unknown key colour"),
        ('says = "s"\nsource = "u"\n[[refuses]]\nweights = ["int8"]\n', r"\[\[refuses\]\] #1: found unknown key weights"),
    ],
)
def test_wrong_quirks(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=rf"mine\.toml.*{found}"):
        Quirk.load("mine.toml", tmp_path)


def test_rows_of_products() -> None:
    w4, a8 = weight(QType.INT4, 64), per_token(QType.INT8)
    assert Products().hold(Scheme(weight=w4))
    assert Products(weight=("int4",), group_sizes=(64,)).hold(Scheme(weight=w4))
    assert not Products(weight=("int4",), group_sizes=(32,)).hold(Scheme(weight=w4))
    assert Products(group_sizes=(32,)).hold(Scheme(weight=weight(QType.INT8)))  # of weights in groups alone
    assert not Products(activation=("float",)).hold(Scheme(weight=weight(QType.INT8), activation=a8))
    assert Products(activation=("float",)).hold(Scheme(weight=w4))
    assert not Products(activation_granularity=("per_tensor",)).hold(Scheme(weight=weight(QType.INT8), activation=a8))
    assert (
        str(Products(weight=("int4",), granularity=("per_group",), group_sizes=(64,), activation=("float",)))
        == "int4 per_group (64) x float"
    )
    assert str(Products()) == "everything"


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"found target 'tpu'; wanted one of a10, .*or a \.toml file; see `vditc targets`"):
        Target.load("tpu")
