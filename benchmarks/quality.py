"""Methods x bits on the bundled digit model: clips of the quantized model against the full-precision model's, from the same noise.

    python benchmarks/quality.py [--method M] [--bits w4a8] [--clips 16] [--seeds 3] [--work FOLDER] [--out FILE]

Everything runs in PyTorch as the reference computes it (`vditc.runtimes.reference`), which every graph is held against. A row is one
method at one number of bits: digit and motion accuracy of the clips, PSNR to the full-precision clips, error of the latents at the end,
mean bits, seconds of calibration; mean and spread (standard deviation) over the seeds, each of which has prompts and noise of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from main_job import MODEL, machine

from vditc.calibrate.methods.registry import method_for, methods
from vditc.calibrate.stage import calibrate
from vditc.calibration import Calibration
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.pipeline.components import Components, conditioning_for, sampling_of
from vditc.pipeline.quality import compare, sample_clips
from vditc.progress import SILENT
from vditc.recipe import Recipe, Rule
from vditc.runtimes.reference import ReferenceModel
from vditc.scheme import QuantSpec, Scheme

TYPES = {8: QType.INT8, 6: QType.INT6, 4: QType.INT4, 3: QType.INT3}
BITS = ("w8a8", "w6a6", "w4a16", "w4a8", "w4a6", "w4a4", "w3a8", "w3a6")
KEPT = ("time_embed.*", "modulation", "patch_embed", "*_embed.*", "head")


def scheme(bits: str) -> Scheme:
    """Per channel and per token, dynamic; weights alone in groups of 64."""
    weight, activation = (int(n) for n in bits[1:].split("a"))
    if activation == 16:
        return Scheme(weight=QuantSpec(qtype=TYPES[weight], granularity=Granularity.PER_GROUP, group_size=64))
    return Scheme(
        weight=QuantSpec(qtype=TYPES[weight], granularity=Granularity.PER_CHANNEL),
        activation=QuantSpec(qtype=TYPES[activation], granularity=Granularity.PER_TOKEN, dynamic=True),
    )


def recipe(method: str, bits: str) -> Recipe:
    """The same layers in every row."""
    plain = Recipe.load("w8a8")
    rules = (Rule(match=KEPT, keep="in every row"), Rule(match=("*",), scheme=scheme(bits)))
    return dataclasses.replace(plain, name=f"{method}-{bits}", method=method, rules=rules, digest=f"{method}-{bits}")


def row(method: str, bits: str, clips: int, seeds: int, work: Path) -> dict[str, Any]:
    """Calibrate once, sample `seeds` sets of clips."""
    source = ModelDir.open(MODEL)
    adapter, parts = adapter_for(source), Components.open(MODEL)
    sampling = sampling_of(source, None, None)
    schedule, channels = parts.schedule(sampling.steps), adapter.latent_channels(source)
    own = recipe(method, "w8a8" if method == "none" else bits)  # the clips and steps are the same for all
    known: Calibration | None = None
    about: dict[str, Any] = {"bench": "quality", "method": method, "bits": bits}
    if method != "none":
        began = time.monotonic()
        known = calibrate(
            source=source,
            adapter=adapter,
            recipe=own,
            conditioning=conditioning_for(parts, sampling, channels, own.calibration_prompts, own.calibration_seed, ()),
            scheduler=schedule,
            guidance_scale=sampling.guidance_scale,
            out=work / f"{own.name}.safetensors",
            work=work,
            progress=SILENT,
        )
        assert known is not None
        about |= {"calibration_seconds": round(time.monotonic() - began, 1), "mean_bits": round(known.mean_bits, 3)}
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        given = conditioning_for(parts, sampling, channels, clips, 7_000 + seed, ())
        fixed = (given, adapter.inputs(source), schedule, sampling.guidance_scale, work / "clips")
        reference = sample_clips(lambda: ReferenceModel(adapter, source, None), *fixed, {"model": source.digest}, SILENT, "")
        key = {"calibration": None if known is None else known.digest, "model": source.digest}
        ours = sample_clips(lambda: ReferenceModel(adapter, source, known), *fixed, key, SILENT, "") if known else reference
        quality = compare(reference, ours, given, parts, sampling.semantics)
        for name in ("digit_accuracy", "motion_accuracy", "flicker", "psnr_db", "ssim"):
            value = quality["quantized"].get(name)
            if value is not None and np.isfinite(value):
                found.setdefault(name, []).append(float(value))
        found.setdefault("latent_error", []).append(quality["step_error"][-1])
    return about | {name: [round(float(np.mean(v)), 4), round(float(np.std(v)), 4)] for name, v in found.items()}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--method", choices=sorted(methods()), action="append", help="default: all")
    ask.add_argument("--bits", choices=BITS, action="append", help="default: all")
    ask.add_argument("--clips", type=int, default=16, help="of each seed")
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--work", type=Path, help="folder for calibrations and clips; what is there is used again [default: a temporary one]")
    ask.add_argument("--out", type=Path, help="also write everything to this JSON file")
    args = ask.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows.append(row("none", "fp32", args.clips, args.seeds, work))
        print(json.dumps(rows[-1]), flush=True)
        for bits in args.bits or BITS:
            for method in args.method or sorted(methods()):
                try:
                    method_for(method, {}, "here").check(scheme(bits))
                    rows.append(row(method, bits, args.clips, args.seeds, work))
                except InputError as error:
                    rows.append({"bench": "quality", "method": method, "bits": bits, "refused": str(error)})
                print(json.dumps(rows[-1]), flush=True)
    if args.out:
        command = "python " + " ".join(
            ["benchmarks/quality.py", *(f"--bits {b}" for b in args.bits or ()), f"--clips {args.clips} --seeds {args.seeds}"]
        )
        data = {"date": datetime.date.today().isoformat(), "command": command, "machine": machine(), "rows": rows}
        args.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
