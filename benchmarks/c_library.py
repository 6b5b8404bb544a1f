"""What libvditc costs beside a model: cases c-* of benchmarks/runtime.py, through ctypes, on the library that `make cpp` built.

Steps are watched by step_watch.c in a process of its own, `python benchmarks/c_library.py CASE RUNS`, with that library preloaded: no
Python runs between the steps.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from ctypes import POINTER, c_double, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from harness import REPOSITORY

from vditc.adapter import InputSpec
from vditc.conditioning import Conditioning
from vditc.threads import cores

sys.path.insert(0, str(REPOSITORY / "tests"))
import cpp_bundle
import cpp_library

WATCHED = ("c-loop", "c-sampler-flow", "c-sampler-unipc", "c-sampler-dpm")
WATCH = REPOSITORY / "benchmarks" / "step_watch.c"
STEPS, WAN_STEPS = 1000, 20
SPECS = (
    InputSpec("hidden_states", "float32", ("batch", 16, "frames", "height", "width")),
    InputSpec("timestep", "int64", ("batch",), "timestep"),
    InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", 4096)),
)


class Moment(ctypes.Structure):
    """As step_watch.c has it."""

    _fields_ = (("calls", c_uint64), ("wall", c_double), ("cpu", c_double))


class Watch(ctypes.Structure):
    """As step_watch.c has it."""

    _fields_ = (("capacity", c_uint64), ("count", c_uint64), ("moments", POINTER(Moment)))


def library() -> Path:
    """The release build, or the one in the folder VDITC_CPP_LIBRARY."""
    preset = "jetson" if platform.machine() == "aarch64" else "x86_64"
    path = Path(os.environ.get("VDITC_CPP_LIBRARY") or REPOSITORY / "build" / "cpp" / preset) / "libvditc.so"
    if not path.exists():
        raise SystemExit(f"found no {path}; wanted libvditc; run `make cpp`")
    return path


def opened(case: str, root: Path, runs: int) -> tuple[list[float], list[float]]:
    """Seconds, and those of the processor, of opening a bundle: without hashes, or with them by one thread."""
    loaded, seconds, worked = cpp_library.Library(library()), list[float](), list[float]()
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        with loaded.bundle(root, hashes=int(case == "c-hash"), threads=1):
            seconds.append(time.perf_counter() - wall)
            worked.append(time.process_time() - cpu)
    return seconds, worked


def size() -> dict[str, Any]:
    """Of the library without its symbols."""
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / "libvditc.so"
        subprocess.run(["strip", "-o", stripped, library()], check=True)
        return {
            "case": "c-size",
            "machine": platform.machine(),
            "bytes": stripped.stat().st_size,
            "bytes_with_symbols": library().stat().st_size,
        }


def watched(case: str, runs: int) -> dict[str, Any]:
    """A row of `steps`, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Path(folder) / "step_watch.so"
        subprocess.run([os.environ.get("CC", "gcc"), "-O2", "-std=gnu11", "-fPIC", "-shared", WATCH, "-o", watch], check=True)
        command = [sys.executable, str(Path(__file__)), case, str(runs), str(watch)]
        done = subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(watch)}, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def steps(case: str, runs: int, watch_path: Path, folder: Path) -> dict[str, Any]:
    """`c-loop`: all of a step at small latents, backend "null" in it. `c-sampler-*`: what a step at Wan's takes beside a model."""
    from runtime import LATENTS, SAMPLERS, TEXT

    loaded, helper = cpp_library.Library(library()), ctypes.CDLL(str(watch_path))
    small, count = case == "c-loop", STEPS if case == "c-loop" else WAN_STEPS
    if small:
        root, given = cpp_bundle.save_bundle(folder / "b"), cpp_bundle.clips(count=1)
    else:
        text = np.random.default_rng(0).standard_normal(TEXT, np.float32)
        root = cpp_bundle.save_bundle(folder / "b", SAMPLERS[case.removeprefix("c-")], SPECS, channels=LATENTS[1])
        told = {"encoder_hidden_states": text}
        given = Conditioning(prompts=("",), seeds=(0,), latent_shape=LATENTS[1:], inputs=told, empty=told)
    given.save(folder / "c.safetensors")
    handle = loaded.made("conditioning_open", str(folder / "c.safetensors").encode())
    moments = (Moment * (2 * count))()
    watch = Watch(len(moments), 0, moments)
    user = ctypes.cast(ctypes.pointer(watch), c_void_p)
    denoiser = cpp_library.Denoiser(1, ctypes.sizeof(cpp_library.Denoiser), user, ctypes.cast(helper.watch_model, cpp_library.PREDICT))
    on_step = ctypes.cast(helper.watch_step, cpp_library.PROGRESS) if small else cpp_library.PROGRESS()
    how = {"backend": b"null"} if small else {"backend": b"host", "denoiser": ctypes.pointer(denoiser)}
    latents = np.empty((1, *given.latent_shape), np.float32)
    seconds, worked, taken, before = list[float](), list[float](), 0, 0
    with loaded.bundle(root) as bundle, loaded.session(bundle, steps=count, **how) as session:
        info = loaded.info("session_info_get", cpp_library.SessionInfo, session)
        for _ in range(runs):
            watch.count = 0
            loaded("session_sample", session, handle, on_step, user, cpp_library.pointer(latents), c_uint64(latents.nbytes), None)
            assert watch.count == (count if small else 2 * count)
            ends, begins = (moments[: count - 1], moments[1:count]) if small else (moments[1:-1:2], moments[2::2])
            seconds += [b.wall - e.wall for e, b in zip(ends, begins, strict=True)]
            worked += [b.cpu - e.cpu for e, b in zip(ends, begins, strict=True)]
            first = moments[0 if small else 2]
            taken += moments[watch.count - 1].calls - first.calls
            assert first.calls > before, "the allocator is not watched"  # what a call makes before its steps
            before = moments[watch.count - 1].calls
    loaded("conditioning_destroy", handle)
    assert info.passes == 1  # both branches of guidance in one run
    unit, scale = ("microseconds", 1e6) if small else ("milliseconds", 1e3)
    times = {unit: round(statistics.median(seconds) * scale, 2), "best": round(min(seconds) * scale, 2)}
    if not small:
        times["cpu"] = round(statistics.median(worked) * scale, 2)
    about = {"case": case, "latents": [1, *given.latent_shape], "cores": cores(), "steps": len(seconds)}
    return {**about, **times, "allocations_after_the_first_step": taken, "load": round(os.getloadavg()[0], 1)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        print(json.dumps(steps(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(work))))
