"""`vditc.Sampler`: the clips of `vditc run`, from what stays open."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import vditc as command
from PIL import Image, ImageSequence
from tiny_bundle import FIRST, LATENTS, NEGATIVE, PROMPT, SECOND, STEPS, save_tiny_bundle

import vditc
from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.errors import CancelledError, InputError, VditcError
from vditc.pipeline import denoisers, sampler
from vditc.pipeline.samples import Step
from vditc.pipeline.sampler import Sampler
from vditc.runtimes.parts import opened
from vditc.safetensors_file import read_header

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
BLOCKED = ("torch", "diffusers", "transformers", "onnx", "typer", "rich")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny pipeline."""
    return save_tiny_bundle(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """It with a second expert."""
    return save_tiny_bundle(tmp_path_factory.mktemp("two"), experts=True)


def by_run(bundle: Bundle, out: Path, *words: str) -> np.ndarray:
    """Latents of the command."""
    run = command("run", str(bundle.path), *words, "--force", "-o", str(out))
    assert run.code == 0, run.stderr
    return np.array(read_header(out)[0]["latents"].read())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ()),
        ({"negative_prompt": NEGATIVE, "seed": 3}, ("--negative-prompt", NEGATIVE, "--seed", "3")),
        ({"steps": 3, "shift": 5.0}, ("--steps", "3", "--shift", "5")),
        ({"solver": "FlowMatchEulerDiscreteScheduler"}, ("--solver", "FlowMatchEulerDiscreteScheduler")),
        ({"guidance": 1.0}, ("--guidance", "1")),
        ({"guidance": 7.5, "passes": "two"}, ("--guidance", "7.5", "--guidance-passes", "two")),
        ({"step_cache": 1e9}, ("--step-cache", "1e9")),
        ({"size": "small"}, ("--size", "small")),
        ({"size": (7, 32, None)}, ("--size", "7x32x24")),
        ({"backend": "cpu"}, ("--backend", "cpu")),
    ],
)
def test_clips_are_those_of_the_command(bundle: Bundle, tmp_path: Path, given: dict[str, Any], words: tuple[str, ...]) -> None:
    plain = by_run(bundle, tmp_path / "plain.safetensors", "--prompt", PROMPT)
    wanted = by_run(bundle, tmp_path / "x.safetensors", "--prompt", PROMPT, *words)
    assert (not words or words[0] == "--backend") == (plain.shape == wanted.shape and bool((plain == wanted).all()))  # each option does something
    call = {n: v for n, v in given.items() if n != "backend"}
    with vditc.Sampler(bundle.path, backend=given.get("backend")) as opened_once:
        for _ in range(2):
            np.testing.assert_array_equal(opened_once(PROMPT, **call).latents, wanted)


def test_frames_are_those_of_the_command(bundle: Bundle, tmp_path: Path) -> None:
    run = command("run", str(bundle.path), "--prompt", PROMPT, "--size", "9x16x24", "-o", str(tmp_path / "a.png"))
    assert run.code == 0, run.stderr
    with Image.open(tmp_path / "a.png") as file:
        shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)])
    with vditc.Sampler(bundle) as opened_once:
        found = opened_once(PROMPT, size=(9, None, None))
        np.testing.assert_array_equal(found.frames(), shown)
        assert [len(chunk) for chunk in found.stream()] == [1, 2, 2, 2, 2] and found.fps == 16
        found.save(tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        for name in ("b.mp4", "b.gif", "b.y4m"):
            found.save(tmp_path / name)
            assert (tmp_path / name).stat().st_size


def test_several_clips(bundle: Bundle, pair: Bundle, tmp_path: Path) -> None:
    """Each as alone, whatever comes before it; of two experts each is opened once."""
    for own in (bundle, pair):
        with vditc.Sampler(own) as opened_once:
            both = opened_once([PROMPT, NEGATIVE], seed=3)
            assert both.prompts == (PROMPT, NEGATIVE) and both.seeds == (3, 4) and len(both) == 2
            for i, (prompt, seed) in enumerate(zip(both.prompts, both.seeds, strict=True)):
                np.testing.assert_array_equal(opened_once(prompt, seed=seed).latents[0], both.latents[i])
            again = opened_once(PROMPT, seed=(4, 3))
            np.testing.assert_array_equal(again.latents[1], both.latents[0])
            with pytest.raises(InputError, match="found 2 clips for x.mp4; wanted one"):
                both.save(tmp_path / "x.mp4")
            both.save(tmp_path / "x.mp4", clip=1)
            both.save(tmp_path / "x.safetensors")
            np.testing.assert_array_equal(read_header(tmp_path / "x.safetensors")[0]["latents"].read(), both.latents)


def test_conditionings(bundle: Bundle, tmp_path: Path) -> None:
    """Saved ones, arrays, and these with other seeds, another size or noise of one's own."""
    with vditc.Sampler(bundle) as opened_once:
        wanted = opened_once(PROMPT, negative_prompt=NEGATIVE, seed=3).latents
        given = opened_once.encode(PROMPT, negative_prompt=NEGATIVE, seed=3)
        given.save(file := tmp_path / "c.safetensors")
        for one in (given, file, str(file)):
            np.testing.assert_array_equal(opened_once(conditioning=one).latents, wanted)
        np.testing.assert_array_equal(by_run(bundle, tmp_path / "x.safetensors", "--conditioning", str(file)), wanted)
        other = opened_once(conditioning=dataclasses.replace(given, seeds=(8,)))
        np.testing.assert_array_equal(other.latents, opened_once(conditioning=given, seed=8).latents)
        np.testing.assert_array_equal(other.latents, by_run(bundle, tmp_path / "x.safetensors", "--conditioning", str(file), "--seed", "8"))
        assert (other.latents != wanted).any()
        assert opened_once(conditioning=given, size=(7, None, None)).latents.shape == (1, 4, 4, 4, 6)
        np.testing.assert_array_equal(opened_once(PROMPT, negative_prompt=NEGATIVE, noise=given.noise(0)).latents, wanted)


class Opened:
    """Counts what is opened, and what is open at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.now: list[str] = []
        self.most = 0
        self._watch(monkeypatch, denoisers, "open_expert", lambda own, *_: own.manifest.model["part"])
        self._watch(monkeypatch, opened, "_open", lambda folder, graph, *_: f"{folder.name}/{graph}")

    def _watch(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, title: Callable[..., str]) -> None:
        real = getattr(module, name)

        @contextlib.contextmanager
        def watched(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with real(*args, **kwargs) as found:
                self.names.append(own := title(*args))
                self.now.append(own)
                self.most = max(self.most, len(self.now))
                try:
                    yield found
                finally:
                    self.now.remove(own)

        monkeypatch.setattr(module, name, watched)


PARTS = ["transformer", "text_encoder/model", "vae/first1", "vae/next"]


def test_what_is_open_stays_open(bundle: Bundle, pair: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tokenizers = Opened(monkeypatch), []
    real = opened.PromptTokens
    monkeypatch.setattr(opened, "PromptTokens", lambda folder: tokenizers.append(folder) or real(folder))
    with vditc.Sampler(bundle) as opened_once:
        assert seen.names == ["transformer"]  # what is wrong with an engine is said before the first call
        for seed in range(3):
            opened_once(PROMPT, seed=seed).frames()
        assert seen.names == PARTS and seen.now == PARTS and len(tokenizers) == 1
    assert seen.now == []
    seen.names.clear()
    with vditc.Sampler(pair) as opened_once:
        for _ in range(2):
            opened_once([PROMPT, NEGATIVE])
            assert seen.now == ["text_encoder/model", SECOND]  # one expert at a time
    assert [n for n in seen.names if n.startswith("tr")] == ["transformer", SECOND] * 2 and seen.now == []


def test_one_part_at_a_time(bundle: Bundle, pair: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without `keep_open`, and so for the command."""
    seen = Opened(monkeypatch)
    with vditc.Sampler(bundle, keep_open=False) as opened_once:
        assert seen.names == []
        opened_once(PROMPT).frames()
    wanted = ["text_encoder/model", "transformer", "vae/first1", "vae/next"]
    assert seen.names == wanted and seen.most == 1 and seen.now == []
    seen.names.clear()
    assert command("run", str(pair.path), "--prompt", PROMPT, "-o", str(tmp_path / "a.mp4")).code == 0
    assert seen.names == [wanted[0], "transformer", SECOND, *wanted[2:]] and seen.most == 1 and seen.now == []


def test_two_experts_walk_their_steps(pair: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int, int]] = []
    real = denoisers.open_expert

    @contextlib.contextmanager
    def noted(own: Bundle, *args: Any) -> Iterator[Any]:
        with real(own, *args) as denoise:
            yield lambda feeds, step: ran.append((own.manifest.model["part"], step, len(feeds["hidden_states"]))) or denoise(feeds, step)

    monkeypatch.setattr(denoisers, "open_expert", noted)
    steps: list[tuple[int, int]] = []
    with vditc.Sampler(pair) as opened_once:
        opened_once([PROMPT, NEGATIVE], guidance_2=1.0, on_step=lambda s: steps.append((s.clip, s.index)))
    first = [("transformer", step, 2) for step in range(FIRST)]
    assert ran == first * 2 + [(SECOND, step, 1) for step in range(STEPS - FIRST)] * 2
    assert steps == [(c, s) for part in (range(FIRST), range(FIRST, STEPS)) for c in (0, 1) for s in part]


def test_every_step_is_told(bundle: Bundle) -> None:
    told: list[Step] = []
    shown: list[np.ndarray] = []

    def watch(step: Step) -> None:
        told.append(step)
        shown.append(step.latents.copy())

    with vditc.Sampler(bundle) as opened_once:
        found = opened_once(PROMPT, on_step=watch)
    times = bundle.manifest.sampling["schedule"]["timesteps"]
    assert [(s.clip, s.clips, s.index, s.steps, s.timestep) for s in told] == [(0, 1, i, STEPS, t) for i, t in enumerate(times)]
    np.testing.assert_array_equal(shown[-1], found.latents)
    assert all(one.shape == (1, *LATENTS) for one in shown) and (shown[0] != shown[1]).any()


@pytest.mark.parametrize("own", ["bundle", "pair"])
@pytest.mark.parametrize("no", [False, np.bool_(False), 0])
def test_a_call_can_be_cancelled(own: str, no: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    which, seen, steps = request.getfixturevalue(own), Opened(monkeypatch), list[int]()
    with vditc.Sampler(which) as opened_once:
        wanted = opened_once(PROMPT).latents
        names = list(seen.names)
        with pytest.raises(CancelledError, match="found a call that on_step ended after step 2 of 4 of clip 1"):
            opened_once(PROMPT, on_step=lambda s: steps.append(s.index) or (no if s.index == 1 else None))
        assert steps == [0, 1]
        np.testing.assert_array_equal(opened_once(PROMPT).latents, wanted)
        if own == "bundle":
            assert seen.names == names  # nothing was opened again


def test_a_call_that_failed_leaves_a_sampler_that_works(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in flight then is thrown away with the engine."""
    seen = Opened(monkeypatch)

    def fail(_: Step) -> None:
        raise KeyboardInterrupt

    with vditc.Sampler(bundle) as opened_once:
        wanted = opened_once(PROMPT).latents
        with pytest.raises(KeyboardInterrupt):
            opened_once(PROMPT, on_step=fail)
        assert seen.now == ["text_encoder/model"]
        np.testing.assert_array_equal(opened_once(PROMPT).latents, wanted)
        assert seen.names.count("transformer") == 2


def test_the_step_cache_says_what_it_left_out(bundle: Bundle) -> None:
    with vditc.Sampler(bundle) as opened_once:
        found = opened_once(PROMPT, step_cache="30%")
        assert (found.skipped, found.asked) == (STEPS - 2, STEPS)
        plain = opened_once(PROMPT)
        assert (plain.skipped, plain.asked) == (0, 0) and (plain.latents != found.latents).any()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "found both or neither; wanted prompt or conditioning"),
    "no prompt": ({"prompt": []}, "found no prompt; wanted at least one"),
    "seeds": ({"prompt": [PROMPT] * 2, "seed": [1, 2, 3]}, "found 3 seeds for 2 clips; wanted one a clip"),
    "noise": ({"prompt": PROMPT, "noise": np.zeros((1, 4, 3, 4, 4), np.float32)}, r"found noise \[1, 4, 3, 4, 4\]; wanted finite numbers, \[1, 4, 3"),
    "size": ({"prompt": PROMPT, "size": (6, None, None)}, "found frames 6 frames; wanted .*, nearest 5 or 7"),
    "height": ({"prompt": PROMPT, "size": (5, 20, 24)}, "found height 20 pixels; wanted a multiple of 8 pixels"),
    "two sizes": ({"prompt": PROMPT, "size": (5, 16)}, "wanted FRAMESxHEIGHTxWIDTH in frames and pixels, or one of small"),
    "words": ({"prompt": PROMPT, "size": "large"}, "found --size large; wanted FRAMESxHEIGHTxWIDTH"),
    "solver": ({"prompt": PROMPT, "solver": "DDIMScheduler"}, "found DDIMScheduler over the noise levels of UniPC"),
    "guidance": ({"prompt": PROMPT, "guidance_2": 2.0}, "found --guidance-2; wanted a bundle of two experts"),
    "embedded": ({"prompt": PROMPT, "embedded_guidance": 6.0}, "found --embedded-guidance 6; wanted a model with an input"),
    "cache": ({"prompt": PROMPT, "step_cache": "lots"}, "found --step-cache lots"),
    "cached steps": ({"prompt": PROMPT, "step_cache": 0.1, "steps": 3}, "found --step-cache on 3 steps of another schedule"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(bundle: Bundle, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, words = BAD[case]
    with vditc.Sampler(bundle, keep_open=False) as opened_once:
        seen = Opened(monkeypatch)
        with pytest.raises(InputError, match=words):
            opened_once(**given)
        assert "transformer" not in seen.names  # before any work
        opened_once(PROMPT)


def test_sizes_that_an_engine_was_not_built_for(bundle: Bundle, pair: Bundle) -> None:
    for own in (bundle, pair):
        with vditc.Sampler(own, backend="cpu") as opened_once:
            assert opened_once(PROMPT, size=(3, None, None)).latents.shape == (1, 4, 2, 4, 6)
            with pytest.raises(InputError, match="found frames of 7 frames; wanted 3 to 5 frames, which the engine serves"):
                opened_once(PROMPT, size=(7, None, None))
            given = opened_once.encode(PROMPT)
            with pytest.raises(InputError, match="found frames of 7 frames; wanted 3 to 5 frames"):
                opened_once(conditioning=dataclasses.replace(given, latent_shape=(4, 4, 4, 6)))


def test_a_size_that_the_graph_has_fixed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with vditc.Sampler(bundle) as opened_once:
        axes = {n: a for n, a in opened_once._sizes.axes.items() if n != "height"}
        monkeypatch.setattr(opened_once, "_sizes", dataclasses.replace(opened_once._sizes, axes=axes))
        for size in ("7x16x24", (7, 16, 24)):
            with pytest.raises(InputError, match="wanted the clip's own height, which the graph has fixed"):
                opened_once(PROMPT, size=size)
        assert opened_once(PROMPT, size=(7, None, 24)).latents.shape == (1, 4, 4, 4, 6)


def test_conditionings_that_do_not_fit(bundle: Bundle, tmp_path: Path) -> None:
    with vditc.Sampler(bundle) as opened_once:
        given = opened_once.encode(PROMPT)
        with pytest.raises(InputError, match="found --negative-prompt with --conditioning"):
            opened_once(conditioning=given, negative_prompt=NEGATIVE)
        with pytest.raises(InputError, match="found both or neither"):
            opened_once(PROMPT, conditioning=given)
        strange = dataclasses.replace(given, inputs={**given.inputs, "strange": np.zeros((1, 2))})
        with pytest.raises(InputError, match="found inputs strange; wanted only encoder_hidden_states, timestep"):
            opened_once(conditioning=strange)
        Conditioning(prompts=("x",), seeds=(1,), latent_shape=LATENTS, inputs={}, empty={}).save(file := tmp_path / "c.safetensors")
        with pytest.raises(InputError, match="found no encoder_hidden_states"):
            opened_once(conditioning=file)


def test_what_does_not_open(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="found --backend rtx; wanted onnxruntime, cpu"):
        vditc.Sampler(bundle.path, backend="rtx")
    assert command("run", str(bundle.path), "--prompt", PROMPT, "--backend", "rtx", "-o", str(tmp_path / "x.mp4")).code == 2
    with pytest.raises(InputError, match="found a budget for weights"):
        vditc.Sampler(bundle.path, weight_budget="1GiB")
    with pytest.raises(InputError, match=r"weight_budget: found '4 lots'"):
        vditc.Sampler(bundle.path, weight_budget="4 lots")
    monkeypatch.setattr(denoisers, "compute_capability", lambda: "sm_90")
    with pytest.raises(InputError, match="wanted an engine for this machine's sm_90"):
        vditc.Sampler(bundle.path)
    broken = shutil.copytree(bundle.path, tmp_path / "broken.bundle")
    data = bytearray((broken / "model.onnx").read_bytes())
    data[-1] ^= 1
    (broken / "model.onnx").write_bytes(data)
    with pytest.raises(InputError, match=r"found model\.onnx with sha256"):
        vditc.Sampler(broken, backend="onnxruntime")
    vditc.Sampler(broken, backend="onnxruntime", sha256=False).close()
    (broken / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"found no file model\.onnx"):
        vditc.Sampler(broken, backend="onnxruntime", sha256=False)


def test_an_engine_without_its_plugin_library(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle names a library that it does not list: said before the first call, by name."""
    about = {"library": "plugins/linux-x86_64/libvditc_plugins.so", "operators": ["vditc.QLinear"], "version": "1", "namespace": "vditc"}
    targets = {"a100": {**bundle.manifest.targets["cpu"], "backend": "tensorrt", "plugins": about}}
    with pytest.raises(InputError, match=r"found no plugins/linux-x86_64/libvditc_plugins\.so in the manifest"):
        vditc.Sampler(Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets=targets)), backend="a100")


def test_nobody_samples_with_what_is_closed_or_at_work(bundle: Bundle) -> None:
    with vditc.Sampler(bundle) as opened_once:
        with pytest.raises(VditcError, match="found a sampler that is at work"):
            opened_once(PROMPT, on_step=lambda _: opened_once(PROMPT))
        found = opened_once(PROMPT)
    for call in (lambda: opened_once(PROMPT), lambda: opened_once.encode(PROMPT), found.frames):
        with pytest.raises(VditcError, match="found a sampler that was closed; wanted an open one"):
            call()
    opened_once.close()


def test_latents_that_nobody_decodes(bundle: Bundle, tmp_path: Path) -> None:
    with vditc.Sampler(bundle) as opened_once:
        decoder = opened_once._parts.decoder
        assert decoder is not None
        decoder.plan = dataclasses.replace(decoder.plan, chunk=2)
        found = opened_once(PROMPT)
        with pytest.raises(InputError, match="found a clip whose first chunk has 3 latent frames; wanted one of 1"):
            found.frames()
    no_parts = shutil.copytree(bundle.path, tmp_path / "x.bundle")
    shutil.rmtree(no_parts / "components")
    with Sampler(Bundle(no_parts, bundle.manifest)) as opened_once:
        with pytest.raises(InputError, match="found a text encoder that vditc does not run"):
            opened_once(PROMPT)
        text = {"encoder_hidden_states": np.zeros((1, 5, 8), np.float32)}
        found = opened_once(conditioning=Conditioning(prompts=("x",), seeds=(1,), latent_shape=LATENTS, inputs=text, empty=text))
        for use in (found.frames, lambda: found.save(tmp_path / "x.mp4")):
            with pytest.raises(InputError, match="found no codec that vditc runs"):
                use()
        with pytest.raises(InputError, match=r"found -o .*x\.avi; wanted \.mp4, .* or \.safetensors"):
            found.save(tmp_path / "x.avi")
        found.save(tmp_path / "x.safetensors")


def test_no_library_but_numpy_and_the_backends(bundle: Bundle) -> None:
    """And `import vditc` loads nothing of the pipeline."""
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
import vditc
assert "vditc.pipeline" not in sys.modules and "numpy" not in sys.modules
with vditc.Sampler({str(bundle.path)!r}) as sampler:
    assert sampler({PROMPT!r}).frames().shape == (5, 16, 24, 3)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    with pytest.raises(AttributeError, match="has no attribute 'Samplers'"):
        vditc.Samplers  # noqa: B018


def test_the_guides_snippets_run(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = GUIDE.read_text().partition("## Without PyTorch")[2]
    snippets = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(snippets) >= 4
    shutil.copytree(bundle.path, tmp_path / "wan.bundle")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, str(GUIDE), "exec"), names)
    assert {"ball.mp4", "prompts.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    # Every argument of a call is in the table, and every name in the table is an argument.
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    wanted = {n for n in sampler.Sampler.__call__.__annotations__ if n != "return"} | {
        n for n in sampler.Sampler.__init__.__annotations__ if n not in ("return", "bundle")
    }
    assert named == wanted
