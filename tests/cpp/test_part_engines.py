"""Text encoders and VAE decoders of libvditc on engines of the stand-in."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from ctypes import c_int64, c_uint64
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_bundle import LATENTS, SPECS, clips, save_bundle
from cpp_decoder import PLANS, latents_of
from cpp_engines import TARGET, Device, PartStandIn, StandIn, part_plan, plan, save_engine, save_part
from cpp_library import Frames, Library, LibraryError
from cpp_texts import TEXT, encode, save_texts
from cpp_tokenizers import SHAPES

from vditc.adapter import InputSpec
from vditc.bundle import Bundle
from vditc.conditioner import Conditioner
from vditc.conditioning import Conditioning
from vditc.part_graph import PartGraph
from vditc.pipeline.schedules import bundle_scheduler
from vditc.runtimes.parts.prompt_tokens import PromptTokens
from vditc.runtimes.parts.text_encoder import TextEncoder
from vditc.runtimes.parts.video_decoder import PartRunner, VideoDecoder
from vditc.sampling import sample
from vditc.video_plan import VideoPlan

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


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


def test_a_weight_budget_is_the_transformers(library: Library, device: Device, tmp_path: Path) -> None:
    """Engines of other parts stream nothing."""
    root = bundle_of(tmp_path / "b", PLANS["whole"])
    streams = {"module": "tensorrt", "version": "10.3.0", "arch": ["sm_90"], "options": {"weight-streaming": "auto"}}
    save_engine(root, {"model.plan": plan(SPECS, ("velocity f32",), "streams")}, files={"engine.json": streams})
    with library.bundle(root) as bundle, library.session(bundle, backend=TARGET.encode(), weight_budget=200) as session:
        assert library.decode(session, latents_of(1, 2, 3)) and device["budget"] == 200


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


def test_from_a_prompt_to_frames(library: Library, device: Device, tmp_path: Path) -> None:
    """Every part on an engine, one after the other; as Python's parts do it on the same ones."""
    folder, prompts = tmp_path / "b" / "components", ["a red kite", "dark"]
    decoder = dataclasses.replace(PLANS["chunks"], scaling=1.0, shift=30.0)  # numbers of tokens make latents of about -30
    root = save_texts(tmp_path / "b", [TEXT], {"tokenizer": SHAPES["umt5"]()}, decoder=decoder, length=12)
    text = [InputSpec(name, "int64", (1, "prompt_tokens")) for name in ("input_ids", "attention_mask")]
    save_engine(root, {"model.plan": plan((SPECS[0], SPECS[2]))})
    save_part(root, "text_encoder", {"model": plan(text, ["states f16 1 @1 8"])})
    save_part(root, "vae", {graph.name: part_plan(graph) for graph in decoder.graphs})

    @contextlib.contextmanager
    def encoder(_: str) -> Iterator[PartRunner]:
        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            seen = StandIn((), np.float16).run(list(feeds.values()))
            return {"states": np.resize(seen, (1, seen.shape[1], 8))}

        yield run

    states = TextEncoder(Conditioner.load(folder), lambda name: PromptTokens(folder / name), encoder).inputs(prompts)
    told = {name: array[:1] for name, array in states.items()} | {"guidance": np.array([6000.0], np.float32)}
    given = Conditioning(
        prompts=("a red kite",), seeds=(3,), latent_shape=LATENTS, inputs=told, empty={name: array[1:] for name, array in states.items()}
    )
    scheduler = bundle_scheduler(Bundle.open(root, hashes=False), None, LATENTS[1:])
    latents = sample(StandIn((SPECS[0], SPECS[2])), scheduler, given.clips([0], SPECS), 3.0)
    frames = np.concatenate(list(VideoDecoder(decoder, opened).stream(latents)))

    clip = library.made("conditioning_create", (c_int64 * 4)(*LATENTS), (c_uint64 * 1)(3), c_uint64(1))
    with library.bundle(root) as bundle, library.session(bundle, backend=TARGET.encode()) as session:
        for _ in range(2):
            encode(library, session, prompts[:1], prompts[1:], clip)
            made = library.sample(session, clip, LATENTS)
            np.testing.assert_array_equal(made, latents)
            np.testing.assert_array_equal(np.concatenate(library.decode(session, made[0])), frames)
    library("conditioning_destroy", clip)
    assert np.ptp(frames) > 100


def test_a_prompt_that_is_refused_closes_no_engine(library: Library, device: Device, tmp_path: Path) -> None:
    """What is wrong with it is told before the transformer's engine goes for an encoder's."""
    root = save_texts(tmp_path / "b", [dataclasses.replace(TEXT, clean=("ftfy",))], {"tokenizer": SHAPES["umt5"]()}, length=12)
    save_engine(root, {"model.plan": plan(SPECS)})
    clip = library.made("conditioning_create", (c_int64 * 4)(*LATENTS), (c_uint64 * 1)(3), c_uint64(1))
    with library.bundle(root) as bundle, library.session(bundle, backend=TARGET.encode()) as session:
        before = device["live"]
        with pytest.raises(LibraryError, match="VDITC_ERROR_UNSUPPORTED"):
            encode(library, session, ["Ã©"], None, clip)
        assert device["live"] == before > 0
    library("conditioning_destroy", clip)
