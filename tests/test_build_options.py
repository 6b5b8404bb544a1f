from __future__ import annotations

from pathlib import Path

import pytest

from vditc.build_options import AUTO, DEFAULTS, BuildOptions, byte_count, check_targets
from vditc.errors import InputError
from vditc.target import Target, builtin_targets

ALL = (
    "level=5,workspace=8GiB,tactic-memory=9GiB,tiling=full,timing-cache=off,refit,strip-weights,weight-streaming=1.5GB,"
    "hardware-compatibility=ampere_plus,version-compatible,embed-plugins,memory=16GB"
)


def test_every_option_is_read_and_written() -> None:
    options = BuildOptions.parse(ALL)
    assert options == BuildOptions(
        level=5,
        workspace=8 * 2**30,
        tactic_memory=9 * 2**30,
        tiling="full",
        timing_cache=False,
        refit=True,
        strip_weights=True,
        weight_streaming=1_500_000_000,
        hardware_compatibility="ampere_plus",
        version_compatible=True,
        embed_plugins=True,
        memory=16_000_000_000,
    )
    cut = BuildOptions.parse("segments=3")
    assert cut.segments == 3 and {*options.asked, *cut.asked} == {*BuildOptions.NAMES} and options.asked == BuildOptions.NAMES[:-1]
    for one in (options, cut, DEFAULTS, *map(BuildOptions.parse, ("level=0,timing-cache=on,weight-streaming", "segments=auto"))):
        assert BuildOptions.parse(str(one)) == one == BuildOptions.from_json(one.to_json())
    assert (str(DEFAULTS), DEFAULTS.asked, DEFAULTS.to_json()) == ("", (), {})
    assert BuildOptions.parse("level=0").asked == ("level",)  # 0 is no default
    assert BuildOptions.parse(" weight-streaming ").weight_streaming == AUTO


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("levl=5", "found option 'levl'; wanted some of level, workspace"),
        ("level=5,level=4", "found option 'level' twice"),
        ("level=6", "level: found '6'; wanted 0 to 5"),
        ("level", "level: found ''; wanted 0 to 5"),
        ("refit=on", "refit: found 'on'; wanted no value"),
        ("tiling=none", "tiling: found 'none'; wanted fast or moderate or full"),
        ("timing-cache=maybe", "timing-cache: found 'maybe'; wanted on or off"),
        ("timing-cache", "timing-cache: found ''"),
        ("hardware-compatibility=volta", "wanted ampere_plus or same_compute_capability"),
        ("workspace=8", "workspace: found '8'; wanted a number with one of B, KB"),
        ("workspace=8G", "found '8G'; wanted a number with one of"),
        ("workspace=0GiB", "found '0GiB'"),
        ("workspace=-1GiB", "found '-1GiB'"),
        ("memory=lots", "found 'lots'"),
        ("segments", "segments: found ''; wanted a number from 1 on, or auto"),
        ("segments=0", "segments: found '0'"),
        ("segments=2,strip-weights", "found segments and strip-weights; wanted one of them"),
        ("weight-streaming,segments=auto", "found segments and weight-streaming"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        BuildOptions.parse(text)


def test_the_documentation_has_every_option() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "engines.md").read_text()
    assert [name for name in BuildOptions.NAMES if f"\n| `{name}" not in text] == []


def test_sizes_have_units() -> None:
    wanted = {"1B": 1, "2KB": 2000, "2KiB": 2048, "1.5MB": 1_500_000, "3 GiB": 3 * 2**30, "1TB": 10**12, "0.5TiB": 2**39}
    assert {text: byte_count(text, "") for text in wanted} == wanted


def test_options_of_one_target() -> None:
    texts = ("refit", "h100:level=5,workspace=1GiB", "l4:level=1")
    assert BuildOptions.for_target(texts, "h100") == BuildOptions(refit=True, level=5, workspace=2**30)
    assert BuildOptions.for_target(texts, "rtx-ada") == BuildOptions(refit=True)
    with pytest.raises(InputError, match="--engine of h100: found option 'refit' twice"):
        BuildOptions.for_target((*texts, "h100:refit"), "h100")
    check_targets(texts, ["h100", "l4"])
    with pytest.raises(InputError, match="found options of target 'l4'; wanted one of h100"):
        check_targets(texts, ["h100"])


def refused(target: str) -> set[str]:
    """Options that a target refuses, one by one."""
    found = set()
    for item in (*ALL.split(","), "segments=2"):
        try:
            Target.load(target).check_options(BuildOptions.parse(item))
        except InputError as error:
            found.add(error.found.removeprefix("engine option "))
    return found


def test_which_target_has_what() -> None:
    """Known facts. Nothing is read and ignored: CPU targets build nothing, TensorRT-RTX chooses its kernels when it loads an engine."""
    rtx = {"level", "tactic-memory", "tiling", "timing-cache", "hardware-compatibility", "version-compatible"}
    wanted: dict[str, set[str]] = {name: set() for name in builtin_targets()}
    wanted |= {"cpu": set(BuildOptions.NAMES), "rtx-ada": rtx, "rtx-blackwell": rtx}
    wanted |= {"jetson-orin": {"hardware-compatibility"}, "jetson-thor": {"hardware-compatibility"}}
    wanted |= {"jetson-orin-jp6": {"hardware-compatibility", "tiling"}}
    assert {name: refused(name) for name in builtin_targets()} == wanted
    with pytest.raises(
        InputError, match=r"target jetson-orin .*found engine option hardware-compatibility; .* not supported on JetPack \[https"
    ):
        Target.load("jetson-orin").check_options(BuildOptions(hardware_compatibility="ampere_plus"))


def test_what_parts_are_built_with() -> None:
    """Not what speaks of a transformer's weights, plugins and blocks."""
    given = BuildOptions.parse("level=4,tactic-memory=1GiB,version-compatible,timing-cache=off,embed-plugins,refit,memory=8GiB,segments=2")
    assert str(given.of_parts) == "level=4,tactic-memory=1073741824B,timing-cache=off,version-compatible"
    assert set(BuildOptions.OF_PARTS) < set(BuildOptions.NAMES) and BuildOptions().of_parts == BuildOptions()
