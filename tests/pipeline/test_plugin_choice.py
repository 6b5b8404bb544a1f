"""Whether a target's graph goes to the plugin library, and what the bundle says of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import onnx
import pytest

from vditc.attention import AttentionScheme
from vditc.bundle import Bundle
from vditc.device.package import DevicePackage
from vditc.errors import InputError, VditcError
from vditc.files import sha256
from vditc.numerics import Granularity, QType
from vditc.pipeline import compile as job_module
from vditc.pipeline import denoisers, plugin_choice, plugin_library
from vditc.pipeline.compile import compile_bundle, prepare
from vditc.pipeline.job import Job
from vditc.pipeline.plugin_choice import PluginChoice, choose_plugins
from vditc.pipeline.plugin_library import find_library, runs_on
from vditc.plugins.build import ARCHITECTURES, FACTS, LIBRARY, Wanted
from vditc.progress import SILENT, Progress
from vditc.recipe import Gate, Recipe
from vditc.scheme import QuantSpec
from vditc.target import PLATFORMS, Target

W4A8, W8A8, RTX = Recipe.load("w4a8-rtn"), Recipe.load("w8a8"), Target.load("rtx-ada")


def empty(folder: Path, target: Target = RTX) -> Path:
    """A file where the library would be; nobody loads it."""
    (path := folder / target.platform / LIBRARY).parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"library")
    return path


def choose(mode: str, target: Target, recipe: Recipe) -> PluginChoice:
    return choose_plugins(mode, [target], recipe, SILENT)[target.name]


def facts(path: Path, architectures: Sequence[str], digest: str | None = None) -> None:
    """What is said of a library beside it."""
    path.with_name(FACTS).write_text(json.dumps({"architectures": list(architectures), "sha256": digest or sha256(path)}))


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are looked for; empty."""
    monkeypatch.setenv("VDITC_PLUGINS", str(tmp_path / "libraries"))
    return tmp_path / "libraries"


@pytest.fixture
def built(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What was built instead of compiling it."""
    wanted_ones: list[Wanted] = []

    def build(wanted: Wanted, *, wider: bool, progress: Progress) -> None:
        assert wider
        wanted_ones.append(wanted)
        (path := libraries / wanted.platform / LIBRARY).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"built")
        facts(path, wanted.architectures)

    monkeypatch.setattr(plugin_library, "build", build)
    return wanted_ones


def test_auto_takes_the_library_where_it_is(libraries: Path) -> None:
    none = choose("auto", RTX, W4A8)
    assert none.library is None and none.reason.startswith("no plugin library for x86_64 (") and none.reason.endswith("makes it")
    assert none.lacking and not none.layers
    path = empty(libraries)
    for mode in ("auto", "on"):
        found = choose(mode, RTX, W4A8)
        assert (found.library, found.sha256, found.mode) == (path, sha256(path), mode)
        assert found.layers and not found.scores and not found.attention
    assert choose("off", RTX, W4A8) == PluginChoice(mode="off", reason="--plugins off")


@pytest.mark.parametrize("recipe", ["w8a8", "w4a16", "fp16", "w6a6", "fp8"])
def test_recipes_without_layers_for_the_library(recipe: str, libraries: Path) -> None:
    empty(libraries)
    target = RTX if recipe != "fp8" else Target.load("l4")
    found = choose("auto", target, Recipe.load(recipe))
    assert found.library is None and found.reason == f"recipe {recipe} has no weights of 4 bits or fewer beside integer activations"
    with pytest.raises(InputError, match=rf"--plugins on: found recipe {recipe} has no weights"):
        choose("on", target, Recipe.load(recipe))


def test_the_portable_graph_needs_none() -> None:
    for mode in ("auto", "on"):
        assert choose(mode, Target.load("cpu"), W4A8).reason == "ONNX Runtime runs the portable graph"
    attention = choose("on", Target.load("cpu"), Recipe.load("w8a8-attn")).attention
    assert attention == "floating point: ONNX Runtime runs the portable graph"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="--plugins: found yes; wanted auto or on or off"):
        choose("yes", RTX, W4A8)


def attending(recipe: Recipe, **scheme: Any) -> Recipe:
    return dataclasses.replace(recipe, attention=AttentionScheme(**scheme))


@pytest.mark.parametrize("recipe", [W8A8, W4A8], ids=["w8a8", "w4a8"])
def test_a_recipe_chooses_quantized_attention(recipe: Recipe, libraries: Path) -> None:
    """Where the library is; elsewhere attention stays in floating point, for a reason that is said."""
    asked = attending(recipe, qk=QType.INT8, pv=QType.FP8_E4M3, smooth_k=True, block_size=64)
    none = choose("auto", RTX, asked)
    assert none.lacking and not none.scores and none.attention == f"floating point: {none.reason}"
    empty(libraries)
    found = choose("auto", RTX, asked)
    assert found.scores and found.layers is (recipe is W4A8) and found.reason.endswith("attention with INT8 scores")
    finer = "a scale for every token instead of every 64; weights times v in 16 bits, since no operator has fp8_e4m3 for them"
    assert found.attention == f"INT8 scores; {finer}"
    assert choose("auto", RTX, attending(recipe, qk=QType.INT8)).attention == "INT8 scores"
    assert choose("off", RTX, asked).attention == "floating point: --plugins off"


def test_attention_that_the_library_does_not_take(libraries: Path) -> None:
    """Of v alone, and on GPUs without INT8 products."""
    empty(libraries)
    v = attending(W8A8, pv=QType.INT8)
    why = r"of its attention the library takes nothing: it has INT8 scores, the recipe asks for QK\[float\] PV\[int8\]"
    assert choose("auto", RTX, v).attention == "floating point: it has INT8 scores, the recipe asks for QK[float] PV[int8]"
    with pytest.raises(InputError, match=why):
        choose("on", RTX, v)
    few = choose("auto", RTX, attending(W4A8, pv=QType.INT8))
    assert few.layers and not few.scores and few.attention.startswith("floating point: it has INT8 scores")
    slow = choose("auto", Target.load("b300"), attending(Recipe.load("fp8"), qk=QType.INT8))
    assert not slow.scores and slow.attention.startswith("floating point: target b300 runs no INT8 products: INT8 products on sm_103")


@pytest.mark.parametrize("qtype", [QType.INT8, QType.INT4, QType.INT3])
def test_groups_need_the_library(qtype: QType, libraries: Path) -> None:
    groups, name = grouped(qtype), "--plugins on hands such layers to the plugin library"
    for mode in ("off", "auto"):
        with pytest.raises(InputError, match=rf"rule 3 of recipe w4a8-rtn: W\[{qtype.value} per_group\(128\)\].*{name}"):
            choose(mode, RTX, groups)
    assert choose("off", Target.load("cpu"), groups).library is None  # ONNX Runtime computes what the graph says
    empty(libraries)
    found = choose("auto", RTX, groups)
    assert found.layers and found.reason.endswith("layers in groups beside codes")
    RTX.check(groups, plugins=True)
    with pytest.raises(InputError, match="INT8 products on sm_103 are several times slower") as refused:
        Target.load("b300").check(groups, plugins=True)
    assert "--plugins" not in str(refused.value)


def grouped(qtype: QType) -> Recipe:
    """W4A8 with other weights, in groups of 128."""
    weight = QuantSpec(qtype=qtype, granularity=Granularity.PER_GROUP, group_size=128)
    rules = [r if r.scheme is None else dataclasses.replace(r, scheme=dataclasses.replace(r.scheme, weight=weight)) for r in W4A8.rules]
    return dataclasses.replace(W4A8, rules=tuple(rules))


def test_on_builds_what_is_not_there(built: list[Wanted], libraries: Path) -> None:
    """For the GPUs of all targets of a platform, and what is there stays."""
    targets = [Target.load(name) for name in ("h100", "jetson-orin-jp6", "l4", "cpu", "h200")]
    found = choose_plugins("on", targets, W4A8, SILENT)
    assert [(w.platform, w.architectures) for w in built] == [("x86_64", ("89", "90a")), ("aarch64-cuda12", ("87",))]
    assert found["h100"].library == found["l4"].library == libraries / "x86_64" / LIBRARY and found["cpu"].library is None
    assert found["jetson-orin-jp6"].library == libraries / "aarch64-cuda12" / LIBRARY
    built.clear()
    assert choose_plugins("on", targets, W4A8, SILENT) == found and not built
    choose_plugins("on", [Target.load("rtx-blackwell")], W4A8, SILENT)
    assert [w.architectures for w in built] == [("89", "90a", "120a")]


def test_on_builds_anew_what_was_cut_short(built: list[Wanted], libraries: Path) -> None:
    path = empty(libraries)
    facts(path, ["80", "120a"], digest="0")
    none = choose("auto", RTX, W4A8)
    assert none.lacking and "cut short or replaced" in none.reason
    assert choose("on", RTX, W4A8).library == path and [w.architectures for w in built] == [("80", "86", "89", "120a")]


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
    facts(path, has)
    if not lacking:
        assert find_library(Target.load(target), tmp_path) == path == find_library(Target.load(target), path)
        return
    with pytest.raises(InputError, match=rf"found code for .*; wanted code for {lacking} of target {target}; build it with these"):
        find_library(Target.load(target), path)


def test_a_library_that_is_not_the_one_of_its_facts(tmp_path: Path) -> None:
    path = empty(tmp_path)
    facts(path, ["80", "120a"])
    assert find_library(RTX, path) == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{LIBRARY}: found another file than {FACTS} beside it speaks of, cut short or replaced"):
        find_library(RTX, path)
    for text in ("", '{"architectures": ["80"]}', "[]"):
        path.with_name(FACTS).write_text(text)
        with pytest.raises(InputError, match=rf"{FACTS}: found unreadable"):
            find_library(RTX, path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.so: found no file"):
        find_library(RTX, tmp_path / "none.so")


def test_what_lowering_does_not_hand_over(tmp_path: Path) -> None:
    """auto goes on without the library and says so; on is an error."""
    path, left = empty(tmp_path), {"8 keys at the default sizes; min_keys is 1024": 2}
    found = PluginChoice(mode="auto", reason="attention", library=path, sha256="0", scores=True, attention="INT8 scores")
    about = plugin_choice.recorded(found, RTX, {}, left)
    assert "library" not in about and about["reason"].startswith("nothing of this model went to the plugin library")
    computed = "floating point: the library takes no attention of this model"
    assert about["attention"] == {"computed": computed, "int8_scores": 0, "left": left}
    with pytest.raises(VditcError, match=r"found no operator .* attention: 8 keys at the default sizes.*the recipe has attention"):
        plugin_choice.recorded(dataclasses.replace(found, mode="on"), RTX, {}, left)


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
    assert DevicePackage.read(job.out / "engines" / "a100").library is None


def test_a_bundle_has_the_library_that_its_engine_needs(job: Job, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a target whose graph must not have the bodies; ONNX Runtime then checks the numbers of one that has."""
    without = prepare(job).digest
    path = empty(libraries)
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
    assert DevicePackage.read(job.out / "engines" / "a100").library == name
    (engine := Mock()).open.return_value = contextlib.nullcontext()
    monkeypatch.setattr(denoisers, "backend_named", lambda _: engine)
    with denoisers.open_denoiser(Bundle.open(job.out), "a100"):
        given = engine.open.call_args.kwargs["plugins"]
    assert given.library == job.out / name  # only what the engine has is asked of it
    assert given.wanted == (("QLinear", "1", "vditc"), ("QuantizeToken", "1", "vditc"))
    shutil.rmtree(job.out)
    off = compile_bundle(dataclasses.replace(job, plugins="off"), SILENT).manifest.targets["a100"]
    assert off["plugins"] == {"mode": "off", "reason": "--plugins off"}


def test_a_bundle_with_quantized_attention(job: Job, libraries: Path) -> None:
    """Attentions of many keys at the profile's greatest sizes; the graph's numbers are the portable graph's, but for INT8 scores."""
    empty(libraries)
    recipe = dataclasses.replace(attending(W8A8, qk=QType.INT8, smooth_k=True), gate=Gate())
    notes, large = Notes(), dataclasses.replace(job, recipe=recipe, profile="frames=2:2:8,height=8:8:64,width=8:8:64,text_tokens=4")
    about = compile_bundle(large, notes).manifest.targets["a100"]
    left = {"4 keys at the profile's greatest sizes; min_keys is 1024": 2}
    assert about["plugins"]["attention"] == {"computed": "INT8 scores", "int8_scores": 2, "left": left}
    assert about["plugins"]["operators"] == {"vditc.QAttention": 2} and about["plugins"]["library"] == f"plugins/x86_64/{LIBRARY}"
    assert "a100 computes attention in INT8 scores" in notes.said
    assert 0 < about["graph"]["error"] <= job_module.LOWERED_TOLERANCE
    graph = onnx.load(job.out / about["lowered"], load_external_data=False)
    assert not graph.functions and sum(n.op_type == "Softmax" for n in graph.graph.node) == 2
    shutil.rmtree(job.out)
    small = compile_bundle(dataclasses.replace(large, profile="frames=2,height=8,width=8,text_tokens=4"), SILENT).manifest.targets["a100"]
    assert "library" not in small["plugins"] and small["plugins"]["attention"]["int8_scores"] == 0
    assert small["plugins"]["attention"]["computed"] == "floating point: the library takes no attention of this model"


@pytest.mark.slow
@pytest.mark.parametrize("qtype", [QType.INT8, QType.INT4])
def test_a_bundle_with_groups(qtype: QType, job: Job, libraries: Path) -> None:
    """Every such layer goes to the library: TensorRT miscompiles it."""
    empty(libraries)
    job = dataclasses.replace(job, recipe=dataclasses.replace(grouped(qtype), gate=Gate()))
    about = compile_bundle(job, SILENT).manifest.targets["a100"]
    assert about["plugins"]["operators"]["vditc.QLinear"] == 20 and "vditc.QuantizeToken" in about["plugins"]["operators"]
    nodes = onnx.load(job.out / about["lowered"], load_external_data=False).graph.node
    assert not [n for n in nodes if n.op_type == "DequantizeLinear"]


def test_a_job_is_not_resumed_with_another_library(job: Job, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it began with is said; the same without a library, or with the same one, goes on whatever the mode is called."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def begin(**changes: Any) -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(job_module, "_verify", interrupted)
            compile_bundle(dataclasses.replace(job, **changes), SILENT)

    begin()
    path = empty(libraries)
    now = f"--plugins auto and the library of sha256 {sha256(path)[:12]}"
    with pytest.raises(
        InputError, match=rf"of another job; plugins of a100: began with --plugins auto without a library, now {now}; wanted"
    ):
        compile_bundle(dataclasses.replace(job, resume=True), SILENT)
    begin(resume=True, plugins="off")
    begin(force=True)
    path.unlink()
    with pytest.raises(InputError, match=rf"a100: began with {now}, now --plugins off without a library; wanted"):
        compile_bundle(dataclasses.replace(job, resume=True, plugins="off"), SILENT)
    empty(libraries)
    done = compile_bundle(dataclasses.replace(job, resume=True, plugins="on"), SILENT).manifest.targets["a100"]["plugins"]
    assert done["mode"] == "on" and done["sha256"] == sha256(path)


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
