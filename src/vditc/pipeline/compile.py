"""The main job: a model directory becomes a bundle."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vditc.adapter import InputSpec
from vditc.axis import CLIP
from vditc.bundle import Bundle, Manifest, list_files, write_manifest
from vditc.calibrate.methods.registry import method_for
from vditc.calibrate.stage import calibrate
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError, PrecisionError, VditcError
from vditc.export.stage import export_model
from vditc.files import data_digest, sha256, whole_file, write_text
from vditc.graph_passes.stage import LowerFacts, lower
from vditc.memory import Memory, attention_keys, model_memory
from vditc.pipeline.opened import OpenedModel
from vditc.pipeline.plugin_choice import PluginChoice, choose_plugins, library_in_bundle, plugin_operators, recorded
from vditc.pipeline.quality import Trajectories, check_gate, compare, refuse, sample_clips
from vditc.profile import Profile, Range
from vditc.progress import SILENT, Progress
from vditc.recipe import Recipe
from vditc.runtimes.attention_keys import float16_keys
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.runtimes.reference import ReferenceModel, layer_errors
from vditc.runtimes.registry import backend
from vditc.safetensors_file import write_tensors
from vditc.sampled_model import SampledModel
from vditc.target import Target
from vditc.workspace import Workspace

# Relative error of one step's velocity, lowered against portable graph. float16 keeps 11 bits, and every INT8 code that its
# rounding flips costs 1/127 of a token's range; more than a few hundredths means a wrong graph, not rounding.
LOWERED_TOLERANCE = 0.05
# Seeds of the verified clips start here, far from those of the calibration prompts.
VERIFY_SEED = 1_000
CLIPS = "report/clips.safetensors"  # finished clips of the verification, float32 [clips, F, H, W], for the report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a bundle depends on, and how to go about it."""

    model_dir: Path
    recipe: Recipe
    targets: tuple[Target, ...]
    out: Path
    profile: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    prompts: tuple[str, ...] = ()
    conditioning: Path | None = None
    part: str | None = None  # of a model with two experts
    loras: tuple[str, ...] = ()  # FILE or FILE:SCALE, fused in this order
    clips: int = 8  # sampled with both models for the quality gate
    gate: bool = True
    keep_time_path: bool = False
    plugins: str = "auto"  # or on, off: vditc.pipeline.plugin_choice
    device: str = "cpu"
    resume: bool = False
    force: bool = False
    references: Path | None = None  # where full-precision clips are kept between jobs on the same model


@dataclasses.dataclass(frozen=True)
class Plan:
    """A job whose input has been checked."""

    job: Job
    model: OpenedModel
    profile: Profile
    memory: Mapping[str, Memory]  # target -> estimate
    calibrated: SampledModel
    verified: SampledModel
    plugins: Mapping[str, PluginChoice]  # target -> with or without

    @property
    def digest(self) -> str:
        """Of everything that the bundle's bytes depend on."""
        job = self.job
        return data_digest(
            {
                "model": self.model.source.digest,
                "recipe": job.recipe.digest,
                "targets": [dataclasses.asdict(t) for t in job.targets],
                "profile": self.profile.to_json(),
                "keep_time_path": job.keep_time_path,
                "plugins": {name: choice.sha256 for name, choice in self.plugins.items()},
                "sampling": dataclasses.asdict(self.model.sampling),
                "clips": [s.conditioning.digest() for s in (self.calibrated, self.verified)],
                "vditc": importlib.metadata.version("vditc"),
            }
        )


def prepare(job: Job, progress: Progress = SILENT) -> Plan:
    """Check everything that can be checked before any work; InputError for what is wrong. `--plugins on` may build the plugin library."""
    if len({t.name for t in job.targets}) != len(job.targets) or not job.targets:
        names = [t.name for t in job.targets]
        raise InputError(found=f"targets {names}", wanted="at least one, each once", where="--target", fix="see `vditc targets`")
    if job.clips < 1:
        raise InputError(found=f"{job.clips} clips", wanted="at least 1", where="--clips", fix="raise it")
    model = OpenedModel.open(job.model_dir, part=job.part, loras=job.loras, steps=job.steps, guidance_scale=job.guidance_scale)
    source, adapter = model.source, model.adapter
    method = method_for(job.recipe.method, job.recipe.settings, f"recipe {job.recipe.name}")
    schemes = {name: rule.scheme for name, rule in job.recipe.assign(adapter.layer_roles(source)).items()}
    for target in job.targets:
        target.check(job.recipe)
        backend(target.backend).check(target)
    given, sizes, specs = model.saved(job.conditioning), adapter.sizes(source), adapter.inputs(source)
    if given is not None:
        calibration_set = verify_set = given
    else:
        calibration_set = model.prompted(job.recipe.calibration_prompts, job.recipe.calibration_seed, job.prompts)
        verify_set = model.prompted(job.clips, VERIFY_SEED, job.prompts)
        verify_set.check(specs)
    default = _default_profile(adapter.default_profile(source), given, specs)
    if method.pins_frames and adapter.frame_orders:
        frames = calibration_set.latent_shape[1]
        sizes, default = sizes.pinned("frames", frames), Profile({**default.axes, "frames": Range(frames, frames, frames)})
    profile = Profile.parse(job.profile, default, sizes)
    if not adapter.linear_attention:
        keys = attention_keys(adapter.layer_roles(source).values(), sizes, profile.largest)
        job = dataclasses.replace(job, targets=tuple(t.for_keys(keys) for t in job.targets))
        for target in (t for t in job.targets if (t.attention or t.compute) == "fp16"):
            target.check_attention(keys, f"{job.model_dir} at the largest sizes of the profile")
    memory = {t.name: model_memory(source, adapter, schemes, profile, t) for t in job.targets}
    plugins = {t.name: choose_plugins(job.plugins, t, job.recipe, progress) for t in job.targets}
    return Plan(job, model, profile, memory, model.sampled(calibration_set), model.sampled(verify_set), plugins)


def _default_profile(own: Profile, given: Conditioning | None, specs: tuple[InputSpec, ...]) -> Profile:
    """The model's own, for texts (and what else is not the clip's size) as long as the saved ones: an engine should serve those."""
    told = {} if given is None else given.sizes(specs)
    return Profile({**own.axes, **{axis: Range(n, n, n) for axis, n in told.items() if axis in own.axes and axis not in CLIP}})


def compile_bundle(job: Job, progress: Progress) -> Bundle:
    """Run every stage and return the finished bundle.

    InputError leaves nothing behind. Any other failure leaves `OUT.partial`, from which `resume` goes on.
    """
    plan = prepare(job, progress)
    space = Workspace.start(job.out, plan.digest, resume=job.resume, force=job.force)
    try:
        return _run(plan, space, progress)
    except InputError:
        space.discard()
        raise


def _run(plan: Plan, space: Workspace, progress: Progress) -> Bundle:
    job, root, sampling = plan.job, space.path, plan.model.sampling
    source, adapter = plan.model.source, plan.model.adapter

    def run_calibrate() -> None:
        calibrate(
            plan.calibrated,
            recipe=job.recipe,
            out=root / "calibration.safetensors",
            work=space.scratch,
            progress=progress,
            device=job.device,
        )

    space.stage("calibrate", run_calibrate, ("calibration.safetensors",))
    calibration = Calibration.load(root / "calibration.safetensors")
    for name, memory in plan.memory.items():
        progress.note(f"{name} needs {memory}")

    def run_export() -> dict[str, Any]:
        facts = export_model(
            source=source,
            adapter=adapter,
            calibration=calibration,
            schedule=plan.calibrated.scheduler,
            out=root / "model.onnx",
            progress=progress,
        )
        return dataclasses.asdict(facts)

    graph = _timeless(space.stage("export", run_export, ("model.onnx*", "model.refit.json")))
    targets = {t.name: _target(plan, space, t, progress) for t in job.targets}
    components = plan.model.parts.copy_to(root / "components")

    quality = space.stage("verify", lambda: _verify(plan, space, calibration, progress), (CLIPS,))
    gate = {**check_gate(job.recipe.gate, quality), "enforced": job.gate}
    if job.gate:
        refuse(gate, f"recipe {job.recipe.name}", f"choose another recipe, or --resume --no-gate to finish {job.out} all the same")
    manifest = Manifest(
        vditc=importlib.metadata.version("vditc"),
        model={
            "class": source.model_class,
            "adapter": adapter.name,
            "part": source.part,
            "digest": source.digest,
            "loras": [lora.to_json() for lora in plan.model.loras],
            "weights": source.weight_count,
            "checkpoint_bytes": sum(e.nbytes for e in source.weights.values()),
            "config": source.config,
            "components": list(components),
        },
        recipe={"name": job.recipe.name, "digest": job.recipe.digest, "description": job.recipe.description, "method": job.recipe.method},
        layers={
            name: {
                "role": layer.role,
                "weight": str(layer.scheme.weight),
                "activation": str(layer.scheme.activation) if layer.scheme.activation else "float",
                "bits": round(layer.stored_bits / layer.weight.count, 4),
                "input": _input_range(calibration.statistics, name),
            }
            for name, layer in calibration.layers.items()
        },
        kept={name: {"role": k.role, "reason": k.reason} for name, k in calibration.kept.items()},
        mean_bits=round(calibration.mean_bits, 4),
        sampling={
            "steps": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
            "semantics": sampling.semantics,
            "extra_channels": sampling.extra_channels,
            "latent_shape": list(plan.verified.conditioning.latent_shape),
            "schedule": plan.verified.scheduler.to_json(),
        },
        inputs=_inputs(root / "model.onnx"),
        profile=plan.profile.to_json(),
        graph=graph,
        targets=targets,
        quality=quality,
        gate=gate,
        tools={name: importlib.metadata.version(name) for name in ("numpy", "torch", "diffusers", "onnx", "onnx-ir", "onnxruntime")},
        files=list_files(root),
    )
    write_manifest(root, manifest)
    write_text(root / "report" / "run.json", json.dumps({"stages": space.stages}, indent=1, sort_keys=True) + "\n")
    space.finish()
    return Bundle(job.out, manifest)


def _target(plan: Plan, space: Workspace, target: Target, progress: Progress) -> dict[str, Any]:
    """Lower for one target and build; returns what the manifest says of it."""
    job, root, lowered = plan.job, space.path, f"lowered/{target.name}.onnx"
    choice = plan.plugins[target.name]
    plugins = choice.library is not None
    if choice.lacking:
        progress.note(f"{target.name} without plugins: {choice.reason}")

    def run_lower() -> dict[str, Any]:
        def lower_for(chosen: Target) -> LowerFacts:
            return lower(
                model=root / "model.onnx",
                target=chosen,
                out=root / lowered,
                keep_time_path=job.keep_time_path,
                plugins=plugins,
                progress=progress,
            )

        facts = lower_for(chosen := target)
        # `prepare` has counted tokens; a model may give attention more than those.
        if (wider := target.for_keys(float16_keys(root / lowered, plan.profile.largest))) != target:
            facts = lower_for(chosen := wider)
        _check_keys(plan, chosen, root / lowered)
        error = _lowered_error(plan, root / "model.onnx", _runnable(plan, root, lowered, chosen, space.scratch))
        if not error <= LOWERED_TOLERANCE:
            raise PrecisionError(
                found=f"a relative error of {error:.3g} in one step",
                wanted=f"at most {LOWERED_TOLERANCE}",
                where=f"lowered graph of target {target.name}",
                fix="run `vditc lower --verify` on model.onnx to see which pass changed the numbers",
            )
        passes = [dataclasses.asdict(p) for p in facts.passes]
        attention = chosen.attention or chosen.compute
        operators = plugin_operators(root / lowered)
        return {"passes": passes, "nodes": facts.nodes_after, "error": round(error, 6), "attention": attention, "operators": operators}

    facts = space.stage(f"lower {target.name}", run_lower, (lowered, f"{lowered}.data", "lowered/model.onnx.data"))
    # What was asked for is no part of a stage: a job that is resumed may ask otherwise.
    facts = facts | {"plugins": recorded(choice, target, facts["operators"])}
    if facts["attention"] != target.compute and target.fp16_keys is not None:
        progress.note(f"{target.name} computes attention in {facts['attention']}: {target.fp16_keys.says}")
    maker, folder = backend(target.backend), root / "engines" / target.name

    def run_copy() -> None:
        assert choice.library is not None
        with whole_file(root / library_in_bundle(target)) as temporary:
            shutil.copyfile(choice.library, temporary)
            if sha256(temporary) != choice.sha256:
                raise VditcError(
                    found="another library than when the job began",
                    wanted=f"sha256 {choice.sha256}",
                    where=str(choice.library),
                    fix="compile again, with --force",
                )

    if plugins := "library" in facts["plugins"]:
        space.stage(f"plugins {target.name}", run_copy, (library_in_bundle(target),))

    def run_build() -> dict[str, Any]:
        built = maker.build(
            lowered=root / lowered,
            target=target,
            profile=plan.profile,
            inputs=input_specs(root / lowered),
            out=folder,
            work=space.scratch / target.name,
            progress=progress,
            plugins=root / library_in_bundle(target) if plugins else None,
        )
        return built.to_json()

    engine = space.stage(f"build {target.name}", run_build, (f"engines/{target.name}/*",))
    return {
        "backend": target.backend,
        "built_in": target.name if target.built_in else None,
        "arch": list(target.arch),
        "runtime": target.runtime,
        "compute": target.compute,
        "attention": facts["attention"],
        "lowered": lowered,
        "inputs": _inputs(root / lowered),
        "memory": plan.memory[target.name].to_json(),  # estimated, bytes at the profile's largest sizes
        "plugins": facts["plugins"],
        "graph": _timeless({key: value for key, value in facts.items() if key != "plugins"}),
        "engine": _timeless(engine),
    }


def _check_keys(plan: Plan, target: Target, lowered: Path) -> None:
    """The work so far is worth keeping where attention has too many keys after all."""
    try:
        target.check_attention(float16_keys(lowered, plan.profile.largest), str(lowered))
    except InputError as error:
        raise PrecisionError(found=error.found, wanted=error.wanted, where=error.where, fix=error.fix) from error


def _runnable(plan: Plan, root: Path, lowered: str, target: Target, scratch: Path) -> Path:
    """The lowered graph, or the nearest that ONNX Runtime runs on a CPU.

    It has no kernels for bfloat16, and no masks that hold for all queries in the operator Attention: then what the same passes make in
    float32, or with attention in the type of the rest and in opset 21. It runs the bodies of plugin operators, which a target's graph may
    not have.
    """
    plugins = plan.plugins[target.name].library is not None
    if target.compute != "bf16" and target.attention is None and target.opset <= 21 and (target.functions or not plugins):
        return root / lowered
    wide = dataclasses.replace(
        target,
        compute="fp32" if target.compute == "bf16" else target.compute,
        attention=None,
        opset=21,
        quirks=tuple(q for q in target.quirks if q.functions),
    )
    out, time_path = scratch / target.name / f"{wide.compute}.onnx", plan.job.keep_time_path
    return lower(model=root / "model.onnx", target=wide, out=out, keep_time_path=time_path, plugins=plugins, progress=SILENT).files[0]


def _inputs(model: Path) -> list[Mapping[str, Any]]:
    return [{"name": i.name, "dtype": i.dtype, "dims": list(i.dims)} for i in input_specs(model)]


def _input_range(statistics: Mapping[str, Any], layer: str) -> dict[str, float] | None:
    """Greatest input of a layer over the calibration's steps, and how far its channels are apart; None if it was not observed."""
    seen = statistics.get("layers", {}).get(layer)
    return None if seen is None else {"absmax": max(seen["absmax_per_step"]), "channel_spread": seen["channel_spread"]}


def _timeless(facts: Any) -> Any:
    """Facts without what differs from run to run: that goes to report/run.json."""
    if isinstance(facts, dict):
        return {k: _timeless(v) for k, v in facts.items() if k not in ("seconds", "peak_rss_bytes")}
    return [_timeless(v) for v in facts] if isinstance(facts, list) else facts


def _lowered_error(plan: Plan, portable: Path, lowered: Path) -> float:
    """Relative error of the velocity of the middle step, from noise, lowered against portable graph."""
    sampled = plan.verified
    index, clip = sampled.steps // 2, sampled.clip(0)
    feeds = clip.feeds(sampled.scheduler, index, clip.start(sampled.scheduler), guided=False)
    want, got = (OnnxRuntimeModel(p)(feeds, index) for p in (portable, lowered))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def reference_trajectories(plan: Plan, folder: Path, progress: Progress) -> Trajectories:
    """Clips of the full-precision model."""
    return sample_clips(
        lambda: ReferenceModel(plan.model.adapter, plan.model.source, None, device=plan.job.device),
        plan.verified,
        folder,
        {"model": plan.model.source.digest, "precision": "full"},
        progress,
        "sample the full-precision model",
    )


def _verify(plan: Plan, space: Workspace, calibration: Calibration, progress: Progress) -> dict[str, Any]:
    """Quality numbers of the portable graph in ONNX Runtime, against the full-precision model."""
    reference = reference_trajectories(plan, plan.job.references or space.scratch / "references", progress)
    model = space.path / "model.onnx"
    ours = sample_clips(
        lambda: OnnxRuntimeModel(model),
        plan.verified,
        space.scratch / "clips",
        {"calibration": space.stages["calibrate"]["files"], "graph": space.stages["export"]["files"]},
        progress,
        f"sample {plan.job.recipe.name} in ONNX Runtime",
    )
    quality = compare(reference, ours, plan.verified.conditioning, plan.model.parts, plan.model.sampling.semantics)
    quality["layer_error"] = _layer_errors(plan, calibration, reference)
    clips = {"full_precision": reference.clips(plan.model.parts), "quantized": ours.clips(plan.model.parts)}
    write_tensors(space.path / CLIPS, clips)
    return quality


def _layer_errors(plan: Plan, calibration: Calibration, reference: Trajectories) -> dict[str, float]:
    """Relative output error of each layer on the full-precision inputs of the first, middle and last step of clip 0."""
    sampled = plan.verified
    steps, feeds, clip = sampled.steps, [], sampled.clip(0)
    for index in sorted({0, steps // 2, steps - 1}):
        before = clip.start(sampled.scheduler) if index == 0 else reference.latents[:1, index - 1]
        feeds.append((clip.feeds(sampled.scheduler, index, before, guided=False), index))
    found = layer_errors(sampled.adapter, sampled.source, calibration, feeds, device=plan.job.device)
    return {name: round(error, 6) for name, error in found.items()}
