"""Sessions on engines, with stand-ins of TensorRT and of a GPU's driver that do their work as late as they may."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_bundle import LATENTS, SPECS, clips, save_bundle, save_experts
from cpp_engines import STEP, TARGET, Device, StandIn, chain_bundle, engine_bundle, plan, save_engine
from cpp_library import LOG, Library, LibraryError, SessionInfo

from vditc.adapter import InputSpec
from vditc.bundle import Bundle, list_files, write_manifest
from vditc.conditioning import Conditioning
from vditc.experts import experts_of
from vditc.pipeline.schedules import WalkOptions, bundle_scheduler
from vditc.sampling import Denoiser, Passes, sample

Array = npt.NDArray[Any]
PASSES: dict[Passes, int] = {"batched": 1, "two": 2}
HALVES = tuple(dataclasses.replace(spec, dtype="float16") if spec.dtype == "float32" else spec for spec in SPECS)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def theirs(root: Path, given: Conditioning, denoise: Denoiser, passes: Passes = "batched", **walk: Any) -> Array:
    """Latents of `vditc.sampling.sample`."""
    scheduler = bundle_scheduler(Bundle.open(root, hashes=False), None, given.latent_shape[1:], WalkOptions(**walk))
    return np.stack([sample(denoise, scheduler, given.clips([i], SPECS), 3.0, passes=passes)[0] for i in range(len(given))])


def ours(library: Library, root: Path, given: Conditioning, work: Path, times: int = 1, **options: Any) -> tuple[Array, SessionInfo]:
    """Latents of a session on the target, the last of `times` calls."""
    given.save(work / "conditioning.safetensors")
    handle = library.made("conditioning_open", str(work / "conditioning.safetensors").encode())
    try:
        with library.bundle(root) as bundle, library.session(bundle, **({"backend": TARGET.encode()} | options)) as session:
            for _ in range(times):
                made = library.sample(session, handle, given.latent_shape)
            return made, library.info("session_info_get", SessionInfo, session)
    finally:
        library("conditioning_destroy", handle)


ENGINES: dict[str, tuple[Sequence[InputSpec], str, Any]] = {
    "float32": (SPECS, "velocity f32", np.float32),
    "float16 in and out": (HALVES, "velocity f16", np.float16),
    "a table of steps": ((SPECS[0], STEP, *SPECS[2:]), "velocity f32", np.float32),
    "bfloat16, a step in int32": ((SPECS[0], SPECS[2], dataclasses.replace(STEP, dtype="int32")), "velocity bf16", "bfloat16"),
}


@pytest.mark.parametrize("what", ENGINES)
@pytest.mark.parametrize("passes", PASSES)
def test_latents_are_pythons(library: Library, device: Device, tmp_path: Path, what: str, passes: Passes) -> None:
    inputs, output, dtype = ENGINES[what]
    root, given = engine_bundle(tmp_path / "b", inputs, (output,)), clips()
    wanted = theirs(root, given, StandIn(inputs, np.dtype(dtype)), passes)
    found, info = ours(library, root, given, tmp_path, passes=PASSES[passes])
    np.testing.assert_array_equal(found, wanted)
    assert info.passes == PASSES[passes] and np.ptp(found) > 0.1
    assert device["replays"] > 0  # most runs are


def chained(feeds: Mapping[str, Array], step: int) -> Array:
    """What the chain computes."""
    whole = {spec.name: np.asarray(feeds[spec.name], spec.dtype) for spec in SPECS}
    first = [whole["hidden_states"], whole["encoder_hidden_states"]]
    hidden, kept = StandIn((), np.float16).run(first), StandIn((), np.float32).run(first)
    second = StandIn((), np.dtype("bfloat16")).run([hidden, whole["timestep"]])
    return StandIn(()).run([second, kept, whole["guidance"]])


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("pools", [0, 1])
def test_segments(library: Library, device: Device, tmp_path: Path, passes: Passes, pools: int) -> None:
    """Tensors between them stay on the device; scratch memory is one. `pools`: whether the device orders memory by streams."""
    device["pools"] = pools
    root, given = chain_bundle(tmp_path / "b"), clips()
    found, _ = ours(library, root, given, tmp_path, passes=PASSES[passes])
    np.testing.assert_array_equal(found, theirs(root, given, chained, passes))


def test_other_sizes_and_numbers_of_clips(library: Library, device: Device, tmp_path: Path) -> None:
    """One session: memory grows, graphs are recorded anew."""
    root = chain_bundle(tmp_path / "b")
    handles = []
    with library.bundle(root) as bundle, library.session(bundle, backend=TARGET.encode()) as session:
        for number, shape in enumerate([LATENTS, (4, 5, 8, 8), (4, 1, 2, 2), LATENTS]):
            given = clips(count=number % 2 + 1, latent_shape=shape, seed=number)
            given.save(tmp_path / "c.safetensors")
            handles.append(library.made("conditioning_open", str(tmp_path / "c.safetensors").encode()))
            np.testing.assert_array_equal(library.sample(session, handles[-1], shape), theirs(root, given, chained))
    for handle in handles:
        library("conditioning_destroy", handle)


def test_what_changes_is_copied(library: Library, device: Device, tmp_path: Path) -> None:
    """In a step the latents and the time; nothing is allocated, on the device or pinned."""
    root, took = engine_bundle(tmp_path / "b"), []
    for steps in (6, 30):
        before = {name: device[name] for name in ("uploads", "allocations", "launches", "replays")}
        ours(library, root, clips(count=1), tmp_path, steps=steps)
        took.append({name: device[name] - value for name, value in before.items()})
    more = {name: took[1][name] - took[0][name] for name in took[0]}
    assert more == {"uploads": 24 * 2, "allocations": 0, "launches": 0, "replays": 24}
    assert took[0]["launches"] == 3 and took[0]["replays"] == 4  # two one by one, and the recording


def test_an_engine_that_is_not_recorded(library: Library, device: Device, tmp_path: Path) -> None:
    """It runs all the same, and a warning says so once."""
    device["recordable"], said = 0, list[str]()
    told = LOG(lambda _, level, text: said.append(f"{level} {text.decode()}"))
    library("set_log", told, None, ctypes.c_int32(2))
    try:
        root, given = engine_bundle(tmp_path / "b"), clips()
        before = device["replays"]
        found, _ = ours(library, root, given, tmp_path, passes=2)
    finally:
        library("set_log", LOG(), None, ctypes.c_int32(0))
    np.testing.assert_array_equal(found, theirs(root, given, StandIn(SPECS), "two"))
    assert len(said) == 1 and said[0].startswith("2 kernels are launched one by one") and device["replays"] == before


def test_a_failure_at_work_and_the_call_after_it(library: Library, device: Device, tmp_path: Path) -> None:
    root, given = engine_bundle(tmp_path / "b"), clips(count=1)
    given.save(tmp_path / "c.safetensors")
    handle = library.made("conditioning_open", str(tmp_path / "c.safetensors").encode())

    def break_it(progress: Any) -> int:
        device["broken"] = 999 * (progress.done == 3)
        return 0

    with library.bundle(root) as bundle, library.session(bundle, backend=TARGET.encode()) as session:
        with pytest.raises(LibraryError, match=r"VDITC_ERROR_ENGINE: stand-in: found cuEventSynchronize: error 999, .*then run again"):
            library.sample(session, handle, LATENTS, break_it)
        device["broken"] = 700  # of which cuda.h says that there is no recovery
        with pytest.raises(LibraryError, match=r"error 700, .*restart the process"):
            library.sample(session, handle, LATENTS)
        device["broken"] = 0
        np.testing.assert_array_equal(library.sample(session, handle, LATENTS), theirs(root, given, StandIn(SPECS)))
    library("conditioning_destroy", handle)


def test_sessions_side_by_side_and_from_other_threads(library: Library, device: Device, tmp_path: Path) -> None:
    """Each works on a thread that did not create it, and is destroyed on another."""
    roots = [engine_bundle(tmp_path / "a"), chain_bundle(tmp_path / "b")]
    given, found = clips(count=1), dict[int, Array]()
    given.save(tmp_path / "c.safetensors")
    handle = library.made("conditioning_open", str(tmp_path / "c.safetensors").encode())
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(library.bundle(root)) for root in roots]
        first, second = (stack.enter_context(library.session(bundle, backend=TARGET.encode())) for bundle in opened)

        def work(number: int) -> None:
            for _ in range(5):
                found[number] = library.sample((first, second)[number], handle, LATENTS)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    library("conditioning_destroy", handle)
    np.testing.assert_array_equal(found[0], theirs(roots[0], given, StandIn(SPECS)))
    np.testing.assert_array_equal(found[1], theirs(roots[1], given, chained))


def test_the_engine_for_this_gpu(library: Library, device: Device, tmp_path: Path) -> None:
    root, given = engine_bundle(tmp_path / "b"), clips()
    found, _ = ours(library, root, given, tmp_path, backend=None)
    np.testing.assert_array_equal(found, theirs(root, given, StandIn(SPECS)))
    device["arch"] = 87
    with pytest.raises(
        LibraryError, match=r"NO_DEVICE: .*found engines of tensorrt for sm_90; wanted .* this machine's sm_87 \(stand-in\)"
    ):
        ours(library, root, given, tmp_path, backend=None)


def test_two_experts(library: Library, device: Device, tmp_path: Path) -> None:
    """Each with an engine of its own inputs, one open at a time."""
    root, second = save_experts(tmp_path / "b"), (SPECS[0], SPECS[3])
    whole = Bundle.open(save_engine(root, {"model.plan": plan(SPECS)}), hashes=False).manifest
    inner = Bundle.open(save_engine(root / "transformer_2", {"model.plan": plan(second)}, second), hashes=False).manifest
    write_manifest(root, dataclasses.replace(whole, files=list_files(root, {"transformer_2": inner})))
    bundle, given = Bundle.open(root, hashes=False), clips(count=1)
    scheduler, latents = bundle_scheduler(bundle, None, LATENTS[1:]), None
    for expert, denoise in zip(experts_of(bundle), (StandIn(SPECS), StandIn(second)), strict=True):
        one, scale, steps = given.clips([0], SPECS), expert.guidance_scale, expert.steps
        latents = sample(denoise, scheduler, one, scale, begin=steps.start, end=steps.stop, latents=latents)
    np.testing.assert_array_equal(ours(library, root, given, tmp_path)[0], latents)


STREAMS = {"module": "tensorrt", "version": "10.3.0", "arch": ["sm_90"], "options": {"weight-streaming": "auto"}}


@pytest.mark.parametrize(
    ("said", "budget", "taken"), [("auto", -1, 700), (300, -1, 300), (5000, -1, 1000), ("auto", 200, 200), (300, 0, 0)]
)
def test_streamed_weights(library: Library, device: Device, tmp_path: Path, said: int | str, budget: int, taken: int) -> None:
    """The budget is set before there is a context, and nothing is recorded: weights come from the host between the layers."""
    root = save_bundle(tmp_path / "b")
    about = {"engine.json": {**STREAMS, "options": {"weight-streaming": said}}}
    save_engine(root, {"model.plan": plan(SPECS, ("velocity f32",), "streams")}, files=about)
    before = device["replays"]
    found, _ = ours(library, root, clips(count=1), tmp_path, weight_budget=budget)
    np.testing.assert_array_equal(found, theirs(root, clips(count=1), StandIn(SPECS)))
    assert device["budget"] == taken and device["replays"] == before


WEIGHTS = "../../lowered/hopper.onnx"  # as vditc writes it
STRIPPED = {"module": "tensorrt", "version": "10.3.0", "arch": ["sm_90"], "options": {"strip-weights": True}, "weights": WEIGHTS}


def test_weights_are_put_back(library: Library, device: Device, tmp_path: Path) -> None:
    root = save_bundle(tmp_path / "b")
    save_engine(root, {"model.plan": plan(SPECS, ("velocity f32",), "refit")}, files={"engine.json": STRIPPED, WEIGHTS: "weights"})
    found, _ = ours(library, root, clips(), tmp_path)
    np.testing.assert_array_equal(found, theirs(root, clips(), StandIn(SPECS)))


def test_plugins_and_host_code(library: Library, device: Device, tmp_path: Path) -> None:
    root = save_bundle(tmp_path / "b")
    (root / "plugins").mkdir()
    (root / "plugins" / "lib.so").write_text("stand-in plugins\nQLinear 1 vditc\n")
    plugins = {"library": "plugins/lib.so", "operators": {"vditc.QLinear": 60}, "version": "1", "namespace": "vditc"}
    save_engine(root, {"model.plan": plan(SPECS, ("velocity f32",), "plugin QLinear 1 vditc")}, plugins=plugins)
    wanted = theirs(root, clips(), StandIn(SPECS))
    np.testing.assert_array_equal(ours(library, root, clips(), tmp_path)[0], wanted)
    code, loaded = {**STREAMS, "options": {"embed-plugins": True}}, device["libraries"]
    save_engine(root, {"model.plan": plan(SPECS, ("velocity f32",), "host-code")}, files={"engine.json": code}, plugins=plugins)
    np.testing.assert_array_equal(ours(library, root, clips(), tmp_path)[0], wanted)
    assert device["libraries"] == loaded > 0


LACKING = {"library": "plugins/lib.so", "operators": {"vditc.QLinear": 60, "vditc.QuantizeToken": 40}, "version": "1", "namespace": "vditc"}
ONE = {"schema": 1, "outputs": ["velocity"], "segments": [{"name": "segment_00", "blocks": []}]}
# What the target is -> keywords of save_engine, of the session; status and message.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another GPU": (
        {"plans": plan(SPECS, arch="sm_80")},
        {},
        r"ENGINE: .*tensorrt 10\.3\.0 on sm_90, which does not load it \(The engine was built for sm_80\); wanted what it was built with",
    ),
    "another version": ({"plans": plan(SPECS, version="10.9.0")}, {}, r"ENGINE: .*of version 10\.9\.0"),
    "no plan": ({"plans": "rubbish"}, {}, r"ENGINE: .*not an engine"),
    "host code that nobody allowed": ({"plans": plan(SPECS, ("velocity f32",), "host-code")}, {}, r"ENGINE: .*host code is not allowed"),
    "nothing said of it": (
        {"plans": plan(SPECS, arch="sm_80"), "files": {"engine.json": None}},
        {},
        r"ENGINE: .*wanted an engine of tensorrt 10\.3\.0 for sm_90",
    ),
    "no memory for a context": (
        {"plans": plan(SPECS, ("velocity f32",), "no-context")},
        {},
        "DEVICE_MEMORY: .*wanted a context of the engine",
    ),
    "types of no model": ({"plans": plan(SPECS, ("velocity fp8",))}, {}, "ENGINE: .*tensor velocity of TensorRT's type 6"),
    "an input of nobody": (
        {"plans": plan((*SPECS, InputSpec("image", "float32", ())))},
        {},
        "ENGINE: .*an input image that the bundle does not know",
    ),
    "another shape": (
        {"plans": plan(SPECS, ("velocity f32 @0 3 @2 @3 @4",))},
        {},
        r"ENGINE: .*velocity \[2, 3, 3, 4, 6\]; wanted \[2, 4, 3, 4, 6\]",
    ),
    "no plugin library": (
        {"plugins": LACKING, "library": None},
        {},
        r"PLUGIN: .*lib\.so, tensorrt 10\.3\.0: found a library that does not load; wanted the plugins vditc.QLinear version 1, ",
    ),
    "a plugin that is not in it": (
        {"plugins": LACKING, "library": "stand-in plugins\nQLinear 1 vditc\n"},
        {},
        "PLUGIN: .*found no vditc.QuantizeToken version 1 in it",
    ),
    "a plugin of another version": (
        {"plugins": LACKING, "library": "stand-in plugins\nQLinear 1 vditc\nQuantizeToken 2 vditc\n"},
        {},
        "PLUGIN: .*no vditc.QuantizeToken version 1 in it",
    ),
    "a budget without streams": ({}, {"weight_budget": 1000}, "ARGUMENT: .*a weight budget of 1000 bytes; wanted an engine that streams"),
    "a budget that it does not take": ({"files": {"engine.json": STREAMS}}, {"weight_budget": 13}, "DEVICE_MEMORY: .*a budget of 13 bytes"),
    "weights that do not fit": (
        {"files": {"engine.json": STRIPPED, WEIGHTS: "others"}},
        {},
        "ENGINE: .*a graph that does not fit; wanted the engine's weights, from .*/lowered/hopper.onnx",
    ),
    "some of the weights": (
        {"files": {"engine.json": STRIPPED, WEIGHTS: "some weights"}},
        {},
        "ENGINE: .*a graph that lacks 2 of them",
    ),
    "no weights": ({"files": {"engine.json": STRIPPED}}, {}, r"DAMAGED: .*no file lowered/hopper\.onnx in the manifest"),
    "weights that nobody put back": (
        {"plans": plan(SPECS, ("velocity f32",), "refit")},
        {},
        "ENGINE: .*found no context; wanted a context",
    ),
    "scratch memory of no size": (
        {"plans": plan(SPECS, ("velocity f32",), "scratch 64", "no-size")},
        {},
        "ENGINE: .*no size of its scratch memory",
    ),
    "no latents": ({"plans": plan(SPECS[1:], ("velocity f32 2 4 3 4 6",))}, {}, "ENGINE: .*an engine that does not take hidden_states"),
    "a library of nothing": (
        {"plugins": {**LACKING, "operators": {}}, "library": "stand-in plugins\n"},
        {},
        "DAMAGED: .*a plugin library of no operators",
    ),
    "a stripped engine of nothing": (
        {"files": {"engine.json": {**STRIPPED, "weights": ""}}},
        {},
        r"DAMAGED: .*engine\.json: found unreadable \(weights\)",
    ),
    "weights elsewhere": (
        {"files": {"engine.json": {**STRIPPED, "weights": "../../../x"}}},
        {},
        r"DAMAGED: .*no file \.\./x in the manifest",
    ),
    "no version": ({"files": {"engine.json": {"module": "tensorrt", "arch": []}}}, {}, r"DAMAGED: .*unreadable \(version\)"),
    "half a file": ({"files": {"engine.json": '{"module"'}}, {}, r"DAMAGED: .*engine\.json"),
    "segments of later": ({"files": {"segments.json": {**ONE, "schema": 2}}}, {}, "SCHEMA: .*found schema 2; wanted schema 1"),
    "no segments": ({"files": {"segments.json": {**ONE, "segments": []}}}, {}, r"DAMAGED: .*unreadable \(segments\)"),
    "no outputs": ({"files": {"segments.json": {**ONE, "outputs": []}}}, {}, r"DAMAGED: .*unreadable \(outputs\)"),
    "a segment elsewhere": (
        {"files": {"segments.json": {**ONE, "segments": [{"name": "../x"}]}}},
        {},
        r"DAMAGED: .*unreadable \(segments\)",
    ),
    "a segment that is not there": (
        {"files": {"segments.json": ONE}},
        {},
        r"DAMAGED: .*no file engines/hopper/segment_00\.plan in the manifest",
    ),
    "an output of nobody": (
        {"files": {"segments.json": {**ONE, "outputs": ["sample"]}, "segment_00.plan": plan(SPECS)}},
        {},
        "ENGINE: .*no segment that makes sample",
    ),
    "segments of other types": (
        {
            "files": {
                "segments.json": {**ONE, "segments": [{"name": "segment_00"}, {"name": "segment_01"}]},
                "segment_00.plan": plan(SPECS, ("hidden f16",)),
                "segment_01.plan": plan((InputSpec("hidden", "float32", ()),)),
            }
        },
        {},
        "ENGINE: .*hidden of type F16 for a segment that reads F32",
    ),
    "not built yet": (
        {"engine": {"status": "to build on the device", "backend": "tensorrt"}},
        {},
        r"NOT_FOUND: .*engines/hopper: found no engine; .*build it on the device with its build.sh",
    ),
    "another product": (
        {"backend": "tensorrt_rtx"},
        {},
        "UNSUPPORTED: .*target hopper of tensorrt_rtx; wanted a target of tensorrt: this library was built with TensorRT 10.3.0",
    ),
    "no engines at all": ({"backend": "onnxruntime"}, {}, "UNSUPPORTED: .*use a target with engines, or `vditc run`"),
    "no such GPU": ({}, {"device": 3}, "NO_DEVICE: .*found GPU 3 of 1"),
    "a negative GPU": ({}, {"device": -1}, "ARGUMENT: .*device -1"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_wrong_is_said(library: Library, device: Device, tmp_path: Path, what: str) -> None:
    about, options, words = FAULTS[what]
    about, root = dict(about), save_bundle(tmp_path / "b")
    held, bare = about.pop("library", None), ("refit",) if "strip-weights" in str(about) else ()
    said = about.pop("plans", plan(SPECS, ("velocity f32",), *bare))
    if held is not None:
        (root / "plugins").mkdir()
        (root / "plugins" / "lib.so").write_text(held)
    save_engine(root, {"model.plan": said}, **about)
    with pytest.raises(LibraryError, match=f"VDITC_ERROR_{words}") as caught:
        ours(library, root, clips(count=1), tmp_path, **options)
    assert caught.value.status == "VDITC_ERROR_" + words.partition(":")[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("memory", "DEVICE_MEMORY: .*cuMemAllocAsync: error 2, out of memory"), ("pinned", "OUT_OF_MEMORY: .*cuMemAllocHost")],
)
def test_too_little_memory(library: Library, device: Device, tmp_path: Path, kind: str, words: str) -> None:
    """Whatever allocation fails, of the device or of the host: nothing is lost, and the session works when there is memory again."""
    root, given, free = chain_bundle(tmp_path / "b"), clips(count=1), device[kind]
    given.save(tmp_path / "c.safetensors")
    handle, failed, room = library.made("conditioning_open", str(tmp_path / "c.safetensors").encode()), 0, 0
    with library.bundle(root) as bundle, library.session(bundle, backend=TARGET.encode()) as session:
        while True:
            device[kind] = room
            try:
                made = library.sample(session, handle, LATENTS)
                break
            except LibraryError as error:
                assert re.match(f"VDITC_ERROR_{words}", str(error))
                failed, room = failed + 1, room + 1000
        device[kind] = free
    np.testing.assert_array_equal(made, theirs(root, given, chained))
    assert failed > 3
    library("conditioning_destroy", handle)


def test_what_says_how_to_load_is_listed(library: Library, device: Device, tmp_path: Path) -> None:
    """A file that the manifest does not hash allows nothing."""
    for number, name in enumerate(("engine.json", "segments.json")):
        root = engine_bundle(tmp_path / f"b{number}", files={"engine.json": None})
        (root / "engines" / TARGET / name).write_text("{}")
        with pytest.raises(LibraryError, match=rf"VDITC_ERROR_DAMAGED: .*no file engines/hopper/{name} in the manifest"):
            ours(library, root, clips(count=1), tmp_path)


def test_a_size_outside_of_the_profile(library: Library, device: Device, tmp_path: Path) -> None:
    """The bundle knows, and if it did not the engine would."""
    root = engine_bundle(tmp_path / "b")
    with pytest.raises(LibraryError, match=r"VDITC_ERROR_INPUT: conditioning: found frames of 6; wanted 1 to 5, which the engine serves"):
        ours(library, root, clips(latent_shape=(4, 6, 4, 6)), tmp_path)
    save_engine(root, {"model.plan": plan(SPECS).replace("hidden_states f32 2", "hidden_states f32 1")})
    with pytest.raises(
        LibraryError, match=r"VDITC_ERROR_INPUT: .*hidden_states of shape \[2, 4, 3, 4, 6\]; wanted a shape within the profile"
    ):
        ours(library, root, clips(), tmp_path)


ALONE = """
import sys; sys.path[:0] = {path!r}
from cpp_library import Library, LibraryError
from pathlib import Path
library = Library()
with library.bundle(Path({root!r})) as bundle:
    try:
        with library.session(bundle, backend={backend!r}): print("opened")
    except LibraryError as error: print(error)
"""


@pytest.mark.parametrize(
    ("environment", "backend", "words"),
    [
        (
            {"VDITC_CUDA_DRIVER": "/none/libcuda.so.1"},
            TARGET,
            r"NO_DEVICE: engines: found no NVIDIA driver \(/none/libcuda.so.1 does not load\)",
        ),
        ({"VDITC_CUDA_DRIVER": "/none/libcuda.so.1"}, None, "NO_DEVICE: engines: found no NVIDIA driver"),
        (
            {"VDITC_TENSORRT_LIBRARY": "/none/libnvinfer.so"},
            TARGET,
            r"ENGINE: engines: found /none/libnvinfer.so.*; wanted TensorRT 10\.3\.0",
        ),
        ({"VDITC_TENSORRT_LIBRARY": "{driver}"}, TARGET, "ENGINE: engines: found no getInferLibVersion in "),
        (
            {"STAND_IN_VERSION": "110104"},
            TARGET,
            r"ENGINE: .*found tensorrt 11\.1\.4; wanted a library of the major version of TensorRT 10\.3\.0",
        ),
        ({"VDITC_CUDA_DRIVER": "{tensorrt}"}, TARGET, "NO_DEVICE: engines: found an NVIDIA driver without cuInit"),
    ],
)
def test_machines_without(device: Device, tmp_path: Path, environment: Mapping[str, str], backend: str | None, words: str) -> None:
    """In processes of their own: a library that was loaded stays."""
    root = engine_bundle(tmp_path / "b")
    names = {"driver": os.environ["VDITC_CUDA_DRIVER"], "tensorrt": os.environ["VDITC_TENSORRT_LIBRARY"]}
    code = ALONE.format(path=sys.path, root=str(root), backend=backend and backend.encode())
    given = {name: value.format(**names) for name, value in environment.items()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **given})
    assert re.match(f"VDITC_ERROR_{words}", done.stdout), done.stdout
