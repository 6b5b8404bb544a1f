"""`vditc.Sampler`: the clips of `vditc run`, from what stays open."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import vditc as command
from opened_parts import Opened
from PIL import Image, ImageSequence
from tiny_bundle import FIRST, LATENTS, NEGATIVE, PROMPT, SECOND, STEPS, save_tiny_bundle

import vditc
from vditc.bundle import Bundle
from vditc.errors import CancelledError, InputError
from vditc.pipeline import denoisers, sampler
from vditc.pipeline.samples import Step
from vditc.safetensors_file import read_header

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
BLOCKED = ("torch", "diffusers", "transformers", "typer", "rich")


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
    assert (not words or words[0] == "--backend") == (
        plain.shape == wanted.shape and bool((plain == wanted).all())
    )  # each option does something
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
        frames = found.frames()
        apart = [i for i in range(9) if i == 0 or (frames[i] != frames[i - 1]).any()]  # Pillow writes equal frames once
        assert frames.shape == (9, 16, 24, 3) and len(apart) == 5
        np.testing.assert_array_equal(frames[apart], shown)
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
            with pytest.raises(InputError, match=r"found 2 clips for x\.mp4; wanted one"):
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


PARTS = ["transformer", "text_encoder/model", "vae/first1", "vae/next"]


def test_what_is_open_stays_open(bundle: Bundle, pair: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Opened(monkeypatch)
    with vditc.Sampler(bundle) as opened_once:
        assert seen.names == ["transformer"]  # what is wrong with an engine is said before the first call
        for seed in range(3):
            opened_once(PROMPT, seed=seed).frames()
        assert seen.names == PARTS and seen.now == PARTS and seen.tokenizers == 1
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

            def run(feeds: Any, step: int) -> Any:
                ran.append((own.manifest.model["part"], step, len(feeds["hidden_states"])))
                return denoise(feeds, step)

            yield run

    monkeypatch.setattr(denoisers, "open_expert", noted)
    steps: list[tuple[int, int]] = []
    with vditc.Sampler(pair) as opened_once:
        opened_once(PROMPT, passes="two")
        assert ran == [(part, s, 1) for part, own in (("transformer", FIRST), (SECOND, STEPS - FIRST)) for s in range(own) for _ in (0, 1)]
        ran.clear()
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

        def watch(step: Step) -> Any:
            steps.append(step.index)
            return no if step.index == 1 else None

        with pytest.raises(CancelledError, match="found a call that on_step ended after step 2 of 4 of clip 1"):
            opened_once(PROMPT, on_step=watch)
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
