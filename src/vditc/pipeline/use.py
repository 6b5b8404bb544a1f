"""A finished bundle at work: sample from it, check it, compare it with its model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.bundle import Bundle
from vditc.calibration import Calibration
from vditc.clips import VIDEOS, write_clip, write_video
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.experts import Expert, ExpertSwitch, experts_of
from vditc.lora import Lora, fuse
from vditc.model_dir import ModelDir, SamplingDefaults
from vditc.pipeline.components import Components, conditioning_for, load_conditioning
from vditc.pipeline.schedules import AS_COMPILED, WalkOptions, bundle_schedule, bundle_scheduler
from vditc.profile import Profile
from vditc.progress import Progress
from vditc.runtimes.backend import EnginePlugins
from vditc.runtimes.gpu import compute_capability
from vditc.runtimes.graph_inputs import graph_sizes, model_inputs
from vditc.runtimes.registry import backend as backend_named
from vditc.runtimes.schedulers.walk import Walk
from vditc.safetensors_file import write_tensors
from vditc.sampled_model import SampledModel
from vditc.sampling import Denoiser, Passes, sample
from vditc.schedule import Scheduler
from vditc.step_cache import UNPROMPTED, Skips, StepCache

PORTABLE = "onnxruntime"  # the backend that runs model.onnx itself
PASSES: dict[Passes, int] = {"batched": 2, "two": 1}  # of guidance -> clips that the model runs at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a bundle is sampled, where that is not left to it."""

    walk: WalkOptions = AS_COMPILED
    guidance: float | None = None
    guidance_2: float | None = None  # of a second expert
    embedded_guidance: float | None = None  # of models that are told a guidance scale
    passes: Passes | None = None  # of guidance; None: as the engine's profile allows
    step_cache: str | None = None  # a threshold, or a share of steps
    weight_budget: int | None = None  # bytes of the GPU for the weights of an engine that streams them
    negative: str = ""  # a prompt that the clip is to lead away from


@contextlib.contextmanager
def open_denoiser(bundle: Bundle, backend: str, weight_budget: int | None = None) -> Iterator[Denoiser]:
    """Of all steps: the portable graph in ONNX Runtime, or the engine of one of the bundle's targets.

    Of a bundle of two experts each is opened when its steps come (`vditc.experts.ExpertSwitch`). `weight_budget`: see `Backend.open`.
    """
    with contextlib.ExitStack() as stack:
        if bundle.experts:
            switch = ExpertSwitch(
                [(e.steps, functools.partial(_open_expert, e.bundle, backend, weight_budget)) for e in experts_of(bundle)]
            )
            stack.callback(switch.close)
            yield switch
        else:
            yield stack.enter_context(_open_expert(bundle, backend, weight_budget))


@contextlib.contextmanager
def _open_expert(bundle: Bundle, backend: str, weight_budget: int | None = None) -> Iterator[Denoiser]:
    """The bundle's own graph or engine alone."""
    targets = bundle.manifest.targets
    if backend != PORTABLE and backend not in targets:
        raise InputError(
            found=f"--backend {backend}", wanted=", ".join([PORTABLE, *targets]), where=str(bundle.path), fix="choose one of these"
        )
    name = PORTABLE if backend == PORTABLE else targets[backend]["backend"]
    said = targets.get(backend, {}).get("plugins", {})
    plugins = None
    if "library" in said:
        named = [operator.rpartition(".")[2] for operator in said["operators"]]
        wanted = tuple((name, said["version"], said["namespace"]) for name in named)
        plugins = EnginePlugins(library=bundle.file(said["library"]), wanted=wanted)
    with backend_named(name).open(
        model=bundle.path / "model.onnx",
        engine=bundle.path / "engines" / backend,
        plugins=plugins,
        weight_budget=weight_budget,
    ) as denoiser:
        yield denoiser


def backend_here(bundle: Bundle) -> str:
    """The target with an engine for this machine's GPU; on a machine without one the portable graph.

    InputError for a GPU without an engine: a CPU would be too slow a surprise.
    """
    arch = compute_capability()
    if arch is None:
        return PORTABLE
    built = {name: t for name, t in bundle.manifest.targets.items() if t["engine"]["status"] == "built"}
    found = next((name for name, t in built.items() if arch in t["arch"]), None)
    if found is None:
        raise InputError(
            found=f"engines for {', '.join(a for t in built.values() for a in t['arch']) or 'no GPU'}",
            wanted=f"an engine for this machine's {arch}",
            where=str(bundle.path),
            fix=f"build one here (engines/<target>/build.sh, or `vditc build`), or ask for the backend {PORTABLE}",
        )
    return found


def sample_bundle(
    bundle: Bundle,
    out: Path,
    prompt: str,
    conditioning: Path | None,
    seed: int,
    backend: str,
    progress: Progress,
    options: RunOptions | None = None,
) -> None:
    """Sample one clip from a prompt, or every clip of a conditioning file, into `out`: a video (vditc.clips.VIDEOS) or .safetensors."""
    options = options or RunOptions()
    if bool(prompt) == (conditioning is not None):
        raise InputError(found="both or neither", wanted="--prompt or --conditioning", where="vditc run", fix="give one of them")
    if options.negative and conditioning is not None:
        raise InputError(
            found="--negative-prompt with --conditioning", wanted="one of them", where="vditc run", fix="save it in the conditioning"
        )
    if out.suffix not in (*VIDEOS, ".safetensors"):
        raise InputError(found=f"-o {out}", wanted=f"{', '.join(VIDEOS)} or .safetensors", where="vditc run", fix="change the ending")
    experts = experts_of(bundle, options.guidance, options.guidance_2)
    parts, info = Components.open(bundle.path / "components", backend, bundle.manifest.components), bundle.manifest.sampling
    c, f, h, w = info["latent_shape"]
    specs = model_inputs(bundle.file("model.onnx"))
    if conditioning is None:
        given = parts.encode((prompt,), (seed,), (c, f, h, w), info["extra_channels"], options.negative)
    else:
        sizes = graph_sizes(bundle.file("model.onnx"))
        given = load_conditioning(conditioning, specs, sizes)
        if backend != PORTABLE:
            for expert in experts:
                Profile.from_json(expert.bundle.manifest.profile).check(given.sizes(specs), sizes, str(conditioning))
    seen = parts.codec or parts.decoder
    if out.suffix != ".safetensors" and (seen is None or len(given) > 1):
        raise InputError(
            found=f"{len(given)} clips{'' if seen else ' and no codec that vditc runs'}",
            wanted="-o latents.safetensors",
            where=str(bundle.path),
            fix="write latents and decode them with the model's own VAE",
        )
    given = with_embedded_guidance(given, specs, options.embedded_guidance)
    scheduler = bundle_scheduler(bundle, None if backend == PORTABLE else backend, given.latent_shape[1:], options.walk)
    steps, scales = len(scheduler.timesteps), {expert.guidance_scale for expert in experts}
    if len(experts) > 1 and steps != experts[-1].steps.stop:
        raise InputError(
            found=f"{steps} steps",
            wanted=f"{experts[-1].steps.stop}, which the experts share",
            where=str(bundle.path),
            fix="leave out --steps, or compile for another number of them",
        )
    passes = guidance_passes(bundle, backend, options.passes) if scales != {1.0} else "batched"
    cache = None if options.step_cache is None else step_cache(bundle, options.step_cache, experts[0].guidance_scale, scheduler)
    skips = None if cache is None else Skips(*cache, steps)
    latents = dict[int, npt.NDArray[np.float32]]()
    # A solver remembers the clip that it walks: of several experts each has all clips in turn, for one is open at a time.
    walks = [scheduler if len(experts) == 1 else copy.deepcopy(scheduler) for _ in range(len(given))]
    with open_denoiser(bundle, backend, options.weight_budget) as denoiser, progress.task("sample", len(given) * steps) as advance:
        for expert in experts:
            for i, walk in enumerate(walks):
                latents[i] = sample(
                    denoiser,
                    walk,
                    given.clips([i], specs),
                    expert.guidance_scale,
                    lambda *_: advance(),
                    begin=expert.steps.start,
                    end=steps if len(experts) == 1 else expert.steps.stop,
                    latents=latents.get(i),
                    passes=passes,
                    cache=skips,
                    reuse=True,
                )
    if skips is not None:
        progress.note(f"the step cache left out {skips.skipped} of {skips.asked} runs of the model")
    if out.suffix == ".safetensors":
        write_tensors(out, {"latents": np.concatenate(list(latents.values()))})
    elif parts.codec is not None:
        write_clip(out, parts.codec.decode(latents[0])[0])
    elif parts.decoder is not None:
        write_video(out, (frame for chunk in parts.decoder.stream(latents[0]) for frame in chunk), info["fps"])


def guidance_passes(bundle: Bundle, backend: str, asked: Passes | None) -> Passes:
    """Both branches in one run of the model where the engine takes that, or one by one; InputError for what it does not take.

    The portable graph takes any number of clips where it names that axis.
    """
    manifest = bundle.manifest
    inputs = manifest.inputs if backend == PORTABLE else manifest.targets[backend]["inputs"]
    clips = inputs[0]["dims"][0]  # a number, or the axis's name
    low, _, high = (clips, clips, clips) if isinstance(clips, int) else (1, 1, 2) if backend == PORTABLE else manifest.profile[clips]
    takes: list[Passes] = [name for name, count in PASSES.items() if low <= count <= high]
    if not takes or asked not in (None, *takes):
        raise InputError(
            found=f"--guidance-passes {asked or 'auto'} with an engine for {low} to {high} clips at once",
            wanted=" or ".join(takes) or "an engine for one clip or two",
            where=f"{bundle.path}, {backend}",
            fix="choose another way, --guidance 1, or build an engine with --profile batch=1:2:2",
        )
    return asked or ("batched" if "batched" in takes else "two")


def with_embedded_guidance(given: Conditioning, specs: Sequence[InputSpec], scale: float | None) -> Conditioning:
    """Clips whose model is told a guidance scale, in thousandths as HunyuanVideo is; InputError for a model that is told none."""
    if scale is None:
        return given
    told = next((spec for spec in specs if spec.name == "guidance" and not isinstance(spec.fill, str)), None)
    if told is None:
        raise InputError(
            found=f"--embedded-guidance {scale:g}",
            wanted="a model with an input `guidance`",
            where="vditc run",
            fix="use --guidance: this model is guided by two branches",
        )
    value = np.full(told.shape({"batch": len(given)}), 1000 * scale, told.dtype)
    return dataclasses.replace(given, inputs={**given.inputs, told.name: value})


def step_cache(bundle: Bundle, asked: str, guidance: float, scheduler: Scheduler) -> tuple[StepCache, float]:
    """The bundle's calibrated step cache and the threshold; InputError for a bundle without one, or another walk than its own."""
    about, where = bundle.manifest.sampling.get("step_cache"), f"bundle {bundle.path}"
    if about is None:
        raise InputError(
            found="no step cache",
            wanted="a polynomial that was fitted at compile",
            where=where,
            fix="compile the model again, in more than 3 steps",
        )
    table = bundle_schedule(bundle)
    if len(scheduler.timesteps) != len(table.timesteps) or not np.allclose(scheduler.timesteps, table.timesteps, atol=1):
        raise InputError(
            found=f"--step-cache on {len(scheduler.timesteps)} steps of another schedule",
            wanted=f"the {len(table.timesteps)} steps that it was fitted to",
            where=where,
            fix="leave out --steps, --shift and --solver, or --step-cache; or compile for this schedule",
        )
    cache = StepCache.from_json(about)
    if guidance != 1.0 and UNPROMPTED not in cache.coefficients:
        raise InputError(
            found=f"--step-cache at guidance {guidance:g}",
            wanted="guidance 1, which it was fitted to",
            where=where,
            fix="compile with --guidance",
        )
    return cache, cache.threshold(asked)


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
                return stack.enter_context(_open_expert(expert.bundle, backend))

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
