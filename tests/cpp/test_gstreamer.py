"""The example that plays clips through GStreamer: what comes out of a pipeline is what Python decodes, and what stops it is said."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import cpp_decoder
import numpy as np
import pytest
from cpp_build import SOURCES, built, missing, run
from cpp_bundle import LATENTS, SPECS, STEPS, Null, clips, save_bundle
from cpp_decoder import decoded

from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.pipeline.schedules import WalkOptions, bundle_scheduler
from vditc.sampling import sample

EXAMPLE = SOURCES / "examples" / "gstreamer_appsrc"
SIZE = (3, 4, 5)  # latent frames, height, width: rows of 30 bytes, which GStreamer pads to 32
PLAN = cpp_decoder.chunked()
TOTAL = 9  # frames of a clip


def absent() -> str | None:
    """Why nothing can be built here; None if it can."""
    if (why := missing()) is not None:
        return why
    asked = ["pkg-config", "--exists", "gstreamer-app-1.0", "gstreamer-video-1.0"]
    if shutil.which("pkg-config") is None or subprocess.run(asked, check=False).returncode != 0:
        return "no gstreamer-app-1.0: apt install libgstreamer-plugins-base1.0-dev"
    return None


pytestmark = pytest.mark.skipif(absent() is not None, reason=absent() or "")


@dataclasses.dataclass
class Place:
    """A bundle, a conditioning and the program."""

    program: Path
    bundle: Path
    told: Path

    def command(self, *words: str) -> list[str]:
        return [str(self.program), str(self.bundle), str(self.told), "--backend", "null", *words]

    def play(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=60)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    work = tmp_path_factory.mktemp("gstreamer")
    prefix = f"-DCMAKE_PREFIX_PATH={built() / 'installed'}"
    made = run("cmake", "-G", "Ninja", "-S", EXAMPLE, "-B", work / "build", prefix, "-DCMAKE_CXX_FLAGS=-Werror")
    assert "is not built" not in made
    run("cmake", "--build", work / "build", "--parallel", "2")
    clips(latent_shape=(LATENTS[0], *SIZE)).save(work / "told.safetensors")
    return Place(work / "build" / "gstreamer_appsrc", save_bundle(work / "b", decoder=PLAN), work / "told.safetensors")


def wanted(place: Place, steps: int | None = None, **changes: Any) -> np.ndarray:
    """Frames of all clips, by Python's loop and decoder."""
    bundle, told = Bundle.open(place.bundle), dataclasses.replace(Conditioning.load(place.told), **changes)
    found = []
    for clip in range(len(told)):
        walk = bundle_scheduler(bundle, "rtx-ada", SIZE, WalkOptions(steps=steps))
        latents = sample(Null(), walk, told.clips([clip], SPECS), bundle.manifest.sampling["guidance_scale"])
        found += decoded(PLAN, latents[0])
    return np.concatenate(found)


def raw(path: Path, width: int = 10) -> np.ndarray:
    """Frames of a file of raw RGB, whose rows are padded to four bytes."""
    stride = -(-3 * width // 4) * 4
    rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 8, stride)
    assert not rows[..., 3 * width :].any()
    return rows[..., : 3 * width].reshape(-1, 8, width, 3)


@pytest.mark.parametrize(("words", "said"), [((), {}), (("--steps", "3", "--seed", "11"), {"steps": 3, "seeds": (11, 12)})])
def test_frames_are_pythons(place: Place, tmp_path: Path, words: tuple[str, ...], said: dict[str, Any]) -> None:
    out = tmp_path / "frames.rgb"
    done = place.play(*words, f"appsrc name=source ! filesink location={out}")
    assert (done.returncode, done.stdout) == (0, f"{2 * TOTAL} frames of 10 x 8, 16 a second\n"), done.stderr
    frames = raw(out)
    np.testing.assert_array_equal(frames, wanted(place, **said))
    assert frames.std() > 1  # pictures of something
    steps = said.get("steps", STEPS)
    told = [f"clip {clip}/2, step {step}/{steps}" for clip in (1, 2) for step in range(1, steps + 1)]
    assert done.stderr.splitlines() == [*told, *(f"clip {clip}/2, frame {frame}/{TOTAL}" for clip in (1, 2) for frame in (1, 5, 9))]


def test_a_pipeline_in_several_words(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "frames.rgb"
    if shutil.which("gst-inspect-1.0") and subprocess.run(["gst-inspect-1.0", "videoconvert"], capture_output=True, check=False).returncode:
        pytest.skip("no videoconvert: apt install gstreamer1.0-plugins-base")
    words = f"appsrc name=source ! videoconvert ! video/x-raw,format=BGR ! filesink location={out}".split()
    assert place.play(*words).returncode == 0
    np.testing.assert_array_equal(raw(out)[..., ::-1], wanted(place))


def test_the_decoder_waits_for_the_pipeline(place: Place) -> None:
    """A sink of 16 frames a second holds up who makes them: at most those that may wait are ahead of it."""
    playing = place.begin("appsrc name=source ! fakesink sync=true")
    assert playing.stderr is not None
    lines = []
    for line in playing.stderr:
        lines.append((line.strip(), time.monotonic()))
    assert playing.wait(timeout=60) == 0
    at = dict(lines)
    # 18 frames take 17/16 s to show; the last chunk of 4 is pushed no earlier than when 4 of it and what it waits behind have room.
    assert at[f"clip 2/2, frame {TOTAL}/{TOTAL}"] - at[f"clip 1/2, frame 1/{TOTAL}"] > (2 * TOTAL - 1 - 6) / 16


@pytest.mark.parametrize("when", ["frame", "step"])
def test_an_interrupt_ends_it(place: Place, when: str) -> None:
    """Also while it waits for a pipeline that takes nothing."""
    words = () if when == "frame" else ("--steps", "100000")
    playing = place.begin(*words, "appsrc name=source ! fakesink sync=true ts-offset=100000000000")
    assert playing.stderr is not None
    for line in playing.stderr:
        if f", {when} 1/" in line:
            break
    time.sleep(0.3)
    began = time.monotonic()
    playing.send_signal(signal.SIGINT)
    _, rest = playing.communicate(timeout=60)
    assert playing.returncode == 130 and rest.endswith("gstreamer_appsrc: stopped\n"), rest
    assert time.monotonic() - began < 5


def test_a_pipeline_that_fails(place: Place, tmp_path: Path) -> None:
    done = place.play(f"appsrc name=source ! filesink location={tmp_path}/no/frames.rgb")
    assert done.returncode == 1 and "gstreamer_appsrc: pipeline: filesink0: Could not open file" in done.stderr
    assert "step" not in done.stderr  # before any work
    done = place.play("appsrc name=source ! video/x-raw,format=I420 ! fakesink")  # takes no RGB
    assert done.returncode == 1 and "gstreamer_appsrc: pipeline: source: Internal data stream error" in done.stderr
    done = place.play("appsrc name=source ! identity eos-after=3 ! fakesink")
    assert done.returncode == 1 and "pipeline: it ended before the last frame" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("appsrc name=source ! nosink",),
            'found pipeline `appsrc name=source ! nosink`: no element "nosink"; wanted what gst-launch-1.0 takes',
        ),
        (("appsrc ! fakesink",), "wanted an element `appsrc name=source` in it"),
        (("fakesink",), "found pipeline `fakesink`, one element"),
        (("--steps", "0"), "found --steps 0; wanted a whole number, 1 to 100000"),
        (("--loud",), "found option --loud; wanted one of these"),
        (("--seed",), "found --seed; wanted a value behind it"),
    ],
)
def test_bad_words(place: Place, words: tuple[str, ...], message: str) -> None:
    done = place.play(*words)
    assert done.returncode == 2 and message in done.stderr and "usage: gstreamer_appsrc BUNDLE" in done.stderr


def test_what_the_library_says(place: Place, tmp_path: Path) -> None:
    bare = dataclasses.replace(place, bundle=save_bundle(tmp_path / "b"))
    done = bare.play("appsrc name=source ! fakesink")
    assert done.returncode == 1 and "found no decoder that vditc runs" in done.stderr


def test_without_gstreamer_nothing_is_built(tmp_path: Path) -> None:
    """One line says so."""
    said = run("cmake", "-G", "Ninja", "-S", EXAMPLE, "-B", tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_PkgConfig=ON")
    assert [line for line in said.splitlines() if "gstreamer_appsrc" in line] == [
        "-- gstreamer_appsrc is not built: no gstreamer-app-1.0, which is in libgstreamer-plugins-base1.0-dev"
    ]
    run("cmake", "--build", tmp_path)
