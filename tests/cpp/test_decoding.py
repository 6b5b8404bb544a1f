"""libvditc decodes latents into the frames of `vditc run`, pixel for pixel, given the same outputs of the VAE's graphs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import byref, c_int64, c_uint64
from pathlib import Path
from typing import Any

import cpp_decoder
import numpy as np
import numpy.typing as npt
import pytest
from cpp_bundle import LATENTS, clips, save_bundle
from cpp_decoder import CHANNELS, PLANS, decoded, latents_of, open_null
from cpp_library import FRAMES, BundleInfo, Frames, Library, LibraryError, pointer
from hypothesis import given, settings
from hypothesis import strategies as st

from vditc.bundle import Bundle, list_files, write_manifest
from vditc.codec import PixelShuffleCodec
from vditc.pipeline.components import Components
from vditc.pipeline.video_output import VideoOutput
from vditc.runtimes.parts.video_decoder import VideoDecoder
from vditc.video_plan import TimeTiles, VideoPlan

Array = npt.NDArray[Any]
Decode = Callable[[Array], list[Array]]
CODEC = PixelShuffleCodec(2, mean=0.1, std=0.7)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@contextlib.contextmanager
def session(library: Library, root: Path, **options: Any) -> Iterator[Any]:
    """A session on the backend "null"."""
    with library.bundle(root) as bundle, library.session(bundle, **options) as made:
        yield made


def bundle_of(work: Path, plan: VideoPlan | PixelShuffleCodec | None, **options: Any) -> Path:
    return save_bundle(
        Path(tempfile.mkdtemp(dir=work)) / "b", decoder=plan, **({"tiled": getattr(plan, "tiles", None) is not None} | options)
    )


def size_of(library: Library, session: Any, *shape: int) -> tuple[int, ...]:
    """What `vditc_session_frames` says."""
    found = [c_uint64() for _ in range(3)]
    library("session_frames", session, (c_int64 * 4)(*shape), *map(byref, found))
    return tuple(n.value for n in found)


def compared(library: Library, work: Path, plan: VideoPlan, latents: Array) -> list[Array]:
    """Frames, which are Python's in number, time of coming and value; of a plan that has the graphs which Python needs, and no others."""
    needed = {plan.graph(n, first=begin == 0).name for begin, n in plan.spans(latents.shape[1])}
    plan = dataclasses.replace(plan, graphs=tuple(g for g in plan.graphs if g.name in needed))
    with session(library, bundle_of(work, plan)) as at_work:
        found = library.decode(at_work, latents)
        size = size_of(library, at_work, *latents.shape)
    wanted = decoded(plan, latents, tiled=plan.tiles is not None)
    assert [piece.shape for piece in found] == [piece.shape for piece in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert size == (sum(map(len, found)), *found[0].shape[1:3])
    return found


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("size", [(1, 2, 3), (5, 4, 4), (9, 7, 11)], ids=str)
def test_frames_are_pythons(library: Library, tmp_path: Path, name: str, size: tuple[int, int, int]) -> None:
    found = compared(library, tmp_path, PLANS[name], latents_of(*size))
    assert np.concatenate(found).std() > 1  # pictures of something


EXPORTED = ["cogvideox", "cosmos", "hunyuan_video", "hunyuan_video15", "image", "ltx", "ltx2", "magvit", "mochi", "wan"]


@pytest.mark.slow  # imports PyTorch
@pytest.mark.parametrize("family", EXPORTED)
def test_plans_of_the_exporter(library: Library, tmp_path: Path, family: str) -> None:
    import tiny_pipeline
    import tiny_vaes
    from torch_parts import saved_vae

    make = f"tiny_{family}_vae"
    part = saved_vae(getattr(tiny_vaes if hasattr(tiny_vaes, make) else tiny_pipeline, make)(), tmp_path / "model")
    lengths = (1, 5, 7 if family == "cosmos" else 9)  # it has means of seven frames
    plan = type(part)(part.source, lengths).plan()
    assert (plan.tiles is None) == (family == "cosmos")
    for frames in lengths:
        rows = 5 if plan.tiles is None else plan.tiles.latent[0] + 2
        latents = np.random.default_rng(frames).standard_normal((CHANNELS, frames, rows, 3), np.float32)
        compared(library, tmp_path, plan, latents)


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))


@st.composite
def plans(draw: st.DrawFn) -> VideoPlan:
    """Of any kind, with tiles and without, that vditc may write."""
    stride = draw(st.sampled_from([1, 2, 3]))
    spaces = st.builds(
        lambda step, overlap, blend, unit: cpp_decoder.tiles(stride, step + overlap, step, blend * unit, unit),
        st.integers(1, 4), st.integers(0, 3), st.integers(0, 4), st.integers(1, 2),
    )  # fmt: skip
    about: dict[str, Any] = {"tiles": draw(st.none() | spaces), "scaling": draw(st.floats(0.1, 4)), "shift": draw(st.floats(-1, 1))}
    if draw(st.booleans()):
        about["mean"], about["std"] = draw(st.tuples(*[st.tuples(*[st.floats(-3, 3)] * CHANNELS)] * 2))
    kind = draw(st.sampled_from(["whole", "chunks", "apart", "time"]))
    if kind == "whole":
        return cpp_decoder.whole(stride, **about)
    if kind == "time":
        latent = draw(st.integers(1, 6))
        step, lead = draw(st.integers(1, latent)), draw(st.integers(0, 2))
        whole, blend, keep = draw(st.integers(0, 6)), draw(st.integers(0, 9)), draw(st.integers(1, 12))
        return cpp_decoder.over_time(stride, TimeTiles(latent=latent, step=step, whole=whole, lead=lead, blend=blend, keep=keep), **about)
    return (cpp_decoder.chunked if kind == "chunks" else cpp_decoder.apart)(stride, draw(st.integers(1, 4)), **about)


@settings(max_examples=200, deadline=None)
@given(plan=plans(), size=SIZES, seed=st.integers(0, 99))
def test_any_plan_decodes_as_in_python(
    library: Library, tmp_path_factory: pytest.TempPathFactory, plan: VideoPlan, size: tuple[int, int, int], seed: int
) -> None:
    with np.errstate(invalid="ignore"):  # fewer pixels than a unit weigh 0 / 0: what comes of it is black in both
        compared(library, tmp_path_factory.getbasetemp(), plan, latents_of(*size, seed=seed))


def test_every_part_of_a_plan_matters(library: Library, tmp_path: Path) -> None:
    """Or the tests above would see nothing."""
    latents = latents_of(9, 7, 11)

    def shown(plan: VideoPlan, **options: Any) -> Array:
        with session(library, bundle_of(tmp_path, plan, **options)) as at_work:
            return np.concatenate(library.decode(at_work, latents))

    space, time = PLANS["tiles of space"], PLANS["tiles of time"]
    assert space.tiles is not None and time.time is not None
    changes: dict[str, tuple[VideoPlan, dict[str, Any]]] = {
        "states": (PLANS["chunks"], {"scaling": 0.7}),
        "shift": (PLANS["whole"], {"shift": 0.5}),
        "blend": (space, {"tiles": dataclasses.replace(space.tiles, blend=(0, 0))}),
        "unit": (PLANS["tiles with units"], {"tiles": cpp_decoder.tiles(4, 5, 3, 6, unit=1)}),
        "blend in time": (time, {"time": dataclasses.replace(time.time, blend=0)}),
    }
    for plan, changed in changes.values():
        assert (shown(plan) != shown(dataclasses.replace(plan, **changed))).any()
    assert (shown(space) != shown(space, tiled=False)).any()
    np.testing.assert_array_equal(shown(space, tiled=False), np.concatenate(decoded(space, latents)))


def test_bright_dark_and_no_numbers(library: Library, tmp_path: Path) -> None:
    """Clipped, and black where Python has no number either."""
    latents = latents_of(5, 4, 4) * 1e6
    found = np.concatenate(compared(library, tmp_path, cpp_decoder.over_time(scaling=1.0), latents))
    assert {0, 255} <= set(np.unique(found))
    latents[:, 2] = np.nan
    with session(library, bundle_of(tmp_path, PLANS["whole"])) as at_work:
        found = np.concatenate(library.decode(at_work, latents))
    assert (found[7:11] == 0).all() and (found[:7] > 0).any()


def test_halves_are_rounded_to_even(library: Library, tmp_path: Path) -> None:
    """Of latents that lie so close to what becomes a half that some hit it."""
    shown = (np.arange(0, 255, dtype=np.float64) + 0.5) / 255 * 2 - 1
    near = (shown / (1 - np.abs(shown))).astype(np.float32)
    latents = near.reshape(1, 1, 1, -1) + np.spacing(near) * np.arange(-60, 60, dtype=np.float32).reshape(1, 1, -1, 1)
    latents = np.ascontiguousarray(np.repeat(latents, CHANNELS, 0))
    plan = cpp_decoder.whole(1, scaling=1.0, shift=0.0)
    (video,) = VideoDecoder(plan, open_null).floats(latents[None])
    levels = (video * np.float32(0.5) + np.float32(0.5)) * np.float32(255)
    halves = levels[levels % 1 == 0.5]
    assert {0.0, 1.0} == set(np.floor(halves) % 2) and len(np.unique(halves)) > 50
    compared(library, tmp_path, plan, latents)


def test_many_pixels_on_several_threads(library: Library, tmp_path: Path) -> None:
    latents, plan = latents_of(3, 40, 72), cpp_decoder.chunked(8)
    with session(library, bundle_of(tmp_path, plan), threads=3) as at_work:
        found = library.decode(at_work, latents)
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(decoded(plan, latents)))


@pytest.mark.parametrize("codec", [CODEC, PixelShuffleCodec(1), PixelShuffleCodec(3, mean=-0.2, std=0.4)], ids=lambda c: str(c.block))
def test_codec_of_the_bundled_models(library: Library, tmp_path: Path, codec: PixelShuffleCodec) -> None:
    root = bundle_of(tmp_path, codec)
    latents = np.random.default_rng(1).standard_normal((codec.block**2, 3, 5, 4), np.float32) * 1.5
    latents[0, 0, 0, :2] = (-0.1 / 0.7, 0.9 / 0.7)
    wanted = np.concatenate(list(VideoOutput(Components.open(root / "components"), 16).decode(latents)))
    with session(library, root) as at_work:
        np.testing.assert_array_equal(np.concatenate(library.decode(at_work, latents)), wanted)
        assert size_of(library, at_work, *latents.shape) == wanted.shape[:3]
        with pytest.raises(LibraryError, match=rf"INPUT: decoder: found latents \[7, 3, 5, 4\]; wanted {codec.block**2} channels"):
            size_of(library, at_work, 7, 3, 5, 4)


def test_bundles_tell_whether_they_decode(library: Library, tmp_path: Path) -> None:
    told = {}
    for name, decoder, fps in (("none", None, 16), ("vae", PLANS["chunks"], 24), ("old", PLANS["chunks"], None), ("codec", CODEC, 16)):
        root = bundle_of(tmp_path, decoder, fps=fps)
        with library.bundle(root) as bundle:
            info = library.info("bundle_info_get", BundleInfo, bundle)
            told[name] = (info.decodes, info.fps)
            assert info.fps == VideoOutput(Components.open(root / "components"), fps).fps
            info = BundleInfo(abi_version=1, struct_size=BundleInfo.fps.offset)  # of a header that had neither
            library("bundle_info_get", bundle, byref(info))
            assert (info.steps, info.fps) == (6, 0)
    assert told == {"none": (0, 16), "vae": (1, 24), "old": (1, 8), "codec": (1, 8)}
    with (
        library.bundle(bundle_of(tmp_path, None, fps=0)) as bundle,
        pytest.raises(LibraryError, match=r"DAMAGED: .*sampling\.fps 0; wanted a whole"),
    ):
        library.info("bundle_info_get", BundleInfo, bundle)


def test_what_is_not_decoded(library: Library, tmp_path: Path) -> None:
    latents = latents_of(5, 4, 4)
    with session(library, bundle_of(tmp_path, None)) as at_work:
        for call in (lambda: library.decode(at_work, latents), lambda: size_of(library, at_work, *latents.shape)):
            with pytest.raises(
                LibraryError, match=r"UNSUPPORTED: bundle .*: found no decoder that vditc runs; wanted latents, or a bundle"
            ):
                call()
    longer = {
        "longer chunks": "whose first chunk has 5 latent frames; wanted one of 1, 2",
        "apart": "has 3 latent frames; wanted one of 1, 2",
    }
    for name, message in longer.items():
        plan = dataclasses.replace(PLANS[name], graphs=tuple(g for g in PLANS[name].graphs if g.name in ("first1", "first2", "next")))
        with session(library, bundle_of(tmp_path, plan)) as at_work:
            with pytest.raises(LibraryError, match=rf"INPUT: VAE decoder: found a clip .*{message}; compile with"):
                size_of(library, at_work, CHANNELS, 5, 4, 4)
            with pytest.raises(Exception, match=message):
                decoded(plan, latents)
    one = dataclasses.replace(PLANS["chunks"], graphs=PLANS["chunks"].graphs[:1])
    time = dataclasses.replace(PLANS["tiles of time"], graphs=PLANS["tiles of time"].graphs[3:5])
    for plan, frames, message in (
        (one, 2, "wanted a clip of one chunk"),
        (time, 6, "a tile of time of 3 latent frames; wanted one of 4, 5"),
    ):
        with session(library, bundle_of(tmp_path, plan)) as at_work, pytest.raises(LibraryError, match=message):
            library.decode(at_work, latents_of(frames, 2, 2))
    with session(library, bundle_of(tmp_path, PLANS["whole"])) as at_work:
        for shape, message in {
            (3, 1, 2, 2): "4 channels",
            (CHANNELS, 0, 2, 2): "of 1 to 65536 each",
            (CHANNELS, 1, 2, -2): "of 1 to 65536 each",
            (CHANNELS, 1 << 40, 1 << 40, 2): "of 1 to 65536 each",
        }.items():
            with pytest.raises(LibraryError, match=f"INPUT: decoder: found latents .*; wanted .*{message}"):
                size_of(library, at_work, *shape)


def test_a_host_decodes_with_its_own_vae(library: Library, tmp_path: Path) -> None:
    """Its denoiser has no graphs of one; a codec needs none."""
    for plan in (PLANS["whole"], CODEC):
        with session(library, bundle_of(tmp_path, plan), predict=lambda feeds, *_: feeds["hidden_states"]) as at_work:
            if plan is CODEC:
                assert len(library.decode(at_work, latents_of(1, 2, 2))) == 1
                continue
            with pytest.raises(LibraryError, match=r"UNSUPPORTED: .*components/vae/whole on a backend that runs the transformer alone"):
                library.decode(at_work, latents_of(1, 2, 2))


def test_arguments(library: Library, tmp_path: Path) -> None:
    latents, shape, told = latents_of(1, 2, 2), (c_int64 * 4)(CHANNELS, 1, 2, 2), FRAMES(lambda *_: 0)
    with session(library, bundle_of(tmp_path, PLANS["whole"])) as at_work:
        good = (at_work, pointer(latents), c_uint64(latents.nbytes), shape, told, None)
        library("session_decode", *good)
        library("session_frames", at_work, shape, None, None, None)
        for place, value, message in (
            (0, None, "HANDLE: session: found NULL"),
            (1, None, "ARGUMENT: latents: found NULL"),
            (2, c_uint64(latents.nbytes - 4), r"ARGUMENT: latents: found 60 bytes; wanted float32 \[4, 1, 2, 2\]"),
            (2, c_uint64(latents.nbytes + 1), "ARGUMENT: latents: found 65 bytes"),
            (3, None, "ARGUMENT: latent_shape: found NULL"),
            (3, (c_int64 * 4)(-1, -1, 2, 2), "ARGUMENT: latents: found 64 bytes"),
            (4, FRAMES(), "ARGUMENT: on_frames: found NULL"),
        ):
            with pytest.raises(LibraryError, match=message):
                library("session_decode", *good[:place], value, *good[place + 1 :])
        with pytest.raises(LibraryError, match="ARGUMENT: latent_shape: found NULL"):
            library("session_frames", at_work, None, None, None, None)


KEYS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a key that is missing": (lambda d: d.pop("stride"), "found an object of 9; wanted an object with stride"),
    "another key": (lambda d: d.update(strides=4), "found key strides; wanted those"),
    "a chunk": (lambda d: d.update(chunk=-1), "found chunk -1; wanted a whole number, 0 to"),
    "a fraction": (lambda d: d.update(stride=1.5), r"found stride 1\.5; wanted a whole number"),
    "no stride": (lambda d: d.update(stride=0), "found stride 0; wanted a whole number, 1 to 256"),
    "scaling": (lambda d: d.update(scaling=0), "found scaling 0; wanted another number"),
    "scaling by text": (lambda d: d.update(scaling="1"), "found scaling .*; wanted a number"),
    "mean": (lambda d: d.update(mean=[1.0, 2.0]), "found mean .*; wanted none, or 4, one a channel"),
    "std": (lambda d: d.update(std=[1.0, None, 1.0, 1.0]), r"found std\[1\] .*; wanted a number"),
    "apart": (lambda d: d.update(apart=1), "found apart 1; wanted true or false"),
    "no graphs": (lambda d: d.update(graphs=[]), "found graphs .*; wanted one or more"),
    "graphs by name": (lambda d: d.update(graphs={}), "found graphs .*; wanted a list"),
    "a graph's key": (lambda d: d["graphs"][0].update(weights=1), r"found key graphs\[0\]\.weights"),
    "a graph's name": (lambda d: d["graphs"][1].update(name=""), r"found graphs\[1\]\.name .*; wanted text"),
    "two inputs": (lambda d: d["graphs"][0]["inputs"].append({}), r"found graphs\[0\]\.inputs .*; wanted one, the latents"),
    "a dtype": (lambda d: d["graphs"][0]["inputs"][0].update(dtype="float16"), r"inputs\[0\]\.dtype .*float16.*; wanted float32"),
    "dims": (
        lambda d: d["graphs"][0]["inputs"][0].update(dims=[1, 4, 1, "width", "height"]),
        r"inputs\[0\]\.dims .*; wanted 1, channels, frames",
    ),
    "channels": (
        lambda d: d["graphs"][1]["inputs"][0]["dims"].__setitem__(1, 8),
        r"graphs\[1\]\.inputs .*; wanted the channels of the other",
    ),
    "an axis": (
        lambda d: d["graphs"][1]["output_dims"].__setitem__(2, "time_x4"),
        r"output_dims\[2\] .*time_x4.*; wanted a number, or frames",
    ),
    "a factor": (lambda d: d["graphs"][1]["output_dims"].__setitem__(2, "frames_x0"), r"output_dims\[2\] .*frames_x0"),
    "fewer than none": (lambda d: d["graphs"][1]["output_dims"].__setitem__(2, "frames_x4m4"), r"output_dims\[2\] .*frames_x4m4"),
    "digits": (lambda d: d["graphs"][1]["output_dims"].__setitem__(2, "frames_x4m3x"), r"output_dims\[2\] .*frames_x4m3x"),
    "a negative axis": (lambda d: d["graphs"][1]["output_dims"].__setitem__(2, -4), r"output_dims\[2\] -4; wanted a whole number, 1 to"),
    "another stride": (
        lambda d: d["graphs"][1]["output_dims"].__setitem__(3, "height_x8"),
        "wanted 1, 3, frames, and height and width times the stride, 2",
    ),
    "four colours": (lambda d: d["graphs"][1]["output_dims"].__setitem__(1, 4), "output_dims .*; wanted 1, 3, frames"),
    "a state's frames": (
        lambda d: d["graphs"][1]["reads"][0]["dims"].__setitem__(2, "frames"),
        r"reads\[0\]\.dims .*; wanted a number of frames",
    ),
    "a tile": (lambda d: d["tiles"].update(latent=[4]), r"tiles\.latent .*; wanted two numbers"),
    "no step": (lambda d: d["tiles"].update(step=[0, 3]), r"tiles\.step\[0\] 0; wanted"),
    "gaps": (lambda d: d["tiles"].update(step=[5, 5], keep=[10, 10]), r"tiles\.step .*; wanted steps that leave no gap"),
    "keep": (lambda d: d["tiles"].update(keep=[6, 7]), r"tiles\.keep .*; wanted the pixels of a step"),
    "no unit": (lambda d: d["tiles"].update(unit=0), r"tiles\.unit 0; wanted"),
    "no tiles": (lambda d: d.update(tiles=None), "found no tiles; wanted those of a bundle that was compiled with --vae-tiles"),
    "time": (lambda d: d.update(time=[]), "found time .*; wanted an object"),
    "time's step": (lambda d: d.update(time={**dataclasses.asdict(cpp_decoder.TIME), "step": 0}), r"time\.step 0; wanted"),
}


def rewritten(root: Path, name: str, text: str) -> Path:
    """A bundle whose manifest lists a changed file."""
    (root / name).write_text(text)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"][name]["bytes"] = len(text.encode())
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.mark.parametrize("what", KEYS)
def test_damaged_plans(library: Library, tmp_path: Path, what: str) -> None:
    change, message = KEYS[what]
    root = bundle_of(tmp_path, PLANS["tiles of space"])
    data = json.loads((root / "components/vae/decoder.json").read_text())
    change(data)
    rewritten(root, "components/vae/decoder.json", json.dumps(data))
    with session(library, root) as at_work, pytest.raises(LibraryError, match=rf"VDITC_ERROR_DAMAGED: .*vae/decoder\.json: .*{message}"):
        library.decode(at_work, latents_of(1, 2, 2))


def test_damaged_files(library: Library, tmp_path: Path) -> None:
    def refused(root: Path, message: str) -> None:
        with session(library, root) as at_work, pytest.raises(LibraryError, match=f"VDITC_ERROR_DAMAGED: .*{message}"):
            library.decode(at_work, latents_of(1, 2, 2))

    for text in ("", "[1", "null", "[]"):
        refused(rewritten(bundle_of(tmp_path, PLANS["whole"]), "components/vae/decoder.json", text), r"components/vae/decoder\.json: found")
    for config, message in (
        ({"block": 0}, "found block 0; wanted"),
        ({"block": 2, "latents_mean": None}, "found latents_mean .*; wanted a number"),
    ):
        text = json.dumps({"_class_name": "PixelShuffleCodec", **config})
        refused(rewritten(bundle_of(tmp_path, CODEC), "components/vae/config.json", text), rf"components/vae/config\.json: {message}")
    for decoder, name in ((PLANS["whole"], "decoder.json"), (CODEC, "config.json")):
        root = bundle_of(tmp_path, decoder)
        manifest = Bundle.open(root).manifest
        files = {n: entry for n, entry in list_files(root).items() if not n.endswith(name)}
        write_manifest(root, dataclasses.replace(manifest, files=files))
        refused(root, f"found components/vae/{name}, which the manifest does not list")
    wrong = cpp_decoder._graph("first1", 2, 4, 2, (), ())
    root = bundle_of(tmp_path, dataclasses.replace(PLANS["chunks"], graphs=(wrong,)))
    refused(root, "VAE decoder: found graph first1 of 2 latent frames; wanted 1")


def test_a_link_out_of_the_bundle(library: Library, tmp_path: Path) -> None:
    """Made after it was opened."""
    root = bundle_of(tmp_path, PLANS["whole"])
    with session(library, root) as at_work:
        (root / "components" / "vae").rename(tmp_path / "vae")
        (root / "components" / "vae").symlink_to(tmp_path / "vae")
        with pytest.raises(LibraryError, match="VDITC_ERROR_PATH"):
            library.decode(at_work, latents_of(1, 2, 2))


def test_cancelled_by_its_callback(library: Library, tmp_path: Path) -> None:
    latents = latents_of(5, 4, 4)
    with session(library, bundle_of(tmp_path, PLANS["chunks"])) as at_work:
        whole = library.decode(at_work, latents)
        assert len(whole) == 5
        for last in (0, 2, 4):
            seen: list[int] = []

            def stop(now: Frames, seen: list[int] = seen, last: int = last) -> int:
                seen.append(now.total)
                return int(len(seen) > last)

            with pytest.raises(LibraryError, match="VDITC_CANCELLED: session: found a callback that asks to stop"):
                library.decode(at_work, latents, stop)
            assert seen == [17] * (last + 1)
        again = library.decode(at_work, latents)  # as if nothing had been
        np.testing.assert_array_equal(np.concatenate(again), np.concatenate(whole))


@pytest.mark.parametrize("name", ["chunks", "codec"])
def test_cancelled_from_another_thread(library: Library, tmp_path: Path, name: str) -> None:
    """Between chunks; meanwhile the session does nothing else, but says what clips become."""
    latents, root = latents_of(3, 4, 4), bundle_of(tmp_path, PLANS.get(name, CODEC))
    at_work, go_on = threading.Event(), threading.Event()
    trouble: list[str] = []
    seen: list[int] = []

    def pause(now: Any) -> int:
        seen.append(now.first)
        at_work.set()
        assert go_on.wait(30)
        return 0

    with session(library, root) as one:

        def work() -> None:
            try:
                library.decode(one, latents, pause)
            except LibraryError as error:
                trouble.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        assert at_work.wait(30)
        assert size_of(library, one, *latents.shape)[1:] == (8, 8)
        clip = clips(count=1)
        clip.save(tmp_path / "clip.safetensors")
        handle = library.made("conditioning_open", str(tmp_path / "clip.safetensors").encode())
        for call in (lambda: library.decode(one, latents), lambda: library.sample(one, handle, LATENTS)):
            with pytest.raises(LibraryError, match="VDITC_ERROR_BUSY: session: found a call that is at work"):
                call()
        library("session_cancel", one)
        go_on.set()
        thread.join(30)
        assert trouble == ["VDITC_CANCELLED: session: found a request to stop; wanted none; call it again"] and seen == [0]
        library.decode(one, latents)  # one request stops one call
        library("conditioning_destroy", handle)


def test_cancelled_between_tiles(library: Library, tmp_path: Path) -> None:
    """Of a clip of one chunk, of which no frame has come."""
    latents, trouble, seen = latents_of(13, 97, 97), list[str](), list[int]()

    def note(now: Frames) -> int:
        seen.append(now.first)
        return 0

    with session(library, bundle_of(tmp_path, cpp_decoder.whole(tiles=cpp_decoder.tiles()))) as one:

        def work() -> None:
            try:
                library.decode(one, latents, note)
            except LibraryError as error:
                trouble.append(error.status)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.05)  # it takes several times as long
        library("session_cancel", one)
        thread.join(30)
    assert (trouble, seen) == (["VDITC_CANCELLED"], [])


def test_a_callback_that_calls_its_session(library: Library, tmp_path: Path) -> None:
    latents, said = latents_of(2, 2, 2), []

    def call(_: Any) -> int:
        said.append(library.raw.vditc_session_destroy(at_work))
        with pytest.raises(LibraryError, match="VDITC_ERROR_BUSY"):
            library.decode(at_work, latents)
        return 0

    with session(library, bundle_of(tmp_path, PLANS["chunks"])) as at_work:
        assert len(library.decode(at_work, latents, call)) == 2
    assert [library.raw.vditc_status_name(status) for status in said] == [b"VDITC_ERROR_BUSY"] * 2


def test_sampling_goes_on_behind_decoding(library: Library, tmp_path: Path) -> None:
    """The denoiser, which was closed, is opened again."""
    clips(count=1).save(tmp_path / "clip.safetensors")
    handle = library.made("conditioning_open", str(tmp_path / "clip.safetensors").encode())
    with session(library, bundle_of(tmp_path, PLANS["tiles of time and space"])) as at_work:
        before = library.sample(at_work, handle, LATENTS)
        first = library.decode(at_work, before[0])
        np.testing.assert_array_equal(library.sample(at_work, handle, LATENTS), before)
        np.testing.assert_array_equal(np.concatenate(library.decode(at_work, before[0])), np.concatenate(first))
    library("conditioning_destroy", handle)


def test_a_session_that_is_destroyed_while_it_decodes(library: Library, tmp_path: Path) -> None:
    latents, at_work, destroyed = latents_of(40, 2, 2), threading.Event(), threading.Event()
    late: list[bool] = []
    trouble: list[str] = []

    def note(_: Any) -> int:
        at_work.set()
        destroyed.wait(0.02)
        late.append(destroyed.is_set())
        return 0

    def work() -> None:
        with pytest.raises(LibraryError) as error:
            library.decode(one, latents, note)
        trouble.append(error.value.status)

    with session(library, bundle_of(tmp_path, PLANS["chunks"])) as one:
        thread = threading.Thread(target=work)
        thread.start()
        assert at_work.wait(30)
    destroyed.set()
    thread.join(30)
    assert trouble == ["VDITC_CANCELLED"] and late and not any(late)
