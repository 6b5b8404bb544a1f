"""VAE decoders of libvditc on engines of the stand-in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cpp_bundle import LATENTS, SPECS, clips, save_bundle
from cpp_decoder import PLANS, latents_of
from cpp_engines import TARGET, Device, PartStandIn, part_plan, plan, save_engine, save_part
from cpp_library import Frames, Library, LibraryError

from vditc.part_graph import PartGraph
from vditc.runtimes.parts.video_decoder import PartRunner, VideoDecoder
from vditc.video_plan import VideoPlan


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture
def device() -> Iterator[Device]:
    """Everything is given back."""
    made = Device()
    yield made
    made.reset()
    assert (made["live"], made["contexts"], made["faults"]) == (0, 0, 0)


def bundle_of(root: Path, decoder: VideoPlan, **part: str) -> Path:
    """A bundle with engines of its transformer and of its decoder's graphs."""
    save_bundle(root, decoder=decoder, tiled=decoder.tiles is not None)
    save_engine(root, {"model.plan": plan(SPECS)})
    return save_part(root, "vae", {graph.name: part_plan(graph) for graph in decoder.graphs}, **part)


@contextlib.contextmanager
def opened(graph: PartGraph) -> Iterator[PartRunner]:
    yield PartStandIn(graph)


@pytest.mark.parametrize("name", ["whole", "chunks", "tiles of space", "tiles of time and space"])
def test_frames_are_pythons(library: Library, device: Device, tmp_path: Path, name: str) -> None:
    """States of a chunk are inputs of the next; sizes change from tile to tile, graphs from chunk to chunk."""
    decoder, latents = PLANS[name], latents_of(9, 7, 11)
    wanted = list(VideoDecoder(decoder, opened, tiled=decoder.tiles is not None).stream(latents[None]))
    with library.bundle(bundle_of(tmp_path / "b", decoder)) as bundle, library.session(bundle, backend=TARGET.encode()) as session:
        for _ in range(2):
            found = library.decode(session, latents)
            assert len(found) == len([piece for piece in wanted if len(piece)])
            np.testing.assert_array_equal(np.concatenate(found), np.concatenate(wanted))
    assert np.ptp(wanted[0]) > 50


def test_one_engine_is_on_the_device_at_a_time(library: Library, device: Device, tmp_path: Path) -> None:
    """The transformer's goes for the decoder's, and comes back."""
    decoder, held = PLANS["chunks"], list[list[int]]()
    clips(count=1).save(tmp_path / "c.safetensors")
    handle = library.made("conditioning_open", str(tmp_path / "c.safetensors").encode())

    def on_frames(_: Frames) -> int:
        held[-1].append(device["live"])
        return 0

    with library.bundle(bundle_of(tmp_path / "b", decoder)) as bundle:
        for samples in (False, True):
            with library.session(bundle, backend=TARGET.encode()) as session:
                held.append([])
                before = library.sample(session, handle, LATENTS) if samples else None
                library.decode(session, latents_of(3, 4, 6), on_frames)
                after = library.sample(session, handle, LATENTS)
                assert before is None or np.array_equal(before, after)
    assert held[0] == held[1] and len(held[0]) == 3
    library("conditioning_destroy", handle)


def test_what_is_wrong_is_said(library: Library, device: Device, tmp_path: Path) -> None:
    decoder, latents = PLANS["chunks"], latents_of(2, 2, 3)

    def decoded(root: Path) -> None:
        with library.bundle(root) as bundle, library.session(bundle, backend=TARGET.encode()) as session:
            library.decode(session, latents)

    root = bundle_of(tmp_path / "a", decoder, status="to build on the device")
    with pytest.raises(
        LibraryError, match=r"VDITC_ERROR_NOT_FOUND: .*components/vae/engines/hopper/first1: found no engine; .*`vditc build`"
    ):
        decoded(root)
    with pytest.raises(LibraryError, match=r"VDITC_ERROR_NOT_FOUND: .*wanted one that was built for target hopper"):
        decoded(bundle_of(tmp_path / "b", decoder, target="ada"))
    others = {
        "another shape": (
            ["frames f32 1 3 @2 @3 @4", "conv_in.next f32 1 2 1 @3 @4"],
            r"frames \[1, 3, 1, 2, 3\]; wanted \[1, 3, 1, 4, 6\]",
        ),
        "no states": (["frames f32 1 3 1 @3x2 @4x2"], r"no output conv_in\.next"),
    }
    for number, (outputs, words) in enumerate(others.values()):
        root = save_bundle(tmp_path / f"c{number}", decoder=decoder)
        save_engine(root, {"model.plan": plan(SPECS)})
        save_part(root, "vae", {graph.name: part_plan(graph, outputs) for graph in decoder.graphs})
        with pytest.raises(LibraryError, match=f"VDITC_ERROR_ENGINE: .*engines/hopper/first1: found {words}"):
            decoded(root)
    device["memory"] = 500
    with pytest.raises(LibraryError, match="VDITC_ERROR_DEVICE_MEMORY"):
        decoded(bundle_of(tmp_path / "d", decoder))
