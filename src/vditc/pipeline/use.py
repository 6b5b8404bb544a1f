"""A finished bundle at work: sample from it, check it, compare it with its model."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

from vditc.bundle import Bundle
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.experts import Expert, experts_of
from vditc.lora import Lora, fuse
from vditc.model_dir import ModelDir, SamplingDefaults
from vditc.pipeline.components import Components, conditioning_for
from vditc.pipeline.denoisers import open_expert
from vditc.pipeline.sampler import Sampler
from vditc.pipeline.schedules import bundle_schedule, bundle_scheduler
from vditc.pipeline.walk_plan import RunOptions, step_cache
from vditc.progress import Progress
from vditc.runtimes.schedulers.walk import Walk
from vditc.sampled_model import SampledModel
from vditc.sampling import Denoiser


def sample_bundle(
    bundle: Bundle,
    out: Path,
    prompt: str,
    conditioning: Path | None,
    seed: int | None,
    backend: str,
    progress: Progress,
    options: RunOptions | None = None,
    *,
    negative: str = "",
    size: str = "",
    weight_budget: int | None = None,
) -> None:
    """Sample one clip from a prompt, or every clip of a conditioning file, into `out`: a video (vditc.clips.VIDEOS) or .safetensors.

    `seed`: None for 0, or the file's own. One part is in memory at a time; see `vditc.Sampler`, which this is a call of.
    """
    if bool(prompt) == (conditioning is not None):
        raise InputError(found="both or neither", wanted="--prompt or --conditioning", where="vditc run", fix="give one of them")
    with Sampler(bundle, backend=backend, weight_budget=weight_budget, keep_open=False) as sampler:
        given = prompt if conditioning is None else sampler.load(conditioning)
        frames = given.latent_shape[1] if isinstance(given, Conditioning) and not size else sampler.latent_shape(size or None)[1]
        sampler.video.check(out, len(given) if isinstance(given, Conditioning) else 1, frames)
        found = sampler.run(given, negative, seed, size or None, options or RunOptions(), progress=progress)
        if found.asked:
            progress.note(f"the step cache left out {found.skipped} of {found.asked} runs of the model")
        found.save(out)


def check_bundle(bundle: Bundle) -> dict[str, Any]:
    """Check the graphs against the dialect and the codes of model.onnx against the calibration, then the quality gate.

    (`Bundle.open` has checked the hashes.) DialectError, PrecisionError or QualityError for what is wrong.
    """
    from vditc.export.check import check_codes  # here, as all that knows PyTorch or parses graphs: `run` needs none of it
    from vditc.graph_passes.facts import check_canonical, check_lowered
    from vditc.pipeline.quality import refuse

    layers = 0
    for one in (bundle, *bundle.experts.values()):
        calibration = Calibration.load(one.file("calibration.safetensors"))
        check_canonical(one.file("model.onnx"))
        for target in one.manifest.targets.values():
            check_lowered(one.file(target["lowered"]), target)
        check_codes(one.file("model.onnx"), calibration)
        refuse(dict(one.manifest.gate), str(one.path), "use a recipe that keeps more precision")
        layers += len(calibration.layers)
    return {"files": len(bundle.manifest.files), "layers": layers, "gate": bundle.manifest.gate}


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
    loras_2: tuple[str, ...] = (),
    cached: str | None = None,
) -> dict[str, Any]:
    """Fresh clips of the bundle against the full-precision model's, from the same prompts and noise.

    `cached`: also with a step cache at this threshold, or share of steps. A single transformer walks with its own solver, two experts
    along the table of its noise levels, as when they were compiled.
    """
    from vditc.export.adapters.registry import adapter_for
    from vditc.pipeline.experts import FULL_PRECISION, Walker, full_precision, joined, sample_experts
    from vditc.pipeline.quality import compare, sample_clips
    from vditc.runtimes.reference import ReferenceModel

    experts = experts_of(bundle)
    if loras_2 and len(experts) == 1:
        raise InputError(found="--lora-2", wanted="a bundle of two experts", where=str(bundle.path), fix="give --lora alone")
    sources = [_source_of(expert.bundle, model_dir, own) for expert, own in zip(experts, (loras, loras_2), strict=False)]
    parts, info = Components.open(bundle.path / "components"), bundle.manifest.sampling
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
    walked = bundle_scheduler(bundle, backend if backend in bundle.manifest.targets else None, fresh.latent_shape[1:])
    solver = walked if isinstance(walked, Walk) and len(experts) == 1 else None
    cache = None if cached is None else step_cache(bundle, cached, sampling.guidance_scale, walked)
    full, ours = list[Walker](), list[Walker]()
    key = {"bundle": {n: e.sha256 for n, e in bundle.manifest.files.items()}, "backend": backend}
    with contextlib.ExitStack() as stack:
        for expert, source in zip(experts, sources, strict=True):
            sampled = SampledModel(
                source=source,
                adapter=adapter_for(source),
                conditioning=fresh,
                scheduler=bundle_schedule(bundle).part(expert.steps),
                guidance_scale=expert.guidance_scale,
                solver=solver,
            )

            def open_model(expert: Expert = expert, sampled: SampledModel = sampled) -> Denoiser:
                stack.close()  # the expert before
                if backend == "reference":
                    calibration = Calibration.load(expert.bundle.file("calibration.safetensors"))
                    return ReferenceModel(sampled.adapter, sampled.source, calibration, device=device)
                return stack.enter_context(open_expert(expert.bundle, backend))

            full.append(full_precision(sampled, device))
            # A step cache samples twice; of two experts one is in memory at a time.
            ours.append(Walker(sampled, open_model if cache is None else functools.cache(open_model), key))
        reference = joined(sample_experts(full, work, progress, FULL_PRECISION))
        candidate = joined(sample_experts(ours, work, progress, f"sample the bundle ({backend})"))
        found = compare(reference, candidate, fresh, parts, sampling.semantics)
        if cache is not None:  # which is of a single transformer
            title = f"sample the bundle with step cache {cache[1]:g}"
            fewer = sample_clips(ours[0].open, ours[0].sampled, work, key, progress, title, cache)
            against = {"full_precision": compare(reference, fewer, fresh, parts, sampling.semantics)["quantized"]}
            against["without"] = compare(candidate, fewer, fresh, parts, sampling.semantics)["quantized"]
            found["step_cache"] = {"threshold": cache[1], "skipped": fewer.skipped, **against}
    return found


def _source_of(bundle: Bundle, model_dir: Path, loras: tuple[str, ...]) -> ModelDir:
    """The transformer that a bundle was compiled from; InputError for another one."""
    source = fuse(ModelDir.open(model_dir, bundle.manifest.model["part"]), [Lora.parse(text) for text in loras])
    if source.digest != bundle.manifest.model["digest"]:
        raise InputError(
            found=f"model {source.digest[:16]}…",
            wanted=f"the bundle's model {bundle.manifest.model['digest'][:16]}…",
            where=str(source.transformer),
            fix="give the model that the bundle was compiled from, and its --lora options",
        )
    return source
