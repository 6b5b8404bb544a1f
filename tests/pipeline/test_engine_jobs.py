"""`vditc build BUNDLE`: what becomes of each job, and of the bundle when something goes wrong.

The builder is the one of tests/fake_builder, in every process; one slow test has TensorRT-RTX.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import component_case
import pytest
from command import Run, vditc
from fake_builder.fake_rtx import FakeRTX

from vditc.build_jobs import BuildJob
from vditc.bundle import MANIFEST, Bundle, list_files
from vditc.bundle_update import WORK
from vditc.device.package import DevicePackage
from vditc.pipeline import local_builds
from vditc.pipeline.cluster_worker import ability, own_resources, put_piece, wanted_resources
from vditc.pipeline.compile import compile_bundle
from vditc.pipeline.engine_jobs import EngineJobs
from vditc.pipeline.engine_task import EngineRequest, attempt
from vditc.pipeline.job import Job
from vditc.pipeline.local_builds import Event, LocalBuilds, Order
from vditc.progress import SILENT
from vditc.recipe import Gate, Recipe
from vditc.runtimes.graph_precision import expected_precision
from vditc.runtimes.registry import BACKENDS
from vditc.target import Target

TESTS = Path(__file__).resolve().parents[1]
DOC = TESTS.parent / "docs/datacenter.md"


@pytest.fixture(scope="module")
def compiled(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for the CPU and the H100, whose engine is built elsewhere."""
    recipe, targets = dataclasses.replace(Recipe.load("w8a8"), gate=Gate()), (Target.load("cpu"), Target.load("h100"))
    out = tmp_path_factory.mktemp("jobs") / "wan.bundle"
    compile_bundle(Job(model_dir=tiny_dir, recipe=recipe, targets=targets, out=out, prompts=("a 7 moving left",), clips=1), SILENT)
    return out


@pytest.fixture(scope="module")
def lowered(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with lowered graphs for two targets more, and no engines of them: their builder is killed."""
    bundle, fake = compiled.with_name("lowered.bundle"), tmp_path_factory.mktemp("fake")
    shutil.copytree(compiled, bundle)
    (fake / "die").write_text("rtx-ada rtx-blackwell")
    with pytest.MonkeyPatch.context() as patch:
        with_fake_builder(patch, fake)
        run = vditc("build", str(bundle), "--target", "rtx-ada", "--target", "rtx-blackwell", "--no-verify", "--jobs", "2", "--json")
    assert (run.code, [job["state"] for job in json.loads(run.stdout)["jobs"]]) == (1, ["failed", "failed"])
    assert all("died of SIGKILL" in job["reason"] for job in json.loads(run.stdout)["jobs"])
    assert not list((bundle / "engines").glob("rtx*"))
    shutil.rmtree(bundle / WORK)
    return bundle


def with_fake_builder(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("FAKE_BUILDER", str(folder))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS / "fake_builder"), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that tells the builder what to do."""
    (tmp_path / "fake").mkdir()
    with_fake_builder(monkeypatch, tmp_path / "fake")
    return tmp_path / "fake"


@pytest.fixture
def bundle(lowered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lowered, tmp_path / "wan.bundle"))


def calls(fake: Path) -> list[str]:
    """Targets in the order in which their builds began."""
    file = fake / "calls"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def build(bundle: Path, *words: str) -> Run:
    return vditc("build", str(bundle), *words)


def jobs(run: Run) -> dict[str, Any]:
    """Target -> job."""
    return {job["target"]: job for job in json.loads(run.stdout)["jobs"]}


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_new_target_is_lowered_as_compile_does(compiled: Path, tmp_path: Path, fake: Path) -> None:
    whole = Bundle.open(compiled).manifest
    bundle = Path(shutil.copytree(compiled, tmp_path / "b"))
    data = json.loads((bundle / MANIFEST).read_text())
    del data["targets"]["h100"]
    for name in [name for name in data["files"] if "h100" in name]:
        del data["files"][name]
        (bundle / name).unlink()
    data["targets"]["cpu"]["memory"]["total"] = 1  # of another backend: nothing of it is taken over
    (bundle / MANIFEST).write_text(json.dumps(data))
    run = build(bundle, "--target", "h100", "--target", "cpu")
    assert run.code == 0, run.stderr
    assert re.search(r"h100 *│ done .*to build.*", run.stdout) and re.search(r"cpu *│ done *│ portable", run.stdout)
    made = Bundle.open(bundle).manifest
    unlike = ("engines/h100/device.json", "engines/h100/SHA256SUMS")  # nobody has estimated the activations for it
    assert sorted(made.files) == sorted(whole.files)
    assert {n: e for n, e in made.files.items() if n not in unlike} == {n: e for n, e in whole.files.items() if n not in unlike}
    about, wanted = dict(made.targets["h100"]), dict(whole.targets["h100"])
    assert 0 < about["graph"].pop("error") < 0.05 and wanted["graph"].pop("error")
    del wanted["memory"]  # there was no target with an estimate for it
    assert about == wanted


def test_jobs_of_a_bundle(bundle: Path, fake: Path) -> None:
    """One fails; the others are kept, and the same command goes on with what is left."""
    (fake / "fail").write_text("rtx-blackwell")
    run = build(bundle, "--target", "all", "--jobs", "2", "--json")
    found = jobs(run)
    assert run.code == 1 and sorted(calls(fake)) == ["rtx-ada", "rtx-blackwell"]
    assert {t: (j["state"], j["status"]) for t, j in found.items()} == {
        "cpu": ("done", "portable"),
        "h100": ("done", "to build on the device"),
        "rtx-ada": ("done", "built"),
        "rtx-blackwell": ("failed", ""),
    }
    assert found["rtx-blackwell"]["reason"] == "rtx-blackwell: found no kernel; wanted one; none"
    opened = Bundle.open(bundle)
    assert opened.file("engines/rtx-ada/model.plan").read_text().startswith("rtx-ada ")
    engine = opened.manifest.targets["rtx-ada"]["engine"]
    assert engine["status"] == "built" and "seconds" not in engine
    assert opened.manifest.targets["rtx-blackwell"]["engine"]["status"] == "to build on the device"
    assert "engines/h100/build.sh" in opened.manifest.files
    DevicePackage.read(bundle / "engines/h100").check_files(bundle / "engines/h100")

    (fake / "fail").unlink()
    run = build(bundle)  # a failure is not tried again by itself
    assert run.code == 1 and "no kernel" in run.stdout and sorted(calls(fake)) == ["rtx-ada", "rtx-blackwell"]
    run = build(bundle, "--retry-failed", "--json")
    assert run.code == 0 and jobs(run)["rtx-blackwell"]["state"] == "done"
    assert sorted(calls(fake)) == ["rtx-ada", "rtx-blackwell", "rtx-blackwell"]
    assert "engines/rtx-blackwell/model.plan" in Bundle.open(bundle).manifest.files
    assert not list((bundle / WORK).glob("rtx*")) and not list(bundle.glob(f"{WORK}-*"))

    assert build(bundle, "--target", "rtx-ada", "--force").code == 0  # anew
    assert build(bundle, "--target", "rtx-ada", "--engine", "refit").code == 0  # as well
    assert build(bundle, "--target", "rtx-ada", "--engine", "refit").code == 0  # is done
    assert calls(fake)[3:] == ["rtx-ada", "rtx-ada"]
    opened = Bundle.open(bundle)
    assert opened.manifest.targets["rtx-ada"]["build"] == {"refit": True}
    assert opened.file("engines/rtx-ada/model.plan").read_text().endswith(" refit\n")


class Here:
    """Builds one after another in this process. `kill`: the command dies when it begins that many builds."""

    def __init__(self, kill: int = 0) -> None:
        self.kill = kill

    def run(self, orders: list[Order]) -> Generator[Event]:
        while orders:
            order = orders.pop(0)
            yield Event(order, "here")
            if (kill := self.kill) == 1:
                raise KeyboardInterrupt
            self.kill = kill - 1
            yield Event(order, "here", attempt(order.request.to_json(), order.name))


@pytest.fixture
def here(fake: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[tuple[str, str], BuildJob]]:
    """`vditc build` with no process but this one: (part, target) -> job."""
    monkeypatch.setitem(BACKENDS, "tensorrt_rtx", FakeRTX)

    def run(bundle: Path, *targets: str, kill: int = 0, **asked: Any) -> dict[tuple[str, str], BuildJob]:
        done = EngineJobs(bundle=bundle, targets=targets, **asked).run(Here(kill), SILENT)
        return {(job.part, job.target): job for job in done}

    return run


def test_every_part_of_a_pipeline(bundle: Path, fake: Path, here: Callable[..., Any]) -> None:
    """Text encoder and decoder are built beside the transformer: for new targets too, and what fails is one graph."""
    component_case.add_components(bundle, [Target.load("h100")])
    made = {name: (bundle / name).read_bytes() for name in Bundle.open(bundle).manifest.files if "components/" in name}
    (fake / "fail").write_text("rtx-ada-vae/next")
    found = here(bundle, "rtx-ada", "h100", "cpu")
    parts = ("transformer", *component_case.NAMES)
    wanted = {"rtx-ada": ("done", "built"), "h100": ("done", "to build on the device"), "cpu": ("done", "portable")}
    assert {name: (job.state, job.status) for name, job in found.items()} == {(p, t): w for p in parts for t, w in wanted.items()} | {
        ("vae/next", "rtx-ada"): ("failed", "")
    }
    begun = [line.split()[1] for line in (fake / "calls").read_text().splitlines()]
    assert begun == ["wan.bundle", "text_encoder/model", "vae/first1", "vae/next"]
    opened = Bundle.open(bundle)
    graphs = {name: about["targets"]["rtx-ada"]["graphs"] for name, about in opened.manifest.components.items()}
    assert [g["engine"]["status"] for about in graphs.values() for g in about.values()] == ["built", "built", "to build on the device"]
    assert opened.manifest.components["text_encoder"]["targets"]["rtx-ada"]["compute"] == "bf16"
    assert graphs["vae"]["first1"]["engine"]["version"] == "1.7" and 0 < graphs["vae"]["next"]["error"] < 0.05
    plan = opened.file("components/vae/engines/rtx-ada/first1/model.plan").read_text().split()
    assert plan[:2] == ["rtx-ada", opened.manifest.files["components/vae/first1.rtx-ada.onnx"].sha256]
    assert opened.file("components/text_encoder/engines/rtx-ada/model/model.plan").read_text().startswith("rtx-ada-bf16 ")
    assert {name: (bundle / name).read_bytes() for name in made} == made  # of the H100, built anew, and portable: as they were
    for name in component_case.NAMES:
        folder = bundle / "components" / name.partition("/")[0] / "engines/h100" / (name.partition("/")[2] or "model")
        DevicePackage.read(folder).check_files(folder)

    (fake / "fail").unlink()
    assert here(bundle, "rtx-ada", retry_failed=True)["vae/next", "rtx-ada"].state == "done"
    assert (fake / "calls").read_text().split()[-3] == "vae/next" and len(calls(fake)) == 5
    whole = Bundle.open(bundle).manifest
    assert whole.components["vae"]["targets"]["rtx-ada"]["graphs"]["next"]["engine"]["status"] == "built"
    assert not list(bundle.rglob(f"{WORK}-*"))
    here(bundle, "rtx-ada", "cpu", force=True)
    assert len(calls(fake)) == 9 and Bundle.open(bundle).manifest == whole

    for _ in range(2):  # once anew, for the options; then all is done
        here(bundle, "rtx-ada", engine=("workspace=1GiB,refit",))
        assert len(calls(fake)) == 13
    opened = Bundle.open(bundle)
    said = [g["build"] for about in opened.manifest.components.values() for g in about["targets"]["rtx-ada"]["graphs"].values()]
    assert said == [{"workspace": 1 << 30}] * 3 and opened.manifest.targets["rtx-ada"]["build"] == {"workspace": 1 << 30, "refit": True}
    assert opened.file("components/vae/engines/rtx-ada/next/model.plan").read_text().endswith(" workspace=1073741824B\n")
    here(bundle, "rtx-ada")  # as they are
    assert len(calls(fake)) == 13


def test_what_a_component_is_built_from_has_changed(bundle: Path, here: Callable[..., Any]) -> None:
    component_case.add_components(bundle)
    data = bundle / "components/vae/first1.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    failed = {part: job.reason for (part, _), job in here(bundle, "rtx-ada").items() if job.state == "failed"}
    assert sorted(failed) == ["vae/first1", "vae/next"] and all("found sha256 " in why for why in failed.values())
    lowered = bundle / "components/text_encoder/model.rtx-ada.onnx"
    lowered.write_bytes(b"!" * lowered.stat().st_size)  # no graph at all
    assert "model.rtx-ada.onnx: found sha256 " in here(bundle, "rtx-ada", force=True)["text_encoder", "rtx-ada"].reason


def test_layers_that_do_not_land_go_down_the_ladder(bundle: Path, fake: Path, here: Callable[..., Any]) -> None:
    """As with compile, and recorded as there; without being asked the job fails, and a killed command goes on from its rung."""
    q, k, job = "blocks.0.attn1.to_q", "blocks.0.attn1.to_k", ("transformer", "rtx-ada")
    (fake / "refuse").write_text(f"{q} {k}")
    assert "computes half x half" in here(bundle, "rtx-ada")[job].reason
    with pytest.raises(KeyboardInterrupt):
        here(bundle, "rtx-ada", fallback=True, kill=2)
    codes, alone, why = "W[int8 per_channel] A[int8 per_token dynamic]", "W[int8 per_channel] A[float]", "computes half x half"
    first = {"layers": [q, k], "from": codes, "to": alone, "reason": why}
    about = Bundle.open(bundle).manifest.targets["rtx-ada"]
    assert about["fallback"] == [first] and 0 < about["graph"]["error"] < 0.05
    assert here(bundle, verify=False)[job].state == "done"  # that a fallback was asked for is in the list
    assert len(calls(fake)) == 4  # without, at the first rung, and, behind the kill, at the second and third
    about = Bundle.open(bundle).manifest.targets["rtx-ada"]
    assert about["fallback"] == [first, {"layers": [q, k], "from": alone, "to": "fp16", "reason": why}]
    lowered = expected_precision(bundle / about["lowered"])
    assert not {q, k} & {one.layer for one in lowered.quantized} and f"{q}/MatMul" in lowered.floating
    assert about["engine"]["status"] == "built"
    assert "rtx-ada falls back from W[int8 per_channel] A[float] to fp16: " in vditc("inspect", str(bundle)).stdout
    here(bundle, "rtx-ada", force=True)  # nothing is left to fall
    assert Bundle.open(bundle).manifest.targets["rtx-ada"] == about


def test_a_killed_command_goes_on(bundle: Path, fake: Path) -> None:
    (fake / "hang").write_text("rtx-blackwell")
    words = [sys.executable, "-m", "vditc", "build", str(bundle), "--target", "rtx-ada", "--target", "rtx-blackwell"]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: "rtx-blackwell" in calls(fake))
    run = build(bundle)
    assert run.code == 1 and f"found process {child.pid}, which is building engines of this bundle" in run.stderr
    child.kill()
    child.wait()
    builder = int((fake / "calls").read_text().split()[-2])
    until(lambda: gone(builder))  # with the command
    (fake / "hang").unlink()
    assert Bundle.open(bundle).manifest.targets["rtx-ada"]["engine"]["status"] == "built"
    run = build(bundle, "--json")
    assert run.code == 0 and calls(fake) == ["rtx-ada", "rtx-blackwell", "rtx-blackwell"]
    assert {job["state"] for job in jobs(run).values()} == {"done"}
    assert not list(bundle.glob(f"{WORK}-*")) and Bundle.open(bundle)


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_changed_inputs(bundle: Path, fake: Path) -> None:
    graph = bundle / "lowered/rtx-ada.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run = build(bundle, "--target", "rtx-ada", "--json")
    assert run.code == 1 and calls(fake) == []
    assert re.search(r"rtx-ada.onnx: found sha256 .*; wanted \d+ bytes, sha256", jobs(run)["rtx-ada"]["reason"])
    graph.write_bytes(whole[:-1])
    run = build(bundle, "--retry-failed")
    assert run.code == 2 and "rtx-ada.onnx of" in run.stderr


def test_the_bundle_has_changed(bundle: Path, fake: Path) -> None:
    assert build(bundle, "--target", "cpu").code == 0
    data = json.loads((bundle / MANIFEST).read_text())
    data["profile"]["frames"] = [1, 1, 1]
    (bundle / MANIFEST).write_text(json.dumps(data))
    run = build(bundle)
    assert run.code == 2 and "changed since its list of jobs was made (transformer's profile" in run.stderr
    assert build(bundle, "--target", "cpu", "--force").code == 0


def test_a_full_disk(bundle: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (bundle / MANIFEST).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("vditc.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
        run = build(bundle, "--target", "rtx-ada", "--json")
    assert run.code == 1 and "0 bytes free" in jobs(run)["rtx-ada"]["reason"]
    assert (bundle / MANIFEST).read_bytes() == before and Bundle.open(bundle)
    assert build(bundle, "--retry-failed").code == 0
    assert "engines/rtx-ada/model.plan" in Bundle.open(bundle).manifest.files


@pytest.mark.slow
def test_two_experts(bundle: Path, fake: Path) -> None:
    """Every part is built; the outer manifest lists what the inner one does."""
    inner = Path(shutil.copytree(bundle, bundle / "transformer_2"))
    data = json.loads((bundle / MANIFEST).read_text())
    data["files"] = {name: dataclasses.asdict(entry) for name, entry in list_files(bundle).items()}
    data["experts"] = {"transformer_2": {"path": "transformer_2", "boundary": 0.9, "first_step": 1}}
    (bundle / MANIFEST).write_text(json.dumps(data))
    assert build(bundle, "--target", "rtx-ada", "--jobs", "2").code == 0
    assert sorted((fake / "calls").read_text().split()[1::4]) == ["transformer_2", "wan.bundle"]
    outer = Bundle.open(bundle).manifest
    for root, manifest in ((bundle, outer), (inner, Bundle.open(inner).manifest)):
        assert manifest.targets["rtx-ada"]["engine"]["status"] == "built"
        assert (root / "engines/rtx-ada/model.plan").exists()
    assert "transformer_2/engines/rtx-ada/model.plan" in outer.files


class Child:
    """A process that ends when it is told to. Its number is that of no process, whatever is done with it."""

    number = 2**30

    def __init__(self) -> None:
        Child.number += 1
        self.pid, self.ended = Child.number, False

    def poll(self) -> int | None:
        return 0 if self.ended else None


def test_builds_wait_for_memory(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    children: dict[str, Child] = {}
    stopped: list[Any] = []

    def start(asked: EngineRequest, work: Path) -> Child:
        return children.setdefault(asked.out, Child())

    monkeypatch.setattr(local_builds, "start", start)
    monkeypatch.setattr(local_builds, "finished", lambda child, work: {"files": {}})
    monkeypatch.setattr(local_builds, "stop", stopped.append)

    def end() -> None:  # a test that fails leaves none running
        for child in children.values():
            child.ended = True

    request.addfinalizer(end)
    said: list[str] = []
    events = LocalBuilds(3, None, said.append, free=lambda: 10_000_000_000).run(
        [order(n, gb) for n, gb in zip("abcd", (6, 5, 3, 12), strict=True)]
    )
    assert [next(events).order.name for _ in "ab"] == ["a", "c"]  # b does not fit beside a, c does
    children["a"].ended = True
    assert [(e.order.name, e.result is None) for e in (next(events), next(events))] == [("a", False), ("b", True)]
    children["b"].ended = children["c"].ended = True
    assert {next(events).order.name for _ in "bc"} == {"b", "c"}
    last = next(events)  # fits nowhere
    assert last.order.name == "d" and last.result is not None and "found 10.00 GB of memory; wanted about 12.00 GB" in last.result["error"]
    assert list(events) == [] and not stopped
    assert said[0] == "b waits for memory: it takes about 5.00 GB, 4.00 GB are free"

    children.clear()
    events = LocalBuilds(2, 100, said.append).run([order("x", 0), order("y", 0)])
    next(events), next(events)
    events.close()  # the command is ended
    assert stopped == list(children.values())


def order(name: str, gigabytes: float) -> Order:
    request = EngineRequest(
        root="/", target="", target_digest="", attention="", lowered="", library=None, profile={}, options="", inputs={}, out=name
    )
    return Order(name, request, Target.load("rtx-ada"), int(gigabytes * 1e9))


def test_bad_input(bundle: Path, fake: Path, tmp_path: Path) -> None:
    graph = bundle / "lowered/rtx-ada.onnx"
    for words, said in (
        ((str(bundle),), "found no target; wanted --target"),
        ((str(bundle), "--target", "nothing"), "target 'nothing'"),
        ((str(bundle), "--target", "rtx-ada", "--target", "rtx-ada"), "each once"),
        ((str(bundle), "--target", "rtx-ada", "-o", "x"), "found -o x; wanted no -o"),
        ((str(bundle), "--target", "rtx-ada", "--send"), "--send"),
        ((str(bundle), "--target", "rtx-ada", "--engine", "memory=1GiB"), "wanted --memory GIB"),
        ((str(bundle), "--target", "rtx-ada", "--engine", "h100:refit"), "options of target 'h100'"),
        ((str(bundle), "--target", "rtx-ada", "--cluster", "local:0"), "local:N"),
        ((str(bundle), "--target", "rtx-ada", "--cluster", "local:1", "--jobs", "2"), "--jobs 2"),
        ((str(graph), "--target", "rtx-ada", "-o", "x", "--jobs", "2"), "--jobs 2"),
        ((str(graph), "--target", "rtx-ada", "-o", "x", "--fallback"), "--fallback"),
        ((str(graph), "--target", "rtx-ada"), "no -o"),
        ((str(graph), "--target", "rtx-ada", "--target", "cpu", "-o", "x"), "2 targets"),
        ((str(tmp_path), "--target", "rtx-ada"), "no readable manifest"),
    ):
        run = vditc("build", *words)
        assert run.code == 2 and said in run.stderr, (words, run.stderr)
    assert not (tmp_path / WORK).exists() and calls(fake) == []


def test_a_target_that_does_not_run_the_recipe(bundle: Path, fake: Path, tmp_path: Path) -> None:
    """Refused before any work, as by `compile`."""
    text = (Path(sys.modules["vditc"].__file__ or "").parent / "targets/cpu.toml").read_text()
    head = text[: text.index("[[products]]")].replace('name = "cpu"', 'name = "few"')
    (tmp_path / "few.toml").write_text(head + '[[products]]\nweight = ["fp8_e4m3"]\n')
    run = build(bundle, "--target", "rtx-ada", "--target", str(tmp_path / "few.toml"))
    assert run.code == 2 and "rule 1 of recipe w8a8" in run.stderr and calls(fake) == []
    run = build(bundle, "--target", str(tmp_path / "few.toml"), "--fallback")  # all layers begin at the last rung
    assert run.code == 0, run.stderr
    (step,) = Bundle.open(bundle).manifest.targets["few"]["fallback"]
    assert (len(step["layers"]), step["to"]) == (20, "fp32") and "it runs fp8_e4m3" in step["reason"]


def test_a_worker_of_another_version() -> None:
    """Of vditc, or with another target under the same name."""
    data = order("x", 0).request.to_json()
    assert attempt({**data, "vditc": "0.0.1"}, "x")["error"].endswith("wanted 0.0.1; install one version everywhere")
    assert "rtx-ada: found another target of this name" in attempt({**data, "target": "rtx-ada", "attention": "fp16"}, "x")["error"]


def test_what_a_worker_says_it_can_build(monkeypatch: pytest.MonkeyPatch) -> None:
    h100, ada = Target.load("h100"), Target.load("rtx-ada")
    assert ability(h100) == ability(Target.load("h100-bf16")) != ability(Target.load("a100"))
    assert wanted_resources(h100, 5) == {ability(h100): 1, "memory": 5, "gpu": 1}
    assert wanted_resources(ada, 5) == {ability(ada): 1, "memory": 5}
    where = "vditc.pipeline.cluster_worker"
    monkeypatch.setattr(f"{where}.compute_capability", lambda: "sm_90")
    monkeypatch.setattr(f"{where}.importlib.util.find_spec", lambda name: name if name == "tensorrt" else None)
    versions = {"tensorrt": "10.13.2.6"}
    monkeypatch.setattr(f"{where}.importlib.metadata.version", versions.__getitem__)
    found = own_resources(memory=7)
    assert found["memory"] == 7 and found["gpu"] == 1 and ability(h100) in found
    assert not {ability(Target.load("a100")), ability(ada)} & set(found)
    versions["tensorrt"] = "9.3"
    assert set(own_resources(memory=7)) == {"memory", "gpu"}
    with pytest.raises(ValueError, match=r"\.\./x"):
        put_piece("/tmp/vditc-1", "../x", 0, b"")
    with pytest.raises(ValueError, match=r"/etc"):
        put_piece("/etc", "x", 0, b"")


@pytest.mark.slow
def test_a_lost_worker(bundle: Path, fake: Path) -> None:
    """Files are sent to two workers; one is killed while it builds, and the job is done anew. What fails by an error is not."""
    pytest.importorskip("distributed", reason="no distributed: pip install 'vditc[cluster]'")
    pytest.importorskip("tensorrt_rtx")
    (fake / "hang").write_text("rtx-ada")
    (fake / "fail").write_text("rtx-blackwell")
    words = [sys.executable, "-m", "vditc", "build", str(bundle), "--cluster", "local:2", "--send", "--wait", "1", "--json"]
    words += [word for target in ("rtx-ada", "rtx-blackwell", "h100") for word in ("--target", target)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: "rtx-ada" in calls(fake) and "process" in running(bundle))
    os.kill(int(re.findall(r"process (\d+)", running(bundle))[0]), signal.SIGKILL)
    until(lambda: calls(fake).count("rtx-ada") == 2)
    (fake / "hang").unlink()
    out, err = child.communicate(timeout=120)
    found = {job["target"]: job for job in json.loads(out)["jobs"]}
    assert child.returncode == 1 and found["rtx-ada"]["state"] == "done", err
    assert calls(fake).count("rtx-blackwell") == 1 and "no kernel" in found["rtx-blackwell"]["reason"]
    assert re.search(r"found \d workers, none that can build it .*wanted tensorrt:sm_90.* for 1 s", found["h100"]["reason"])
    plan = Bundle.open(bundle).file("engines/rtx-ada/model.plan")
    assert plan.read_text().startswith("rtx-ada ")
    assert not {line.split()[1] for line in (fake / "calls").read_text().splitlines()} & {"wan.bundle"}  # they were sent


@pytest.mark.slow
def test_a_cluster_builds_all_parts_and_goes_down_the_ladder(bundle: Path, fake: Path) -> None:
    pytest.importorskip("distributed", reason="no distributed: pip install 'vditc[cluster]'")
    pytest.importorskip("tensorrt_rtx")
    component_case.add_components(bundle)
    (fake / "refuse").write_text("blocks.0.attn1.to_q")
    run = build(bundle, "--cluster", "local:2", "--send", "--fallback", "--no-verify", "--target", "rtx-ada", "--json")
    found = {job["part"]: job["state"] for job in json.loads(run.stdout)["jobs"]}
    assert found == dict.fromkeys(("transformer", *component_case.NAMES), "done"), run.stdout
    opened = Bundle.open(bundle)
    assert [step["to"] for step in opened.manifest.targets["rtx-ada"]["fallback"]] == ["W[int8 per_channel] A[float]", "fp16"]
    assert len(calls(fake)) == 6 and "components/vae/engines/rtx-ada/next/model.plan" in opened.manifest.files


def running(bundle: Path) -> str:
    """Where the job of rtx-ada runs."""
    listed = json.loads((bundle / WORK / "jobs.json").read_text())["jobs"]
    return str(next(job["where"] for job in listed if job["target"] == "rtx-ada"))


@pytest.fixture
def scheduler() -> Iterator[str]:
    distributed = pytest.importorskip("distributed", reason="no distributed: pip install 'vditc[cluster]'")
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_the_guide_runs(lowered: Path, tmp_path: Path, fake: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/datacenter.md, its commands as they stand: on this machine, and on a cluster of one worker."""
    pytest.importorskip("tensorrt_rtx")
    shutil.copytree(lowered, tmp_path / "wan.bundle")
    monkeypatch.chdir(tmp_path)
    blocks = "".join(re.findall(r"```sh\n(.*?)```", DOC.read_text(), re.DOTALL)).replace("tcp://scheduler:8786", scheduler)
    commands = [words for line in blocks.splitlines() if (words := shlex.split(line, comments=True))]
    assert len(commands) >= 6
    workers = []
    try:
        for words in commands:
            if words[:2] == ["vditc", "worker"] and len(words) > 2:
                workers.append(subprocess.Popen([sys.executable, "-m", *words]))
            elif words[0] == "vditc":
                run = vditc(*words[1:])
                assert run.code == 0 or "h100" in run.stdout, f"{words}\n{run.stdout}\n{run.stderr}"  # which has no GPU here
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    assert workers and {"rtx-ada", "rtx-blackwell"} <= set(calls(fake))
    assert "engines/rtx-ada/model.plan" in Bundle.open(tmp_path / "wan.bundle").manifest.files


@pytest.mark.slow
def test_with_tensorrt_rtx(lowered: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = Path(shutil.copytree(lowered, tmp_path / "wan.bundle"))
    run = build(bundle, "--target", "rtx-ada", "--json")
    assert run.code == 0, run.stderr
    engine = Bundle.open(bundle).manifest.targets["rtx-ada"]["engine"]
    assert engine["plan_bytes"] == (bundle / "engines/rtx-ada/model.plan").stat().st_size > 100_000
    assert any(kind.startswith("int8") for kind in engine["gemms"])
