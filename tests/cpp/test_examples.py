"""The examples of libvditc, built and run by the commands of docs/cpp.md, against the install tree; and the code of that page."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from ctypes import c_int64, c_uint64
from pathlib import Path
from typing import Any

import cpp_bundle
import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import pytest
from cpp_build import SOURCES, built, missing, page_blocks, run
from cpp_library import Library
from cpp_texts import TEXT, encode, save_texts
from cpp_tokenizers import SHAPES
from PIL import Image

from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.safetensors_file import read_header

ROOT = SOURCES.parents[1]
DATA = SOURCES / "tests" / "data"
GIVEN = ("wan.bundle", "conditioning.safetensors")
pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def place(work: Path) -> None:
    """A bundle and a conditioning under the names of the page."""
    shutil.copytree(DATA / "bundle", work / GIVEN[0])
    shutil.copy(DATA / GIVEN[1], work)
    cpp_bundle.save_bundle(work / "latents.bundle")
    (work / "taken-2.y4m").write_text("a clip")
    (work / "taken-2").mkdir()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the library installed, after the commands of the page."""
    work = tmp_path_factory.mktemp("examples")
    place(work)
    (work / "runtimes").symlink_to(ROOT / "runtimes")
    (work / "build" / "cpp" / "x86_64").mkdir(parents=True)
    (work / "build" / "cpp" / "x86_64" / "installed").symlink_to(built() / "installed")
    making, examples = page_blocks("sh")
    assert all(line.startswith("make cpp") for line in making.splitlines())  # test_the_library_is_made_as_the_page_says
    run("sh", "-e", "-c", examples, cwd=work, env={"CMAKE_GENERATOR": "Ninja"})
    return work


def host(work: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([work / "build" / name / name, *words], cwd=work, capture_output=True, text=True, check=False, timeout=60)


def latents(path: Path) -> Any:
    entries, _ = read_header(path)
    assert list(entries) == ["latents"]
    return entries["latents"].read()


def wanted(work: Path, given: Conditioning | None = None, **changes: Any) -> Any:
    """What the library samples through ctypes."""
    library, steps = Library(), changes.pop("steps", 0)
    file = work / "wanted.safetensors"
    given = dataclasses.replace(given or Conditioning.load(work / GIVEN[1]), **changes)
    given.save(file)
    handle = library.made("conditioning_open", str(file).encode())
    with library.bundle(work / GIVEN[0]) as bundle, library.session(bundle, steps=steps) as session:
        made = library.sample(session, handle, given.latent_shape)
    library("conditioning_destroy", handle)
    return made


def test_the_commands_of_the_page_have_sampled(work: Path) -> None:
    np.testing.assert_array_equal(latents(work / "latents.safetensors"), wanted(work, seeds=(3, 4), steps=12))
    assert [y4m(work / f"clip-{i}.y4m")[1].shape for i in (1, 2)] == [(9, 3, 32, 48)] * 2
    assert [len(list((work / f"frames-{i}").glob("*.png"))) for i in (1, 2)] == [9, 9]


HOSTS = ("c_host", "cpp_host")


@pytest.mark.parametrize("name", HOSTS)
def test_latents(work: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "x.safetensors"
    done = host(work, name, *GIVEN, "-o", str(out), "--backend", "null")
    assert (done.returncode, done.stdout) == (0, f"{out}: latents 2 x 4 x 3 x 4 x 6\n"), done.stderr
    told = [f"clip {clip}/2, step {step}/6" for clip in (1, 2) for step in range(1, 7)]
    assert done.stderr.splitlines() == told
    np.testing.assert_array_equal(latents(out), wanted(work))
    refused = host(work, name, *GIVEN, "-o", str(out), "--backend", "null", "--seed", "11")
    assert refused.returncode == 2 and "wanted a new file, or --force" in refused.stderr
    done = host(work, name, "--seed", "11", "--force", "--out", str(out), *GIVEN, "--backend", "null", "--steps", "9")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(latents(out), wanted(work, seeds=(11, 12), steps=9))
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_lists_tell_what_is_in_the_bundle(work: Path) -> None:
    """The same from both, and all that the manifest has."""
    told = [host(work, name, GIVEN[0], "--list") for name in HOSTS]
    assert told[0].stdout == told[1].stdout and [run.returncode for run in told] == [0, 0]
    lines = told[0].stdout.splitlines()
    manifest = Bundle.open(work / GIVEN[0]).manifest
    assert lines[0] == "model    WanTransformer3DModel, recipe w8a8, 8.12 bits a weight, by vditc 0.1.0"
    assert lines[1] == "sampling 6 steps, guidance 3, latents 4 x 3 x 4 x 6, experts 1"
    assert lines[2] == "video    16 frames a second, with a decoder"
    assert "video    16 frames a second, without a decoder" in host(work, "c_host", "latents.bundle", "--list").stdout
    assert lines[3:] == [
        *(f"input    {spec['name']} [{', '.join(map(str, spec['dims']))}]" for spec in manifest.inputs),
        "target   rtx-ada: tensorrt_rtx 1.7.1.116, sm_89,sm_120, built",
        *(f"file     {name}, {entry.bytes} bytes" for name, entry in manifest.files.items()),
    ]


def pixels(work: Path, latents: Any) -> Any:
    """What the library decodes through ctypes: uint8 [frames, height, width, 3] of every clip."""
    library = Library()
    with library.bundle(work / GIVEN[0]) as bundle, library.session(bundle) as session:
        return [np.concatenate(library.decode(session, clip)) for clip in latents]


def y4m(path: Path) -> tuple[str, Any]:
    """The header, and planes uint8 [frames, 3, height, width]."""
    header, data = path.read_bytes().split(b"\n", 1)
    size = {word[:1]: word[1:] for word in header.decode().split()[1:4]}
    frames = data.split(b"FRAME\n")[1:] if b"FRAME" not in data.replace(b"FRAME\n", b"") else []
    return header.decode(), np.stack([np.frombuffer(f, np.uint8) for f in frames]).reshape(-1, 3, int(size["H"]), int(size["W"]))


def bt601(rgb: Any) -> Any:
    """Y'CbCr of ITU-R BT.601 in limited range, [frames, 3, height, width], before it is rounded."""
    r, g, b = np.moveaxis(rgb.astype(np.float64) / 255, -1, 0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return np.stack([16 + 219 * luma, 128 + 112 * (b - luma) / (1 - 0.114), 128 + 112 * (r - luma) / (1 - 0.299)], 1)


@pytest.mark.parametrize("name", HOSTS)
def test_videos(work: Path, tmp_path: Path, name: str) -> None:
    """y4m by its format and by FFmpeg, one for each clip."""
    out = tmp_path / "clip.y4m"
    done = host(work, name, *GIVEN, "-o", str(out), "--backend", "null")
    files = [tmp_path / f"clip-{i}.y4m" for i in (1, 2)]
    assert (done.returncode, done.stdout) == (0, "".join(f"{f}: 9 frames of 48 x 32, 16 a second\n" for f in files)), done.stderr
    assert done.stderr.splitlines()[-3:] == [f"clip 2/2, frame {n}/9" for n in (1, 5, 9)]
    assert sorted(tmp_path.iterdir()) == files
    for file, clip in zip(files, pixels(work, wanted(work)), strict=True):
        header, planes = y4m(file)
        assert header == "YUV4MPEG2 W48 H32 F16:1 Ip A1:1 C444 XYSCSS=444 XCOLORRANGE=LIMITED"
        assert np.abs(planes - bt601(clip)).max() < 0.5 + 1e-3  # the matrix's published decimals
        read = imageio_ffmpeg.read_frames(str(file))
        assert next(read)["fps"] == 16
        shown = np.stack([np.frombuffer(frame, np.uint8).reshape(32, 48, 3) for frame in read])
        assert shown.shape == clip.shape and np.abs(shown.astype(int) - clip).max() <= 3  # rounded twice, to 220 levels and back
    first = files[0].read_bytes()
    assert host(work, name, *GIVEN, "-o", str(out), "--backend", "null").returncode == 2
    assert host(work, name, *GIVEN, "-o", str(out), "--backend", "null", "--force", "--seed", "5").returncode == 0
    assert files[0].read_bytes() != first and sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("name", HOSTS)
def test_pictures(work: Path, tmp_path: Path, name: str) -> None:
    """Folders of png, whose pixels are the library's; of one clip, without a number."""
    one = cpp_bundle.clips(count=1)
    one.save(tmp_path / "one.safetensors")
    for file, out, folders in ((GIVEN[1], "two/", ("two-1", "two-2")), (str(tmp_path / "one.safetensors"), "one//", ("one",))):
        done = host(work, name, GIVEN[0], file, "-o", f"{tmp_path}/{out}", "--backend", "null")
        assert done.stdout == "".join(f"{tmp_path}/{f}: 9 frames of 48 x 32, 16 a second\n" for f in folders), done.stderr
    clips = pixels(work, [*wanted(work), *wanted(work, one)])
    for folder, clip in zip(("two-1", "two-2", "one"), clips, strict=True):
        files = sorted((tmp_path / folder).iterdir())
        assert [f.name for f in files] == [f"{i:04}.png" for i in range(1, 10)]
        for picture, frame in zip(files, clip, strict=True):
            with Image.open(picture) as image:
                assert image.mode == "RGB"
                np.testing.assert_array_equal(np.asarray(image), frame)
            checked(picture.read_bytes())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "one.safetensors", "two-1", "two-2"]


def checked(png: bytes) -> None:
    """Checksums of all chunks, and of what they hold."""
    at, data = 8, b""
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        assert zlib.crc32(png[at + 4 : at + 8 + size]) == int.from_bytes(png[at + 8 + size : at + 12 + size]), kind
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    assert at == len(png) and kind == b"IEND"
    zlib.decompress(data)


def test_wide_pictures(work: Path, tmp_path: Path) -> None:
    """Rows of more bytes than a stored block of deflate holds."""
    cpp_bundle.clips(count=1, latent_shape=(4, 1, 2, 2800)).save(tmp_path / "wide.safetensors")
    done = host(
        work, "c_host", GIVEN[0], str(tmp_path / "wide.safetensors"), "-o", f"{tmp_path}/wide/", "--backend", "null", "--steps", "1"
    )
    assert done.returncode == 0, done.stderr
    checked((tmp_path / "wide" / "0001.png").read_bytes())
    with Image.open(tmp_path / "wide" / "0001.png") as image:
        assert image.size == (22400, 16) and np.asarray(image).std() > 1


@pytest.mark.parametrize("name", HOSTS)
def test_a_prompt_in_place_of_a_conditioning(work: Path, tmp_path: Path, name: str) -> None:
    root = save_texts(tmp_path / "b", [TEXT], {"tokenizer": SHAPES["umt5"]()})
    told = ("--prompt", "a red kite", "--negative", "dark", "--size", "2x4x6", "--seed", "5")
    done = host(work, name, str(root), *told, "-o", str(tmp_path / "x.safetensors"), "--backend", "null")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'x.safetensors'}: latents 1 x 4 x 2 x 4 x 6\n"), done.stderr
    library, shape = Library(), (4, 2, 4, 6)
    clips = library.made("conditioning_create", (c_int64 * 4)(*shape), (c_uint64 * 1)(5), c_uint64(1))
    with library.bundle(root) as bundle, library.session(bundle) as session:
        encode(library, session, ["a red kite"], ["dark"], clips)
        np.testing.assert_array_equal(latents(tmp_path / "x.safetensors"), library.sample(session, clips, shape))
    library("conditioning_destroy", clips)


OUT = ("-o", "x.safetensors")
WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "nothing": ((), 2, "found no bundle"),
    "no conditioning": ((GIVEN[0], *OUT), 2, "found no conditioning"),
    "no out": (GIVEN, 2, "found no --out"),
    "no value": ((*GIVEN, "-o"), 2, "found -o; wanted a value behind it"),
    "another ending": (
        (*GIVEN, "-o", "x.mp4"),
        2,
        "found --out x.mp4; wanted a name that ends in .safetensors, .y4m, or a folder that ends in /",
    ),
    "no name": ((*GIVEN, "-o", "/"), 2, "found --out /; wanted a name"),
    "a file in the way": ((*GIVEN, "-o", "taken.y4m", "--backend", "null"), 2, "found --out taken.y4m; wanted new files, or --force"),
    "a folder in the way": ((*GIVEN, "-o", "taken/", "--backend", "null", "--force"), 2, "found --out taken/; wanted new files"),
    "no decoder": (("latents.bundle", GIVEN[1], "-o", "x.y4m", "--backend", "null"), 1, "found no decoder that vditc runs"),
    "no folder for videos": ((*GIVEN, "-o", "none/x.y4m", "--backend", "null"), 1, "none/x.y4m"),
    "no folder for folders": ((*GIVEN, "-o", "none/x/", "--backend", "null"), 1, "none/x/"),
    "an unknown option": ((*GIVEN, "--sed", "3"), 2, "found option --sed"),
    "a prompt and a conditioning": ((*GIVEN, *OUT, "--prompt", "a"), 2, "found a conditioning with a prompt; wanted one of them"),
    "a size of two numbers": ((GIVEN[0], *OUT, "--prompt", "a", "--size", "3x4"), 2, "found --size 3x4; wanted frames, height and width"),
    "a size of nothing": ((GIVEN[0], *OUT, "--prompt", "a", "--size", "3x4x0"), 2, "found --size 3x4x0; wanted frames"),
    "a list of a prompt": ((GIVEN[0], "--list", "--prompt", "a"), 2, "found --list with something to sample"),
    "no text encoder": ((GIVEN[0], *OUT, "--prompt", "a", "--backend", "null"), 1, "found no text encoder; wanted a bundle that was"),
    "one argument too many": ((*GIVEN, "more"), 2, "found argument more"),
    "a list of something to sample": ((*GIVEN, "--list"), 2, "found --list with something to sample"),
    "a negative seed": ((*GIVEN, *OUT, "--seed", "-1"), 2, "found --seed -1; wanted a whole number"),
    "a seed above": ((*GIVEN, *OUT, "--seed", "9223372036854775808"), 2, "found --seed 9223372036854775808; wanted"),
    "half a number": ((*GIVEN, *OUT, "--steps", "3x"), 2, "found --steps 3x; wanted a whole number"),
    "no steps": ((*GIVEN, *OUT, "--steps", "0"), 2, "found --steps 0; wanted"),
    "no such bundle": (("none", GIVEN[1], *OUT), 1, "none"),
    "no such conditioning": ((GIVEN[0], "none", *OUT, "--backend", "null"), 1, "none"),
    "no such target": ((*GIVEN, *OUT, "--backend", "orin"), 1, "found backend orin; wanted null, host, rtx-ada"),
    "a target": ((*GIVEN, *OUT, "--backend", "rtx-ada"), 1, "wanted a target of tensorrt: this library was built with"),
    "no backend": ((*GIVEN, *OUT), 1, "found no NVIDIA driver (/none does not load)"),
    "no folder": ((*GIVEN, "-o", "none/x.safetensors", "--backend", "null"), 1, "none/x.safetensors"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(work: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("VDITC_CUDA_DRIVER", "/none")
    words, code, message = WRONG[what]
    for name in HOSTS:
        done = host(work, name, *words)
        assert done.returncode == code and message in done.stderr and f"{name}: " in done.stderr, done.stderr
        assert ("usage: " in done.stderr) == (code == 2)
        assert not list(work.glob("x.*")) and not list(work.glob("*.part")) and (work / "taken-2.y4m").read_text() == "a clip"


@pytest.mark.parametrize("out", ["clip.y4m", "frames/"])
@pytest.mark.parametrize("name", HOSTS)
def test_control_c_while_it_decodes(work: Path, tmp_path: Path, name: str, out: str) -> None:
    """Between the chunks of the second clip: nor does the first one stay."""
    cpp_bundle.clips(latent_shape=(4, 60, 16, 24)).save(tmp_path / "long.safetensors")
    command = [str(work / "build" / name / name), str(work / GIVEN[0]), "long.safetensors", "-o", out, "--backend", "null", "--steps", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        late = threading.Timer(60, job.kill)
        late.start()
        for line in job.stderr:
            if line.startswith("clip 2/2, frame "):
                break
        assert len(list(tmp_path.glob("*.part"))) == 2
        job.send_signal(signal.SIGINT)
        told = job.stderr.read()
        late.cancel()
    assert job.returncode == 130 and told.endswith(f"\n{name}: stopped, nothing was written\n")
    assert [p.name for p in tmp_path.iterdir()] == ["long.safetensors"]


@pytest.mark.parametrize("name", HOSTS)
def test_control_c_leaves_nothing(work: Path, tmp_path: Path, name: str) -> None:
    """Between the steps of a clip that would take minutes."""
    shape = (4, 3, 256, 256)
    cpp_bundle.clips(count=1, latent_shape=shape).save(tmp_path / "large.safetensors")
    command = [str(work / "build" / name / name), str(work / GIVEN[0]), "large.safetensors", *OUT, "--backend", "null", "--steps", "50000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        assert job.stderr.readline() == "clip 1/1, step 1/50000\n"
        job.send_signal(signal.SIGINT)
        late = threading.Timer(30, job.kill)  # one that goes on fails, and does not stay
        late.start()
        told = job.stderr.read()
        late.cancel()
    assert job.returncode == 130 and told.endswith(f"\n{name}: stopped, nothing was written\n")
    assert [p.name for p in tmp_path.iterdir()] == ["large.safetensors"]


def test_the_code_of_the_page_runs(work: Path) -> None:
    """To its end: what it made is asked for behind it."""
    (code,) = page_blocks("cpp")
    include, body = code.split("\n\n", 1)
    (work / "page.cpp").write_text(f'{include}\nint main() {{\n{body}  std::printf("%zu", latents.size());\n}}\n')
    prefix = built() / "installed"
    library = next(prefix.glob("lib*/**/libvditc.so")).parent
    compiler = os.environ.get("CXX", "g++")
    run(
        compiler,
        "-std=c++17",
        f"-I{prefix / 'include'}",
        "page.cpp",
        f"-L{library}",
        "-lvditc",
        f"-Wl,-rpath,{library}",
        "-o",
        "page",
        cwd=work,
    )
    assert run(work / "page", cwd=work) == str(2 * 4 * 3 * 4 * 6)


@pytest.mark.slow
def test_the_library_is_made_as_the_page_says(tmp_path: Path) -> None:
    """`make cpp` in a checkout of its own, whose virtual environment is this one's; then the examples against that."""
    place(tmp_path)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(SOURCES, tmp_path / "runtimes" / "cpp")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".venv" / ".installed").touch()
    making, examples = page_blocks("sh")
    said = run("sh", "-e", "-c", making.splitlines()[0], cwd=tmp_path, seconds=1200)
    assert "100% tests passed" in said
    run("sh", "-e", "-c", examples, cwd=tmp_path, env={"CMAKE_GENERATOR": "Ninja"})
    np.testing.assert_array_equal(latents(tmp_path / "latents.safetensors"), wanted(tmp_path, seeds=(3, 4), steps=12))


@pytest.mark.slow
def test_the_benchmark_counts_no_allocations() -> None:
    """Its rows as README of the measurements tells them, of whatever build."""
    command = [sys.executable, "benchmarks/runtime.py", "--runs", "1", "--case", "c-loop", "--case", "c-sampler-flow", "--case", "c-size"]
    rows = [json.loads(line) for line in run(*command, cwd=ROOT, env={"VDITC_CPP_LIBRARY": str(built())}).splitlines()]
    assert [row["case"] for row in rows] == ["c-loop", "c-sampler-flow", "c-size"]
    assert [row["allocations_after_the_first_step"] for row in rows[:2]] == [0, 0] and rows[0]["steps"] == 999
    assert rows[2]["bytes"] < 3 * 2**20


@pytest.mark.slow
def test_the_static_library_is_linked_from_c(tmp_path: Path) -> None:
    """By the linker of C++: a project without that language is told so."""
    prefix = built("-DBUILD_SHARED_LIBS=OFF", "-DVDITC_TESTS=OFF") / "installed"
    shutil.copytree(SOURCES / "examples", tmp_path / "examples")
    configure = ["cmake", "-G", "Ninja", "-S", str(tmp_path / "examples" / "c_host"), f"-DCMAKE_PREFIX_PATH={prefix}"]
    run(*configure, "-B", tmp_path / "out")
    run("cmake", "--build", tmp_path / "out")
    assert "WanTransformer3DModel" in run(tmp_path / "out" / "c_host", DATA / "bundle", "--list")
    lists = tmp_path / "examples" / "c_host" / "CMakeLists.txt"
    lists.write_text(lists.read_text().replace("LANGUAGES C CXX", "LANGUAGES C"))
    job = subprocess.run([*configure, "-B", str(tmp_path / "c")], capture_output=True, text=True, check=False)
    assert job.returncode != 0 and "wanted project(... LANGUAGES C CXX)" in " ".join(job.stderr.split())
