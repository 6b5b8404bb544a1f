"""What a bundle costs at run time beside its model.

    python benchmarks/runtime.py [--case CASE] [--runs N] [--out FILE] [--list]

sampler-flow, sampler-unipc, sampler-dpm: `vditc.sampling.sample` at the latents of Wan 2.1 1.3B (81 frames of 480 x 832), both branches
of guidance in one batch, a text of 512 x 4096, around a model that answers at once. `milliseconds` is what one step takes beside the model,
the median over all steps of `--runs` clips, `best` the least, `cpu` the median of the time of all its threads, which other processes
disturb less; `load` is the machine's load average, `copy` the least that it takes to copy the latents once, from memory to memory, for
comparison: a step of guided Euler reads three arrays of that size (latents and two predictions) and writes two (what is fed next).

bundle-open, bundle-hash: `Bundle.open` of a bundle with 1 GB of files, without and with their hashes. inspect: the command `vditc inspect`
on such a bundle, without hashes, as a process of its own. `milliseconds` and `cpu` as above, of `--runs` repetitions; the files are in the
page cache.

c-*: the same of libvditc, as `make cpp` built it. c-open, c-hash: a bundle of 1 GB, without hashes, and with them by one thread. c-loop:
all that a step takes at latents of 288 numbers, with guidance, UniPC and backend "null", in microseconds; c-sampler-flow, c-sampler-unipc,
c-sampler-dpm: as the cases of Python, with a denoiser of the host that answers at once. Calls of the allocator are counted from the first
step of a clip to its last. c-size: the library without its symbols. Each line is one row, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import c_library
import numpy as np
from harness import options, save

from vditc.adapter import InputSpec
from vditc.bundle import Bundle, Manifest, list_files, write_manifest
from vditc.runtimes.schedulers.registry import scheduler_of
from vditc.sampling import Clips, Feeds, sample
from vditc.threads import cores

LATENTS = (1, 16, 21, 60, 104)
TEXT = (1, 512, 4096)
STEPS = 20
BUNDLE_BYTES = 1 << 30
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SAMPLERS: dict[str, dict[str, Any]] = {
    "sampler-flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "sampler-unipc": {"_class_name": "UniPCMultistepScheduler", **FLOW},
    "sampler-dpm": {"_class_name": "DPMSolverMultistepScheduler", **FLOW},
}


def copy_seconds() -> float:
    """The least that copying the latents takes when no cache has them, as after a run of a model."""
    arrays, least = [np.ones(LATENTS, np.float32) for _ in range(32)], 1.0
    for _ in range(5):
        for here, there in zip(arrays[::2], arrays[1::2], strict=True):
            began = time.perf_counter()
            np.copyto(there, here)
            least = min(least, time.perf_counter() - began)
    return least


def sampler(case: str, runs: int) -> dict[str, Any]:
    """Of one scheduler."""
    random = np.random.default_rng(0)
    text = random.standard_normal(TEXT, np.float32)
    specs = (
        InputSpec("hidden_states", "float32", ("batch", 16, "frames", "height", "width")),
        InputSpec("timestep", "int64", ("batch",), "timestep"),
        InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", 4096)),
    )
    told = {"encoder_hidden_states": text}
    clips = Clips(specs=specs, noise=random.standard_normal(LATENTS, np.float32), prompted=told, unprompted=told)
    answer = random.standard_normal((2, *LATENTS[1:]), np.float32)
    walk, seconds, worked = scheduler_of(SAMPLERS[case], STEPS), list[float](), list[float]()
    for _ in range(runs):
        left: list[tuple[float, float]] = []

        def model(feeds: Feeds, step: int, left: list[tuple[float, float]] = left) -> Any:
            now = time.perf_counter(), time.process_time()
            if left:
                seconds.append(now[0] - left[-1][0])
                worked.append(now[1] - left[-1][1])
            left.append((time.perf_counter(), time.process_time()))
            return answer

        sample(model, walk, clips, 5.0, reuse=True)
    return {
        "case": case,
        "latents": list(LATENTS),
        "cores": cores(),
        "steps": len(seconds),
        "milliseconds": round(statistics.median(seconds) * 1e3, 2),
        "best": round(min(seconds) * 1e3, 2),
        "cpu": round(statistics.median(worked) * 1e3, 2),
        "load": round(os.getloadavg()[0], 1),
        "copy": round(copy_seconds() * 1e3, 2),
    }


def bundle(case: str, runs: int) -> dict[str, Any]:
    """Of a bundle of 1 GB, made like the smallest one that opens."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "large.bundle"
        root.mkdir()
        piece = np.random.default_rng(0).bytes(1 << 20)
        for name in ("model.onnx.data", "model.plan"):  # the two large files of a bundle, of about one size
            with (root / name).open("wb") as file:
                for _ in range(BUNDLE_BYTES >> 21):
                    file.write(piece)
        facts: dict[str, Any] = {name: {} for name in ("recipe", "layers", "kept", "profile", "graph", "targets", "gate", "tools")}
        facts |= {
            "model": {"class": "", "part": "transformer", "weights": 1, "digest": ""},
            "recipe": {"name": "", "method": "", "description": ""},
        }
        sampling = {"steps": 1, "guidance_scale": 1.0, "latent_shape": [], "schedule": {"timesteps": [1]}}
        manifest = Manifest(vditc="0", mean_bits=8, sampling=sampling, inputs=[], quality=None, files=list_files(root), **facts)
        write_manifest(root, manifest)
        seconds, worked = list[float](), list[float]()
        for _ in range(runs):
            wall, cpu = time.perf_counter(), sum(os.times()[:4])
            if case.startswith("c-"):
                seconds, worked = c_library.opened(case, root, runs)
                break
            if case == "inspect":
                subprocess.run([sys.executable, "-m", "vditc", "inspect", str(root), "--no-sha256"], check=True, stdout=subprocess.DEVNULL)
            else:
                Bundle.open(root, hashes=case == "bundle-hash")
            seconds.append(time.perf_counter() - wall)
            worked.append(sum(os.times()[:4]) - cpu)
    found = {"milliseconds": round(statistics.median(seconds) * 1e3, 2), "cpu": round(statistics.median(worked) * 1e3, 2)}
    if case.endswith("-hash"):
        found["gigabytes_per_cpu_second"] = round(BUNDLE_BYTES / statistics.median(worked) / 1e9, 2)
    return {"case": case, "bytes": BUNDLE_BYTES, "runs": runs, **found, "load": round(os.getloadavg()[0], 1)}


CASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    **{case: (lambda given, case=case: sampler(case, given.runs)) for case in SAMPLERS},  # type: ignore[misc]
    **{case: (lambda given, case=case: bundle(case, given.runs)) for case in ("bundle-open", "bundle-hash", "inspect", "c-open", "c-hash")},  # type: ignore[misc]
    **{case: (lambda given, case=case: c_library.watched(case, given.runs)) for case in c_library.WATCHED},  # type: ignore[misc]
    "c-size": lambda given: c_library.size(),
}


def main() -> None:
    """See the module's docstring."""
    ask = options(__doc__, CASES)
    ask.add_argument("--runs", type=int, default=5, help="clips, or repetitions, of a case")
    given = ask.parse_args()
    if given.list:
        print("\n".join(CASES))
        return
    rows = []
    for case in given.case or CASES:
        rows.append(CASES[case](given))
        print(json.dumps(rows[-1]), flush=True)
    save(given.out, rows)


if __name__ == "__main__":
    main()
