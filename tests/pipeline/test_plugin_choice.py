"""Whether a target's graph goes to the plugin library, and what the bundle says of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from vditc.bundle import Bundle
from vditc.errors import InputError, VditcError
from vditc.files import sha256
from vditc.pipeline import compile as job_module
from vditc.pipeline import plugin_choice
from vditc.pipeline.compile import Job, compile_bundle, prepare
from vditc.pipeline.plugin_choice import choose_plugins, find_library, runs_on
from vditc.plugins.build import ARCHITECTURES, FACTS, LIBRARY, Wanted
from vditc.progress import SILENT, Progress
from vditc.recipe import Gate, Recipe
from vditc.target import PLATFORMS, Target

W4A8, W8A8, RTX = Recipe.load("w4a8-rtn"), Recipe.load("w8a8"), Target.load("rtx-ada")


def empty(folder: Path, target: Target = RTX) -> Path:
    """A file where the library would be; nobody loads it."""
    (path := folder / target.platform / LIBRARY).parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"library")
    return path


def test_auto_takes_the_library_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = choose_plugins("auto", RTX, W4A8, SILENT)
    assert none.library is None and none.reason.startswith("no plugin library for x86_64 (") and none.reason.endswith("makes it")
    monkeypatch.setenv("VDITC_PLUGINS", str(tmp_path))
    path = empty(tmp_path)
    for mode in ("auto", "on"):
        found = choose_plugins(mode, RTX, W4A8, SILENT)
        assert (found.library, found.sha256, found.mode) == (path, sha256(path), mode)
    assert choose_plugins("off", RTX, W4A8, SILENT) == plugin_choice.PluginChoice(mode="off", reason="--plugins off")


@pytest.mark.parametrize("recipe", ["w8a8", "w4a16", "fp16", "w6a6", "fp8"])
def test_recipes_without_layers_for_the_library(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDITC_PLUGINS", str(tmp_path))
    empty(tmp_path)
    found = choose_plugins("auto", RTX, Recipe.load(recipe), SILENT)
    assert found.library is None and found.reason == f"recipe {recipe} has no weights of 4 bits or fewer beside integer activations"
    with pytest.raises(InputError, match=rf"--plugins on: found recipe {recipe} has no weights"):
        choose_plugins("on", RTX, Recipe.load(recipe), SILENT)


def test_the_portable_graph_needs_none() -> None:
    for mode in ("auto", "on"):
        assert choose_plugins(mode, Target.load("cpu"), W4A8, SILENT).reason == "ONNX Runtime runs the portable graph"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="--plugins: found yes; wanted auto or on or off"):
        choose_plugins("yes", RTX, W4A8, SILENT)


def test_on_builds_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDITC_PLUGINS", str(tmp_path))
    jetson, built = Target.load("jetson-orin-jp6"), list[Wanted]()

    def build(wanted: Wanted, *, progress: Progress) -> None:
        built.append(wanted)
        empty(tmp_path, jetson)

    monkeypatch.setattr(plugin_choice, "build", build)
    assert choose_plugins("on", jetson, W4A8, SILENT).library == tmp_path / "aarch64-cuda12" / LIBRARY
    assert [wanted.platform for wanted in built] == ["aarch64-cuda12"]


@pytest.mark.parametrize(
    ("has", "target", "lacking"),
    [
        (["80", "86", "89", "120a"], "rtx-ada", ""),
        (["80", "120a"], "rtx-ada", ""),  # code of 8.0 runs on 8.6 and 8.9
        (["86", "89", "120a"], "rtx-ada", "sm_80"),
        (["80", "90a"], "h100", ""),
        (["80", "90a"], "rtx-ada", "sm_120"),
        (["100a"], "b300", "sm_103"),
        (["100"], "b300", ""),
    ],
)
def test_a_library_says_which_gpus_it_is_for(has: list[str], target: str, lacking: str, tmp_path: Path) -> None:
    path = empty(tmp_path)
    path.with_name(FACTS).write_text(json.dumps({"architectures": has}))
    if not lacking:
        assert find_library(Target.load(target), tmp_path) == path == find_library(Target.load(target), path)
        return
    with pytest.raises(InputError, match=rf"found code for .*; wanted code for {lacking} of target {target}; build it with these"):
        find_library(Target.load(target), path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.so: found no file"):
        find_library(RTX, tmp_path / "none.so")


def test_layers_that_lowering_does_not_hand_over(tmp_path: Path) -> None:
    """auto goes on without the library and says so; on is an error."""
    path = empty(tmp_path)
    found = plugin_choice.PluginChoice(mode="auto", reason="r", library=path, sha256="0")
    about = plugin_choice.recorded(found, RTX, {})
    assert "library" not in about and about["reason"].startswith("no layer of this model went to the plugin library")
    with pytest.raises(VditcError, match="target rtx-ada: found no operator of the plugin library in the lowered graph"):
        plugin_choice.recorded(dataclasses.replace(found, mode="on"), RTX, {})


@pytest.fixture
def job(tiny_dir: Path, tmp_path: Path) -> Job:
    recipe = dataclasses.replace(W4A8, gate=Gate())
    prompts = ("a 7 moving left", "a 2 moving up")
    return Job(model_dir=tiny_dir, recipe=recipe, targets=(Target.load("a100"),), out=tmp_path / "tiny.bundle", prompts=prompts, clips=2)


class Notes:
    """Remembers what is said."""

    task = SILENT.task

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_bundle_without_a_library_says_why(job: Job) -> None:
    notes = Notes()
    bundle = compile_bundle(job, notes)
    about = bundle.manifest.targets["a100"]
    assert about["plugins"]["mode"] == "auto" and about["plugins"]["reason"].startswith("no plugin library for x86_64")
    assert not [name for name in bundle.manifest.files if name.startswith("plugins/")]
    assert any(text.startswith("a100 without plugins: no plugin library for x86_64") for text in notes.said)
    assert "--plugins" not in (job.out / "engines" / "a100" / "build.sh").read_text()


def test_a_bundle_has_the_library_that_its_engine_needs(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a target whose graph must not have the bodies; ONNX Runtime then checks the numbers of one that has."""
    without = prepare(job).digest
    monkeypatch.setenv("VDITC_PLUGINS", str(tmp_path / "libraries"))
    path = empty(tmp_path / "libraries")
    assert prepare(job).digest != without  # neither resumes the other
    bundle = compile_bundle(job, SILENT)
    about, name = bundle.manifest.targets["a100"], f"plugins/x86_64/{LIBRARY}"
    assert about["plugins"] == {
        "mode": "auto",
        "reason": "layers with weights of 4 or 3 bits beside codes",
        "library": name,
        "sha256": sha256(path),
        "operators": about["plugins"]["operators"],
        "version": "1",
        "namespace": "vditc",
    }
    assert about["plugins"]["operators"]["vditc.QLinear"] == 20
    assert bundle.manifest.files[name].sha256 == sha256(path) and Bundle.open(job.out).file(name).is_file()
    assert about["graph"]["error"] <= job_module.LOWERED_TOLERANCE and "plugins" not in about["graph"]
    script = (job.out / "engines" / "a100" / "build.sh").read_text()
    assert f"--plugins ../../{name}" in script
    shutil.rmtree(job.out)
    off = compile_bundle(dataclasses.replace(job, plugins="off"), SILENT).manifest.targets["a100"]
    assert off["plugins"] == {"mode": "off", "reason": "--plugins off"}


@pytest.mark.parametrize(
    ("has", "arch", "runs"),
    [
        ("80", "sm_86", True),
        ("86", "sm_80", False),
        ("80", "sm_87", False),  # Jetson runs its own code alone
        ("87", "sm_87", True),
        ("90a", "sm_90", True),
        ("100f", "sm_103", True),
        ("100a", "sm_103", False),
        ("110a", "sm_110", True),
        ("80", "sm_120", False),
    ],
)
def test_which_gpus_run_machine_code(has: str, arch: str, runs: bool) -> None:
    assert runs_on(arch, [has]) is runs


def test_every_platform_of_targets_can_be_built() -> None:
    assert set(PLATFORMS) == set(ARCHITECTURES)
