"""A finished bundle at work: sample from it, check it, compare it with its model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vditc.bundle import Bundle
from vditc.calibration import Calibration
from vditc.clips import write_clip
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.export.check import check_codes
from vditc.graph_passes.facts import check_canonical, check_lowered
from vditc.lora import Lora, fuse
from vditc.model_dir import ModelDir, SamplingDefaults
from vditc.pipeline.components import Components, conditioning_for, load_conditioning
from vditc.pipeline.quality import compare, refuse, sample_clips
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.runtimes.graph_inputs import graph_sizes, model_inputs
from vditc.runtimes.reference import ReferenceModel
from vditc.runtimes.registry import backend as backend_named
from vditc.safetensors_file import write_tensors
from vditc.sampled_model import SampledModel
from vditc.sampling import Denoiser, sample
from vditc.schedule import Schedule

PORTABLE = "onnxruntime"  # the backend that runs model.onnx itself


def schedule_of(bundle: Bundle) -> Schedule:
    """The schedule that the bundle was calibrated for; its step tables fit no other."""
    return Schedule.from_json(bundle.manifest.sampling["schedule"])


@contextlib.contextmanager
def open_denoiser(bundle: Bundle, backend: str) -> Iterator[Denoiser]:
    """The portable graph in ONNX Runtime, or the engine of one of the bundle's targets."""
    targets = bundle.manifest.targets
    if backend != PORTABLE and backend not in targets:
        raise InputError(
            found=f"--backend {backend}", wanted=", ".join([PORTABLE, *targets]), where=str(bundle.path), fix="choose one of these"
        )
    name = PORTABLE if backend == PORTABLE else targets[backend]["backend"]
    library = targets.get(backend, {}).get("plugins", {}).get("library")
    with backend_named(name).open(
        model=bundle.path / "model.onnx",
        engine=bundle.path / "engines" / backend,
        plugins=bundle.file(library) if library else None,
    ) as denoiser:
        yield denoiser


def sample_bundle(
    bundle: Bundle,
    out: Path,
    prompt: str,
    conditioning: Path | None,
    seed: int,
    backend: str,
    guidance: float | None,
    progress: Progress,
) -> None:
    """Sample one clip from a prompt, or every clip of a conditioning file, into `out` (.mp4, .gif or .safetensors)."""
    if bool(prompt) == (conditioning is not None):
        raise InputError(found="both or neither", wanted="--prompt or --conditioning", where="vditc run", fix="give one of them")
    if out.suffix not in (".mp4", ".gif", ".safetensors"):
        raise InputError(found=f"-o {out}", wanted=".mp4, .gif or .safetensors", where="vditc run", fix="change the ending")
    parts, info = Components.open(bundle.path / "components"), bundle.manifest.sampling
    c, f, h, w = info["latent_shape"]
    specs = model_inputs(bundle.file("model.onnx"))
    if conditioning is None:
        given = parts.encode((prompt,), (seed,), (c, f, h, w), info["extra_channels"])
    else:
        sizes = graph_sizes(bundle.file("model.onnx"))
        given = load_conditioning(conditioning, specs, sizes)
        if backend != PORTABLE:
            Profile.from_json(bundle.manifest.profile).check(given.sizes(specs), sizes, str(conditioning))
    if out.suffix != ".safetensors" and (parts.codec is None or len(given) > 1):
        raise InputError(
            found=f"{len(given)} clips{'' if parts.codec else ' and no codec that vditc runs'}",
            wanted="-o latents.safetensors",
            where=str(bundle.path),
            fix="write latents and decode them with the model's own VAE",
        )
    scheduler = schedule_of(bundle)
    latents = []
    with open_denoiser(bundle, backend) as denoiser, progress.task("sample", len(given) * len(scheduler.timesteps)) as advance:
        for i in range(len(given)):
            scale = info["guidance_scale"] if guidance is None else guidance
            latents.append(sample(denoiser, scheduler, given.clips([i], specs), scale, lambda *_: advance()))
    if out.suffix == ".safetensors":
        write_tensors(out, {"latents": np.concatenate(latents)})
    else:
        assert parts.codec is not None
        write_clip(out, parts.codec.decode(latents[0])[0])


def check_bundle(bundle: Bundle) -> dict[str, Any]:
    """Check the graphs against the dialect and the codes of model.onnx against the calibration, then the quality gate.

    (`Bundle.open` has checked the hashes.) DialectError, PrecisionError or QualityError for what is wrong.
    """
    calibration = Calibration.load(bundle.file("calibration.safetensors"))
    check_canonical(bundle.file("model.onnx"))
    for target in bundle.manifest.targets.values():
        check_lowered(bundle.file(target["lowered"]), target)
    check_codes(bundle.file("model.onnx"), calibration)
    refuse(dict(bundle.manifest.gate), str(bundle.path), "use a recipe that keeps more precision")
    return {"files": len(bundle.manifest.files), "layers": len(calibration.layers), "gate": bundle.manifest.gate}


def evaluate_bundle(
    bundle: Bundle,
    model_dir: Path,
    loras: tuple[str, ...],
    count: int,
    seed: int,
    prompts: tuple[str, ...],
    backend: str,
    work: Path,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Fresh clips of the bundle against the full-precision model's, from the same prompts and noise."""
    source = fuse(ModelDir.open(model_dir, bundle.manifest.model["part"]), [Lora.parse(text) for text in loras])
    if source.digest != bundle.manifest.model["digest"]:
        raise InputError(
            found=f"model {source.digest[:16]}…",
            wanted=f"the bundle's model {bundle.manifest.model['digest'][:16]}…",
            where=str(model_dir),
            fix="give the model that the bundle was compiled from, and its --lora options",
        )
    adapter, parts, info = adapter_for(source), Components.open(bundle.path / "components"), bundle.manifest.sampling
    c, f, h, w = info["latent_shape"]
    sampling = SamplingDefaults(
        steps=info["steps"],
        guidance_scale=info["guidance_scale"],
        frames=f,
        height=h,
        width=w,
        semantics=info["semantics"],
        extra_channels=info["extra_channels"],
    )
    fresh = conditioning_for(parts, sampling, c, count, seed, prompts)
    sampled = SampledModel(
        source=source,
        adapter=adapter,
        conditioning=fresh,
        scheduler=schedule_of(bundle),
        guidance_scale=sampling.guidance_scale,
    )
    reference = sample_clips(
        lambda: ReferenceModel(adapter, source, None, device=device),
        sampled,
        work,
        {"model": source.digest, "precision": "full"},
        progress,
        "sample the full-precision model",
    )
    calibration = Calibration.load(bundle.file("calibration.safetensors"))
    with contextlib.ExitStack() as stack:

        def open_model() -> Denoiser:
            if backend == "reference":
                return ReferenceModel(adapter, source, calibration, device=device)
            return stack.enter_context(open_denoiser(bundle, backend))

        key = {"bundle": {n: e.sha256 for n, e in bundle.manifest.files.items()}, "backend": backend}
        ours = sample_clips(open_model, sampled, work, key, progress, f"sample the bundle ({backend})")
    return compare(reference, ours, fresh, parts, sampling.semantics)
