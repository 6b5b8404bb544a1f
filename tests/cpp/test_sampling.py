"""The sampling loop of libvditc walks as `vditc run` does: the same latents to the last bit, from the same seeds and predictions."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from ctypes import byref, c_int64, c_uint64
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_bundle import CACHE, LATENTS, SPECS, STEPS, TOKENS, WAN, Null, clips, save_bundle, save_experts
from cpp_library import PROGRESS, Library, LibraryError, Progress, SessionInfo, pointer, tensor

from vditc.adapter import InputSpec
from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.experts import ExpertSwitch, experts_of
from vditc.pipeline.schedules import WalkOptions, bundle_scheduler
from vditc.pipeline.walk_plan import with_embedded_guidance
from vditc.sampling import Denoiser, Passes, sample
from vditc.step_cache import Skips

Array = npt.NDArray[Any]
PASSES: dict[Passes, int] = {"batched": 1, "two": 2}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("bundle") / "b")


def theirs(
    root: Path,
    given: Conditioning,
    specs: tuple[InputSpec, ...] = SPECS,
    *,
    walk: WalkOptions | None = None,
    guidance: float | None = None,
    passes: Passes = "batched",
    threshold: float | None = None,
    denoise: Denoiser | None = None,
) -> tuple[Array, Skips | None]:
    """Latents of `vditc.sampling.sample`, clip by clip as `vditc run` does it."""
    bundle = Bundle.open(root)
    scheduler = bundle_scheduler(bundle, None, given.latent_shape[1:], walk or WalkOptions())
    skips = None if threshold is None else Skips(CACHE, threshold, len(scheduler.timesteps))
    scale = experts_of(bundle, guidance)[0].guidance_scale
    null = denoise or Null(specs, given.latent_shape[0])
    made = [sample(null, scheduler, given.clips([i], specs), scale, passes=passes, cache=skips)[0] for i in range(len(given))]
    return np.stack(made), skips


def ours(library: Library, root: Path, given: Conditioning, work: Path, **options: Any) -> tuple[Array, SessionInfo]:
    """Latents of a session, and what it says of itself."""
    given.save(work / "conditioning.safetensors")
    handle = library.made("conditioning_open", str(work / "conditioning.safetensors").encode())
    try:
        with library.bundle(root) as bundle, library.session(bundle, **options) as session:
            made = library.sample(session, handle, given.latent_shape)
            return made, library.info("session_info_get", SessionInfo, session)
    finally:
        library("conditioning_destroy", handle)


SOLVERS: list[Mapping[str, Any]] = [
    WAN,
    FLOW,
    {
        "_class_name": "CogVideoXDPMScheduler",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    {"_class_name": "EulerDiscreteScheduler"},
    {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
]


@pytest.mark.parametrize("config", SOLVERS, ids=lambda c: c["_class_name"])
@pytest.mark.parametrize("passes", PASSES)
def test_null_latents_are_pythons(library: Library, tmp_path: Path, config: Mapping[str, Any], passes: Passes) -> None:
    root, given = save_bundle(tmp_path / "b", config), clips()
    wanted, _ = theirs(root, given, passes=passes)
    found, info = ours(library, root, given, tmp_path, passes=PASSES[passes])
    np.testing.assert_array_equal(found, wanted)
    assert (info.passes, info.steps, info.runs_skipped) == (PASSES[passes], STEPS, 0)
    assert info.runs_asked == len(given) * STEPS * PASSES[passes]


def test_null_tells_every_input_apart(library: Library, root: Path, tmp_path: Path) -> None:
    """Or the tests above would see nothing."""
    first, _ = ours(library, root, clips(), tmp_path)
    for changed in (clips(seed=1), clips(seeds=(7, 9)), clips(inputs={**clips().inputs, "guidance": np.array([1, 2], np.float32)})):
        other, _ = ours(library, root, changed, tmp_path)
        assert np.abs(other - first).max() > 1e-4
    for options in ({"guidance": 5.0}, {"shift": 5.0}, {"embedded_guidance": 0.001}):
        other, _ = ours(library, root, clips(), tmp_path, **options)
        assert np.abs(other - first).max() > 1e-4


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_other_walks_and_scales(library: Library, root: Path, tmp_path: Path, guidance: float) -> None:
    walk = WalkOptions(solver="DPMSolverMultistepScheduler", steps=9, shift=5.0)
    wanted, _ = theirs(root, clips(), walk=walk, guidance=guidance)
    options = {"solver": walk.solver.encode() if walk.solver else None, "steps": 9, "shift": 5.0, "guidance": guidance}
    found, info = ours(library, root, clips(), tmp_path, **options)
    np.testing.assert_array_equal(found, wanted)
    assert info.steps == 9 and info.runs_asked == 18


def test_embedded_guidance(library: Library, root: Path, tmp_path: Path) -> None:
    wanted, _ = theirs(root, with_embedded_guidance(clips(), SPECS, 0.0035))
    found, _ = ours(library, root, clips(), tmp_path, embedded_guidance=0.0035)
    np.testing.assert_array_equal(found, wanted)


OTHER: dict[str, tuple[tuple[InputSpec, ...], dict[str, Any]]] = {
    "given frames, a time for each": (
        (SPECS[0], InputSpec("timestep", "int64", ("batch", "frames"), "timestep"), SPECS[2]),
        {"known": np.random.default_rng(3).standard_normal((2, *LATENTS)).astype(np.float32), "known_frames": (0, 2)},
    ),
    "one image for all clips": (SPECS, {"known": np.ones((1, *LATENTS), np.float32), "known_frames": (0,)}),
    "constant channels": (
        (InputSpec("x", "float32", ("batch", 7, "frames", "height", "width")), *SPECS[1:3]),
        {"channels": np.random.default_rng(4).standard_normal((2, 3, *LATENTS[1:])).astype(np.float32)},
    ),
    "channels of all clips in float16": (
        (
            InputSpec("x", "float16", ("batch", 5, "frames", "height", "width")),
            InputSpec("timestep", "float16", ("batch",), "timestep"),
            SPECS[2],
        ),
        {"channels": np.random.default_rng(4).standard_normal((1, 1, *LATENTS[1:])).astype(np.float16)},
    ),
    "bfloat16, a mask, no axis batch": (
        (
            InputSpec("hidden_states", "bfloat16", SPECS[0].dims),
            InputSpec("timestep", "int64", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "bfloat16", ("batch", "text_tokens", 8)),
            InputSpec("mask", "bool", ("batch", "text_tokens"), "mask"),
            InputSpec("positions", "int32", ("text_tokens", 3)),
        ),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER)
@pytest.mark.parametrize("passes", PASSES)
def test_models_of_other_inputs(library: Library, tmp_path: Path, what: str, passes: Passes) -> None:
    specs, changes = OTHER[what]
    root = save_bundle(tmp_path / "b", FLOW, specs)
    given = clips(specs, **changes)
    wanted, _ = theirs(root, given, specs, passes=passes)
    found, _ = ours(library, root, given, tmp_path, passes=PASSES[passes])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("share", ["30%", "50%", "0.6"])
def test_step_cache(library: Library, root: Path, tmp_path: Path, passes: Passes, share: str) -> None:
    wanted, skips = theirs(root, clips(), passes=passes, threshold=CACHE.threshold(share))
    found, info = ours(library, root, clips(), tmp_path, passes=PASSES[passes], step_cache=share.encode())
    np.testing.assert_array_equal(found, wanted)
    assert skips is not None and (info.runs_asked, info.runs_skipped) == (skips.asked, skips.skipped)
    assert 0 < info.runs_skipped < info.runs_asked


@pytest.mark.parametrize("passes", PASSES)
def test_two_experts(library: Library, tmp_path: Path, passes: Passes) -> None:
    root, given = save_experts(tmp_path / "b"), clips(count=1)
    bundle = Bundle.open(root)
    experts = experts_of(bundle)
    assert [e.guidance_scale for e in experts] == [3.0, 2.0]

    def opened(number: int) -> AbstractContextManager[Denoiser]:
        null: Denoiser = Null(expert=number)
        return contextlib.nullcontext(null)

    switch = ExpertSwitch([(e.steps, functools.partial(opened, number)) for number, e in enumerate(experts)])
    scheduler, latents = bundle_scheduler(bundle, None, LATENTS[1:]), None
    for expert in experts:
        one, scale, steps = given.clips([0], SPECS), expert.guidance_scale, expert.steps
        latents = sample(switch, scheduler, one, scale, begin=steps.start, end=steps.stop, latents=latents, passes=passes)
    found, _ = ours(library, root, given, tmp_path, passes=PASSES[passes])
    np.testing.assert_array_equal(found, latents)
    # Clips are walked by one expert after the other, each with its own memory.
    several, _ = ours(library, root, clips(), tmp_path, passes=PASSES[passes])
    np.testing.assert_array_equal(several[:1], ours(library, root, clips().subset([0], SPECS), tmp_path, passes=PASSES[passes])[0])
    np.testing.assert_array_equal(several[1:], ours(library, root, clips().subset([1], SPECS), tmp_path, passes=PASSES[passes])[0])
    with pytest.raises(LibraryError, match=r"ARGUMENT: .*9 steps; wanted 6, which the experts share"):
        ours(library, root, given, tmp_path, steps=9)
    with pytest.raises(LibraryError, match=r"ARGUMENT: .*which goes on with clips that another expert has begun"):
        ours(library, root / "transformer_2", given, tmp_path)


def test_a_denoiser_of_the_host(library: Library, root: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, tuple[str, ...], tuple[int, ...]]] = []

    def predict(feeds: Mapping[str, Array], expert: int, step: int) -> Array:
        seen.append((expert, step, tuple(feeds), feeds["encoder_hidden_states"].shape))
        return np.asarray(
            np.tanh(feeds["hidden_states"]) + feeds["encoder_hidden_states"].mean((1, 2))[:, None, None, None, None], np.float32
        )

    wanted, _ = theirs(root, clips(), denoise=lambda feeds, step: predict(feeds, 0, step))
    seen.clear()
    found, _ = ours(library, root, clips(), tmp_path, predict=predict)
    np.testing.assert_array_equal(found, wanted)
    assert seen == [(0, step, tuple(s.name for s in SPECS), (2, TOKENS, 8)) for _ in range(2) for step in range(STEPS)]
    with pytest.raises(LibraryError, match=r"CALLBACK: the host's denoiser: found status 1 at step 0; wanted 0"):
        ours(library, root, clips(), tmp_path, predict=lambda feeds, *_: feeds["hidden_states"][:1])
    with pytest.raises(LibraryError, match=r"ARGUMENT: backend host: found no denoiser"):
        ours(library, root, clips(), tmp_path, backend=b"host")


def put(library: Library, given: Conditioning) -> Any:
    """The same conditioning, by setters."""
    shape, seeds = (c_int64 * 4)(*given.latent_shape), (c_uint64 * len(given))(*given.seeds)
    handle = library.made("conditioning_create", shape, seeds, c_uint64(len(given)))
    for name, array in given.inputs.items():
        library("conditioning_set_input", handle, name.encode(), byref(tensor(array)))
    for name, array in given.empty.items():
        library("conditioning_set_empty", handle, name.encode(), byref(tensor(array)))
    if given.channels is not None:
        library("conditioning_set_channels", handle, byref(tensor(given.channels)))
    if given.known is not None:
        frames = (c_int64 * len(given.known_frames))(*given.known_frames)
        library("conditioning_set_known", handle, byref(tensor(given.known)), frames, c_uint64(len(frames)))
    return handle


@pytest.mark.parametrize("what", ["given frames, a time for each", "constant channels"])
def test_conditionings_by_setters(library: Library, tmp_path: Path, what: str) -> None:
    specs, changes = OTHER[what]
    root, given = save_bundle(tmp_path / "b", FLOW, specs), clips(specs, **changes)
    handle = put(library, given)
    with library.bundle(root) as bundle, library.session(bundle) as session:
        found = library.sample(session, handle, LATENTS)
    np.testing.assert_array_equal(found, ours(library, root, given, tmp_path)[0])
    library("conditioning_set_seeds", handle, (c_uint64 * 2)(3, 2**62), c_uint64(2))
    with library.bundle(root) as bundle, library.session(bundle) as session:
        found = library.sample(session, handle, LATENTS)
    np.testing.assert_array_equal(found, ours(library, root, dataclasses.replace(given, seeds=(3, 2**62)), tmp_path)[0])
    count, shape = c_uint64(), (c_int64 * 4)()
    library("conditioning_shape", handle, byref(count), shape)
    assert (count.value, tuple(shape)) == (2, LATENTS)
    library("conditioning_destroy", handle)


TEXT = clips().inputs["encoder_hidden_states"]
INFINITE = np.concatenate([TEXT[:1], np.full_like(TEXT[:1], np.inf)])
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "too few channels": ({"latent_shape": (3, 3, 4, 6)}, r"hidden_states \[2, 3, 3, 4, 6\]; wanted \[batch, 4, frames, height, width\]"),
    "a wrong width": ({"encoder_hidden_states": TEXT[..., :7]}, r"encoder_hidden_states \[2, 5, 7\]; wanted \[batch, text_tokens, 8\]"),
    "too few clips": ({"encoder_hidden_states": TEXT[:1]}, r"encoder_hidden_states \[1, 5, 8\]"),
    "no text": ({}, r"no encoder_hidden_states; wanted encoder_hidden_states \[batch, text_tokens, 8\]"),
    "a stranger": ({"encoder_hidden_states": TEXT, "more": TEXT}, r"inputs more; wanted only timestep, encoder_hidden_states, guidance"),
    "infinite": ({"encoder_hidden_states": INFINITE}, r"inputs/encoder_hidden_states, clip 1 with numbers that are not finite"),
}


@pytest.mark.parametrize("what", BAD)
def test_conditionings_that_do_not_fit(library: Library, root: Path, what: str) -> None:
    changes, words = BAD[what]
    inputs = changes if "latent_shape" not in changes else {"encoder_hidden_states": TEXT}
    shape = changes.get("latent_shape", LATENTS)
    handle = put(library, clips(inputs=inputs, empty={}, latent_shape=shape))
    refused = pytest.raises(LibraryError, match=f"VDITC_ERROR_INPUT: conditioning: found {words}")
    with library.bundle(root) as bundle, library.session(bundle) as session, refused:
        library.sample(session, handle, shape)
    library("conditioning_destroy", handle)


def test_setters_refuse(library: Library) -> None:
    handle, text, image = put(library, clips()), TEXT, np.ones((1, *LATENTS), np.float32)
    small = np.ones((2, 1, 3, 4, 5), np.float32)
    for name, arguments, words in (
        ("set_empty", (b"other", byref(tensor(text))), "INPUT: .*other of the empty prompt alone"),
        ("set_empty", (b"encoder_hidden_states", byref(tensor(text[..., :7].copy()))), r"INPUT: .*\[2, 5, 7\] of the empty prompt"),
        ("set_channels", (byref(tensor(small)),), r"INPUT: .*channels \[2, 1, 3, 4, 5\]; wanted \[1 or 2, E, 3, 4, 6\]"),
        ("set_known", (byref(tensor(image)), (c_int64 * 1)(3), c_uint64(1)), "INPUT: .*frames 0 to 2 of the latents"),
        ("set_known", (byref(tensor(image)), None, c_uint64(0)), "INPUT: .*0 known frames"),
        ("set_seeds", ((c_uint64 * 3)(1, 2, 3), c_uint64(3)), "INPUT: .*3 seeds; wanted 2, one a clip"),
        ("set_seeds", (None, c_uint64(2)), "ARGUMENT: seeds: found NULL"),
        ("set_input", (None, byref(tensor(text))), "ARGUMENT: name: found NULL"),
        ("set_input", (b"x", None), "ARGUMENT: tensor: found NULL"),
    ):  # fmt: skip
        with pytest.raises(LibraryError, match=words):
            library(f"conditioning_{name}", handle, *arguments)
    said = tensor(text)
    for field, value in (("dtype", 0), ("bytes", 8), ("rank", 9), ("data", None)):
        wrong = type(said).from_buffer_copy(said)
        setattr(wrong, field, value)
        with pytest.raises(LibraryError, match="ARGUMENT: tensor"):
            library("conditioning_set_input", handle, b"encoder_hidden_states", byref(wrong))
    library("conditioning_destroy", handle)
    for shape, seeds, count, words in (
        ((4, 0, 4, 6), (c_uint64 * 1)(1), 1, r"INPUT: .*latents \[4, 0, 4, 6\]"),
        ((2**40, 2**40, 4, 6), (c_uint64 * 1)(1), 1, r"INPUT: .*latents"),
        (LATENTS, (c_uint64 * 1)(1), 0, r"INPUT: .*0 clips"),
        (LATENTS, None, 1, r"ARGUMENT: seeds: found NULL"),
    ):
        with pytest.raises(LibraryError, match=words):
            library.made("conditioning_create", (c_int64 * 4)(*shape), seeds, c_uint64(count))


def test_options_that_cannot_be(library: Library, root: Path, tmp_path: Path) -> None:
    tables = save_bundle(tmp_path / "tables", WAN, SPECS)
    one = save_bundle(tmp_path / "one", WAN, tuple(InputSpec(s.name, s.dtype, (1, *s.dims[1:]), s.fill) for s in SPECS))
    cases: Sequence[tuple[Path, dict[str, Any], str]] = (
        (root, {"backend": b"rtx-4090"}, r"ARGUMENT: .*backend rtx-4090; wanted null, host, rtx-ada"),
        (root, {"steps": -1}, "ARGUMENT: .*-1 steps"),
        (root, {"threads": -1}, "ARGUMENT: .*threads -1"),
        (root, {"passes": 3}, "ARGUMENT: .*passes 3"),
        (root, {"guidance": float("inf")}, "INPUT: .*guidance inf"),
        (root, {"guidance_2": 2.0}, "ARGUMENT: .*a second guidance scale; wanted a bundle of two experts"),
        (root, {"step_cache": b"40%"}, r"ARGUMENT: step cache: found 40%; wanted .*30% \(0\.35\), 50% \(0\.8\)"),
        (root, {"step_cache": b"0"}, "ARGUMENT: step cache: found 0; wanted"),
        (one, {"passes": 1}, r"ARGUMENT: .*guidance in one pass with a model for 1 to 1 clips at once; wanted two passes"),
    )
    for bundle, options, words in cases:
        with pytest.raises(LibraryError, match=words):
            ours(library, bundle, clips(), tmp_path, **options)
    with pytest.raises(LibraryError, match=r"INPUT: .*a step cache on 6 steps of another schedule"):
        ours(library, tables, clips(), tmp_path, step_cache=b"30%", shift=9.0)
    specs = SPECS[:1] + SPECS[2:]
    silent = save_bundle(tmp_path / "silent", WAN, specs[:-1])
    with pytest.raises(LibraryError, match="ARGUMENT: session: found embedded guidance 3; wanted a model with an input"):
        ours(library, silent, clips(specs[:-1]), tmp_path, embedded_guidance=3.0)


def test_no_latents_by_halves(library: Library, root: Path) -> None:
    handle, needed = put(library, clips()), c_uint64()
    with library.bundle(root) as bundle, library.session(bundle) as session:
        whole = library.sample(session, handle, LATENTS)
        out = np.full(whole.shape, 7, np.float32)
        with pytest.raises(LibraryError, match=rf"SHORT_BUFFER: latents: found {whole.nbytes - 1} bytes; wanted {whole.nbytes} bytes"):
            library("session_sample", session, handle, PROGRESS(), None, pointer(out), c_uint64(out.nbytes - 1), byref(needed))
        assert needed.value == whole.nbytes
        for last in (0, 3, 2 * STEPS - 1):  # a callback that stops, until the very last step
            told = PROGRESS(lambda _, said, last=last: int(said[0].done > last))
            with pytest.raises(LibraryError, match="VDITC_CANCELLED: session: found a callback that asks to stop"):
                library("session_sample", session, handle, told, None, pointer(out), c_uint64(out.nbytes), None)
            assert (out == 7).all()
        np.testing.assert_array_equal(library.sample(session, handle, LATENTS), whole)  # as if nothing had been
    library("conditioning_destroy", handle)


def test_progress(library: Library, root: Path) -> None:
    handle, told, pictures = put(library, clips()), [], []

    def note(said: Any) -> int:
        told.append((said.done, said.total, said.clip, said.step, said.latents_bytes))
        pictures.append(np.ctypeslib.as_array(said.latents, LATENTS).copy())
        return 0

    with library.bundle(root) as bundle, library.session(bundle) as session:
        found = library.sample(session, handle, LATENTS, note)
    size = int(np.prod(LATENTS)) * 4
    assert told == [(c * STEPS + s + 1, 2 * STEPS, c, s, size) for c in range(2) for s in range(STEPS)]
    np.testing.assert_array_equal(pictures[STEPS - 1], found[0])
    np.testing.assert_array_equal(pictures[-1], found[1])
    library("conditioning_destroy", handle)


def test_cancelled_from_another_thread(library: Library, root: Path) -> None:
    handle, at_work, go_on = put(library, clips()), threading.Event(), threading.Event()

    def predict(feeds: Mapping[str, Array], _: int, step: int) -> Array:
        if step == 2:
            at_work.set()
            assert go_on.wait(30)
        return np.zeros_like(feeds["hidden_states"])

    with library.bundle(root) as bundle, library.session(bundle, predict=predict) as session:
        trouble: list[LibraryError] = []

        def work() -> None:
            try:
                library.sample(session, handle, LATENTS)
            except LibraryError as error:
                trouble.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert at_work.wait(30)
        with pytest.raises(LibraryError, match="VDITC_ERROR_BUSY: session: found a call that is at work"):
            library.sample(session, handle, LATENTS)
        library("session_cancel", session)
        go_on.set()
        thread.join(30)
        assert [error.status for error in trouble] == ["VDITC_CANCELLED"] and "a request to stop" in trouble[0].message
        library.sample(session, handle, LATENTS)  # one request stops one call
        library("session_cancel", session)
        with pytest.raises(LibraryError, match="VDITC_CANCELLED"):
            library.sample(session, handle, LATENTS)
    library("conditioning_destroy", handle)


def test_two_sessions_at_once(library: Library, root: Path) -> None:
    """Of one bundle and one conditioning, which are destroyed while they work."""
    sizes = (4, 3, 64, 96)  # enough for several threads each
    given = clips(count=1, latent_shape=sizes)
    handle = put(library, given)
    bundle = library.made("bundle_open", str(root).encode(), None)
    with library.session(bundle, threads=1) as session:
        wanted = library.sample(session, handle, sizes)
    with library.session(bundle, threads=3) as first, library.session(bundle, threads=2) as second:
        library("bundle_destroy", bundle)
        found: dict[int, list[Array]] = {0: [], 1: []}

        def work(number: int, session: Any) -> None:
            for _ in range(4):
                found[number].append(library.sample(session, handle, sizes))

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate((first, second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    library("conditioning_destroy", handle)
    assert [len(arrays) for arrays in found.values()] == [4, 4]
    for arrays in found.values():
        for array in arrays:
            np.testing.assert_array_equal(array, wanted)


def test_a_session_that_is_destroyed_at_work(library: Library, root: Path) -> None:
    """It waits for the call, which is told so: the host's function and memory are its own again."""
    handle = put(library, clips(count=1))
    at_work, destroyed, late, trouble = threading.Event(), threading.Event(), list[bool](), list[str]()

    def predict(feeds: Mapping[str, Array], *_: int) -> Array:
        at_work.set()
        time.sleep(0.02)
        late.append(destroyed.is_set())  # whether it was called after the session was destroyed
        return np.zeros_like(feeds["hidden_states"])

    def work() -> None:
        with pytest.raises(LibraryError) as error:
            while True:
                library.sample(session, handle, LATENTS)
        trouble.append(error.value.status)

    with library.bundle(root) as bundle:
        thread = threading.Thread(target=work)
        with library.session(bundle, predict=predict) as session:
            thread.start()
            assert at_work.wait(30)
        destroyed.set()
        thread.join(30)
    assert trouble == ["VDITC_CANCELLED"] and late and not any(late)
    library("conditioning_destroy", handle)


def test_a_session_that_its_callback_destroys(library: Library, root: Path) -> None:
    handle, said = put(library, clips(count=1)), []

    def stop(_: Progress) -> int:
        said.append(library.raw.vditc_session_destroy(session))
        return 1

    with library.bundle(root) as bundle, library.session(bundle) as session:
        with pytest.raises(LibraryError, match="VDITC_CANCELLED"):
            library.sample(session, handle, LATENTS, stop)
        assert [library.raw.vditc_status_name(status) for status in said] == [b"VDITC_ERROR_BUSY"]
        library.sample(session, handle, LATENTS)  # and it lives
    library("conditioning_destroy", handle)


def test_logs(library: Library) -> None:
    from cpp_library import LOG

    library("set_log", LOG(lambda *_: None), None, ctypes.c_int32(4))
    library("set_log", LOG(), None, ctypes.c_int32(0))
