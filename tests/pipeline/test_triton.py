"""The driver of a Triton repository, run for real: its clips are those of `vditc.Sampler`, whose engines are the same graphs."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
from tiny_bundle import FIRST, LATENTS, NEGATIVE, PROMPT, STEPS
from triton_bundle import save_built, without
from triton_stub import Client, InferenceResponse, Logger, Tensor, TritonError, utils_of

import vditc
from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.errors import CancelledError, InputError
from vditc.pipeline.triton.engines import EngineChain, ServedEngine
from vditc.pipeline.triton.repository import plan_repository, write_repository
from vditc.pipeline.triton.request import Request

FRAMES = 5  # of a clip of LATENTS


@dataclasses.dataclass
class Case:
    """A bundle and its repository."""

    bundle: Bundle
    repository: Path

    def client(self, model: str = "pipeline") -> Client:
        return Client(self.repository, model)

    def sampler(self) -> vditc.Sampler:
        return vditc.Sampler(self.bundle, backend="onnxruntime")


def case(folder: Path, bundle: Bundle) -> Case:
    write_repository(plan_repository(bundle), folder / "repository")
    return Case(bundle, folder / "repository")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("one")
    return case(folder, save_built(folder))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("two")
    return case(folder, save_built(folder, experts=True))


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("segments")
    return case(folder, save_built(folder, segments=True))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Neither text encoder nor VAE."""
    folder = tmp_path_factory.mktemp("bare")
    return case(folder, without(save_built(folder), "text_encoder", "vae"))


def good(response: InferenceResponse) -> dict[str, np.ndarray]:
    error = response.error()
    assert error is None, error.message()
    return response.arrays()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, {}),
        ({"negative_prompt": NEGATIVE, "seed": 3}, {"negative_prompt": NEGATIVE, "seed": 3}),
        ({"guidance": 1.0}, {"guidance": 1.0}),
        ({"guidance": 7.5, "guidance_passes": "two"}, {"guidance": 7.5, "passes": "two"}),
        ({"steps": 3, "shift": 5.0, "solver": "FlowMatchEulerDiscreteScheduler"}, {}),
        ({"shift": 3.1, "guidance": 2.3}, {}),  # which have more digits than float32
        ({"size": [3, 16, 24]}, {"size": (3, 16, 24)}),
        ({"step_cache": "1e9"}, {"step_cache": "1e9"}),
    ],
)
def test_clips_are_those_of_the_sampler(one: Case, asked: dict[str, Any], said: dict[str, Any]) -> None:
    client = one.client()
    found = good(client.ask(("latents", "frames"), prompt=PROMPT, **asked))
    said = said or asked
    with one.sampler() as sampler:
        wanted = sampler(PROMPT, **said)
        np.testing.assert_array_equal(found["latents"], wanted.latents)
        np.testing.assert_array_equal(found["frames"], wanted.frames()[None])
        plain = sampler(PROMPT).latents
        assert not asked or plain.shape != found["latents"].shape or (plain != found["latents"]).any()  # each option does something
    steps = 2 if "step_cache" in asked else asked.get("steps", STEPS)
    runs = steps * (2 if asked.get("guidance_passes") == "two" else 1)
    frames = found["latents"].shape[2]
    assert client.server.calls == ["text_encoder"] * 2 + ["dit"] * runs + ["vae_first1", *["vae_next"] * (frames - 1)]


def test_several_clips(one: Case) -> None:
    client = one.client()
    with one.sampler() as sampler:
        for given in ({"prompt": PROMPT, "seed": [5, 9, 2]}, {"prompt": [PROMPT, "two dogs"], "seed": 7}, {"prompt": [PROMPT, NEGATIVE]}):
            wanted: Any = sampler(**given).latents
            np.testing.assert_array_equal(good(client.ask(**given))["latents"], wanted)


def test_noise_is_taken(one: Case) -> None:
    noise = np.random.default_rng(4).standard_normal((2, *LATENTS), np.float32)
    with one.sampler() as sampler:
        wanted = sampler([PROMPT, NEGATIVE], noise=noise).latents
    np.testing.assert_array_equal(good(one.client().ask(prompt=[PROMPT, NEGATIVE], noise=noise))["latents"], wanted)


@pytest.mark.parametrize("said", [{}, {"guidance": 2.0, "guidance_2": 5.0}, {"guidance_passes": "two"}])
def test_two_experts_walk_their_steps(pair: Case, said: dict[str, Any]) -> None:
    client = pair.client()
    found = good(client.ask(prompt=PROMPT, seed=[1, 2], **said))["latents"]
    with pair.sampler() as sampler:
        wanted = sampler(PROMPT, seed=[1, 2], **{"passes" if n == "guidance_passes" else n: v for n, v in said.items()})
    np.testing.assert_array_equal(found, wanted.latents)
    runs = 2 if "guidance_passes" in said else 1
    clip = ["dit_high"] * FIRST * runs + ["dit_low"] * (STEPS - FIRST) * runs
    assert client.server.calls == ["text_encoder"] * 2 + clip * 2


def test_segments_hand_on_what_stays_on_the_gpu(cut: Case, one: Case) -> None:
    client = cut.client()
    found = good(client.ask(("latents", "frames"), prompt=PROMPT, size=[5, 16, 24]))
    segments = [f"dit_segment_{i:02}" for i in range(3)]
    assert client.server.calls[2:-3] == segments * STEPS
    assert client.server.places[2:-3] == ["gpu", "gpu", "cpu"] * STEPS
    with cut.sampler() as sampler:
        wanted = sampler(PROMPT, size=(5, 16, 24))
        np.testing.assert_array_equal(found["latents"], wanted.latents)
        np.testing.assert_array_equal(found["frames"], wanted.frames()[None])


def test_an_experts_tables_begin_at_0() -> None:
    """Whatever step of the model it begins with."""
    seen: list[list[int]] = []

    def answer(request: Any) -> InferenceResponse:
        seen.append({t.name(): t for t in request.inputs()}["step"].as_numpy().tolist())
        return InferenceResponse([Tensor("velocity", np.zeros(2, np.float32))])

    server: Any = types.SimpleNamespace(run=answer)
    engine = ServedEngine("dit_low", {"x": "float16", "step": "int64"}, ("velocity", "other"))
    utils: Any = utils_of(server)
    asked: list[str] = []
    chain = EngineChain(utils, [engine], "velocity", asked.append, first=3)
    assert chain({"x": np.ones(2, np.float32)}, 5).dtype == np.float32 and seen == [[2]] and asked == ["dit_low"]
    with pytest.raises(InputError, match="dit_low: found no x; wanted x, step"):
        chain({}, 5)


def test_embeddings_in_and_latents_out(bare: Case, one: Case) -> None:
    client = bare.client()
    with one.sampler() as sampler:
        told = sampler.encode([PROMPT, "two dogs"], seed=3)
        wanted = sampler(conditioning=told).latents
    text, empty = told.inputs["encoder_hidden_states"], told.empty["encoder_hidden_states"]
    given: dict[str, Any] = {"encoder_hidden_states": text, "empty_encoder_hidden_states": empty, "seed": 3}
    np.testing.assert_array_equal(good(client.ask(**given))["latents"], wanted)
    assert [output.name for output in client.config.output] == ["latents"]
    assert not {"prompt", "negative_prompt"} & {i.name for i in client.config.input}
    both = good(one.client().ask(**given))["latents"]  # who has a text encoder takes them as well
    np.testing.assert_array_equal(both, wanted)


def test_known_frames(bare: Case, one: Case) -> None:
    random = np.random.default_rng(0)
    text, known = random.standard_normal((1, 5, 8), np.float32), random.standard_normal((1, *LATENTS), np.float32)
    told = Conditioning(
        prompts=("",), seeds=(0,), latent_shape=LATENTS, inputs={"encoder_hidden_states": text}, empty={}, known=known, known_frames=(0,)
    )
    with one.sampler() as sampler:
        wanted = sampler(conditioning=told).latents
    found = good(bare.client().ask(encoder_hidden_states=text, known=known, known_frames=[0]))["latents"]
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found[:, :, 0], known[:, :, 0])


def test_an_image_and_embedded_guidance(one: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that takes them."""
    monkeypatch.setattr(tiny_bundle, "TRANSFORMER", tiny_bundle.TOLD_MORE)
    monkeypatch.setitem(tiny_bundle.FILLS, "guidance", 600.0)
    told = case(tmp_path, save_built(tmp_path))
    client = told.client()
    dims = {i.name: list(i.dims) for i in client.config.input}
    assert (dims["channels"], dims["embedded_guidance"]) == ([-1, 2, -1, -1, -1], [1])
    channels = np.random.default_rng(0).standard_normal((2, 2, *LATENTS[1:]), np.float32)
    given: dict[str, Any] = {"prompt": PROMPT, "seed": [1, 2], "channels": channels}
    with told.sampler() as sampler, one.sampler() as words:  # their text encoders are the same
        encoded = dataclasses.replace(words.encode([PROMPT, PROMPT], seed=[1, 2]), channels=channels)
        found = []
        for scale in (3.1, None):
            said: dict[str, Any] = {} if scale is None else {"embedded_guidance": scale}
            wanted = sampler(conditioning=encoded, **said).latents
            found.append(good(client.ask(**given, **said))["latents"])
            np.testing.assert_array_equal(found[-1], wanted)
    assert (found[0] != found[1]).any()
    assert (good(client.ask(**{**given, "channels": channels[:1]}))["latents"][1] != found[1][1]).any()
    for bad, message in (
        ({**given, "channels": channels[:, :, 1:]}, "found channels [2, 2, 2, 4, 6]"),
        ({"prompt": PROMPT}, "found hidden_states"),
    ):
        client.server.calls.clear()
        error = client.ask(**bad).error()
        assert error is not None and message in error.message() and client.server.calls == []


def test_frames_come_as_they_are_decoded(one: Case) -> None:
    client = one.client("pipeline_stream")
    answers = [good(r) for r in client.stream(("latents", "frames", "clip", "first_frame"), prompt=PROMPT, seed=[1, 2])]
    with one.sampler() as sampler:
        wanted = sampler(PROMPT, seed=[1, 2])
        for clip in range(2):
            latents, *chunks = [a for a in answers if a["clip"].tolist() == [clip]]
            np.testing.assert_array_equal(latents["latents"], wanted.latents[clip : clip + 1])
            assert [c["first_frame"].tolist() for c in chunks] == [[0], [1], [3]]
            np.testing.assert_array_equal(np.concatenate([c["frames"] for c in chunks]), wanted.frames(clip))
    assert len(answers) == 8 and client.config.model_transaction_policy.decoupled
    only = [good(r) for r in client.stream(("frames",), prompt=PROMPT)]
    assert len(only) == 3 and all("latents" not in answer for answer in only)


def test_only_what_is_asked_for_is_computed(one: Case) -> None:
    client = one.client()
    assert list(good(client.ask(("latents",), prompt=PROMPT))) == ["latents"] and not any(c.startswith("vae") for c in client.server.calls)
    assert list(good(client.ask(("frames",), prompt=PROMPT))) == ["frames"]


BAD = [
    ({}, "found nothing to sample from; wanted prompt or encoder_hidden_states"),
    ({"negative_prompt": NEGATIVE}, "found negative_prompt alone"),
    ({"prompt": np.array([], object)}, "found no prompt"),
    ({"prompt": np.array([b"\xff"], object)}, "found prompt with bytes that are not UTF-8"),
    ({"prompt": PROMPT, "encoder_hidden_states": np.zeros((1, 5, 8), np.float32)}, "found prompt and encoder_hidden_states"),
    (
        {"encoder_hidden_states": np.zeros((1, 5, 8), np.float32), "empty_encoder_hidden_states": np.zeros((1, 4, 8), np.float32)},
        "of the empty prompt",
    ),
    ({"encoder_hidden_states": np.full((1, 5, 8), np.nan, np.float32)}, "not finite"),
    ({"encoder_hidden_states": np.zeros((1, 9, 8), np.float32)}, "found text_tokens of 9"),
    ({"prompt": PROMPT, "size": [0, 16, 24]}, r"found size \[0, 16, 24\]"),
    ({"prompt": PROMPT, "size": [7, 16, 24]}, "found frames of 7 frames; wanted 3 to 5 frames, which the engine serves"),
    ({"prompt": PROMPT, "size": [5, 17, 24]}, "nearest 16 or 24"),
    ({"prompt": [PROMPT, NEGATIVE], "seed": [1, 2, 3]}, "found 3 seeds for 2 clips"),
    ({"prompt": PROMPT, "steps": 0}, "found 0 steps"),
    ({"prompt": PROMPT, "solver": "Euler"}, "found --solver Euler"),
    ({"prompt": PROMPT, "guidance_passes": "three"}, "found guidance_passes 'three'; wanted batched or two"),
    ({"prompt": PROMPT, "step_cache": "31%"}, "found --step-cache 31%"),
    ({"prompt": PROMPT, "noise": np.zeros((1, 4, 3, 4, 5), np.float32)}, r"found noise \[1, 4, 3, 4, 5\]"),
    ({"prompt": PROMPT, "known_frames": [0]}, "without known"),
    ({"prompt": PROMPT, "known": np.zeros((1, *LATENTS), np.float32), "known_frames": [3]}, r"found known_frames \[3\]"),
    ({"prompt": PROMPT, "noise": np.full((1, *LATENTS), np.inf, np.float32)}, "wanted finite numbers"),
    ({"prompt": PROMPT, "seed": list(range(17))}, r"found 17 clips; wanted at most 16 \(max_clips in"),
    ({"prompt": [PROMPT] * 17}, "found 17 clips"),
    ({"encoder_hidden_states": np.zeros((17, 5, 8), np.float32)}, "found 17 clips"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_a_bad_request_is_answered(one: Case, given: dict[str, Any], message: str) -> None:
    """And the one behind it is served."""
    client = one.client()
    bad, fine = client.model.execute([client.request(**given), client.request(prompt=PROMPT)])
    error = bad.error()
    assert error is not None and error.code() == TritonError.INVALID_ARG
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error.message())
    assert good(fine)["latents"].shape == (1, *LATENTS)
    assert client.server.calls == ["text_encoder"] * 2 + ["dit"] * STEPS  # of the second alone


@pytest.mark.parametrize("model", ["text_encoder", "dit", "vae_next"])
def test_an_engine_that_fails(one: Case, model: str) -> None:
    client = one.client()
    client.server.fails = model
    error = client.ask(("frames",), prompt=PROMPT).error()
    assert error is not None and error.code() == TritonError.INTERNAL
    assert f"Triton model {model}: found no memory on the device; wanted a run that gives" in error.message()
    client.server.fails = ""
    good(client.ask(("frames",), prompt=PROMPT))
    stream = one.client("pipeline_stream")
    stream.server.fails = model
    *_, last = stream.stream(("frames",), prompt=PROMPT)
    assert (failed := last.error()) is not None and failed.code() == TritonError.INTERNAL


def test_what_nobody_has_foreseen_is_logged(one: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    client = one.client()
    monkeypatch.setattr(Logger, "errors", [])
    monkeypatch.setattr(client.model.pipeline, "latents", lambda *_: 1 // 0)
    error = client.ask(prompt=PROMPT).error()
    assert error is not None and error.message().startswith("ZeroDivisionError: ") and error.code() == TritonError.INTERNAL
    assert "Traceback" in Logger.errors[0]


def test_a_cancelled_request_ends(one: Case) -> None:
    client = one.client()
    error = client.ask(("frames",), 4, prompt=PROMPT).error()  # two prompts are encoded, two steps walked
    assert error is not None and error.code() == TritonError.CANCELLED and "step 2 of 4 of clip 1: found a request" in error.message()
    assert client.server.calls == ["text_encoder"] * 2 + ["dit"] * 2
    stream = one.client("pipeline_stream")
    answers = list(stream.stream(("frames",), 8, prompt=PROMPT))  # while the second chunk was decoded
    assert [a.error() is None for a in answers] == [True, False]
    assert (error := answers[-1].error()) is not None and error.code() == TritonError.CANCELLED
    assert one.client().ask(prompt=PROMPT, cancel_at=0).error().code() == TritonError.CANCELLED  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("behind", "where"),
    [(1, "text_encoder"), (3, "dit_segment_01"), (2 + 3 * STEPS + 1, "decoder")],
)
def test_a_cancelled_request_runs_no_other_engine(cut: Case, behind: int, where: str) -> None:
    client = cut.client()
    error = client.ask(("frames",), behind, prompt=PROMPT).error()
    assert error is not None and error.code() == TritonError.CANCELLED and f"{where}: found a request that was" in error.message()
    assert len(client.server.calls) == behind


def test_a_cancelled_request_decodes_nothing(one: Case) -> None:
    client = one.client()
    asked = Request(client.utils, client.request(("frames",), 0, prompt=PROMPT))
    with pytest.raises(CancelledError, match="vae_first1"):
        next(client.model.pipeline.frames(np.zeros((1, *LATENTS), np.float32), asked))
    assert client.server.calls == []


def test_frames_that_the_decoder_does_not_make_are_refused_first(one: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    client = one.client()
    decoder = client.model.pipeline.parts.decoder
    monkeypatch.setattr(decoder, "plan", dataclasses.replace(decoder.plan, graphs=decoder.plan.graphs[:1]))
    error = client.ask(("frames",), prompt=PROMPT).error()
    assert error is not None and error.code() == TritonError.INVALID_ARG and client.server.calls == []
    good(client.ask(("latents",), prompt=PROMPT))


@pytest.mark.parametrize("text", ["", "0", "many"])
def test_a_limit_of_clips_that_is_no_number(bare: Case, text: str) -> None:
    config = json.dumps({"parameters": {"max_clips": {"string_value": text}}})
    with pytest.raises(InputError, match=f"found max_clips '{text}'; wanted how many clips"):
        bare.client().model.initialize({"model_config": config, "model_repository": "", "model_version": "1"})
