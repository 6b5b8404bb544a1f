"""The main job: a model directory becomes a bundle."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vditc.adapter import InputSpec
from vditc.axis import CLIP
from vditc.build_memory import check_build_memory
from vditc.build_options import BuildOptions, check_targets
from vditc.bundle import CLIPS, Bundle, FileEntry, Manifest, list_files, rung_text, write_manifest
from vditc.calibrate.methods.registry import method_for
from vditc.calibrate.stage import calibrate
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError, PrecisionError, VditcError
from vditc.export.stage import export_model
from vditc.files import data_digest, sha256, whole_file, write_text
from vditc.graph_passes.core import Pass
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.graph_passes.stage import LowerFacts, lower
from vditc.memory import Memory, attention_keys, model_memory
from vditc.model_dir import PARTS, ModelDir
from vditc.pipeline.build_engine import build_engine
from vditc.pipeline.comparable import portable_twin, runnable_twin
from vditc.pipeline.experts import FULL_PRECISION, Walker, full_precision, own_steps, sample_experts
from vditc.pipeline.fallback import Ladder, check_refusals
from vditc.pipeline.job import Job
from vditc.pipeline.manifest_facts import graph_inputs, input_range, timeless
from vditc.pipeline.opened import TRANSFORMER, OpenedModel
from vditc.pipeline.plugin_choice import (
    PluginChoice,
    attention_left,
    check_mode,
    choose_plugins,
    library_in_bundle,
    plugin_operators,
    recorded,
)
from vditc.pipeline.quality import check_gate, refuse
from vditc.pipeline.verify_clips import verify_clips
from vditc.profile import Profile, Range
from vditc.progress import SILENT, Progress
from vditc.runtimes.attention_keys import float16_keys
from vditc.runtimes.onnxruntime import OnnxRuntimeModel
from vditc.runtimes.registry import backend
from vditc.sampled_model import SampledModel
from vditc.schedule import Schedule
from vditc.segments import check_count
from vditc.target import Target
from vditc.workspace import Workspace

# Relative error of one step's velocity, lowered against portable graph. float16 keeps 11 bits, and every INT8 code that its
# rounding flips costs 1/127 of a token's range; more than a few hundredths means a wrong graph, not rounding.
LOWERED_TOLERANCE = 0.05
# Seeds of the verified clips start here, far from those of the calibration prompts.
VERIFY_SEED = 1_000


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
    options: Mapping[str, BuildOptions]  # target -> how its engine is built; no part of the digest, but of the stage that builds
    before: tuple[Plan, ...] = ()  # experts that walk the steps before its own

    def walking(self, steps: range) -> Plan:
        """For some of the steps alone. What a solver of several steps remembers would be lost between experts, so the table walks."""
        own = (dataclasses.replace(s, scheduler=s.scheduler.part(steps), solver=None) for s in (self.calibrated, self.verified))
        calibrated, verified = own
        return dataclasses.replace(self, calibrated=calibrated, verified=verified)

    @property
    def folder(self) -> str:
        """Of its bundle in that of the whole model."""
        return self.model.source.part if self.before else ""

    def int8_attention(self, target: Target) -> QuantizeAttention | None:
        """The pass for attention that goes to the plugin library, where any does."""
        return QuantizeAttention.asked(self.job.recipe.attention, self.profile.largest) if self.plugins[target.name].scores else None

    @property
    def made_of(self) -> dict[str, Any]:
        """Everything that the bundle's bytes depend on."""
        job = self.job
        return {
            "model": self.model.source.digest,
            "recipe": job.recipe.digest,
            "targets": [dataclasses.asdict(t) for t in job.targets],
            "profile": self.profile.to_json(),
            "keep_time_path": job.keep_time_path,
            "plugins": {name: choice.sha256 for name, choice in self.plugins.items()},
            "sampling": dataclasses.asdict(self.model.sampling),
            "parts": self.model.exported.digest,
            "solver": self.model.solver.to_json(),
            "clips": [s.conditioning.digest() for s in (self.calibrated, self.verified)],
            "vditc": importlib.metadata.version("vditc"),
            **{f"expert {plan.model.source.part}": plan.digest for plan in self.before},
        }

    @property
    def digest(self) -> str:
        """Of `made_of`."""
        return data_digest(self.made_of)

    @property
    def about(self) -> dict[str, str]:
        """`made_of` in words, part by part; what is long is its digest."""
        made_of = {name: part if isinstance(part, str | bool) else data_digest(part) for name, part in self.made_of.items()}
        words = {name: str(part)[:12] for name, part in made_of.items() if name != "plugins"}
        names = ", ".join(target.name for target in self.job.targets)
        words |= {"recipe": f"{self.job.recipe.name} ({words['recipe']})", "targets": f"{names} ({words['targets']})"}
        return words | {f"plugins of {name}": choice.words for name, choice in self.plugins.items()}


def prepare(job: Job, progress: Progress = SILENT) -> Plan:
    """Check everything that can be checked before any work; InputError for what is wrong. `--plugins on` may build the plugin library."""
    if len({t.name for t in job.targets}) != len(job.targets) or not job.targets:
        names = [t.name for t in job.targets]
        raise InputError(found=f"targets {names}", wanted="at least one, each once", where="--target", fix="see `vditc targets`")
    if job.clips < 1:
        raise InputError(found=f"{job.clips} clips", wanted="at least 1", where="--clips", fix="raise it")
    model = OpenedModel.open(
        job.model_dir,
        part=job.part,
        loras=job.loras,
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        size=job.size,
        choice=job.exported,
    )
    source, adapter = model.source, model.adapter
    method = method_for(job.recipe.method, job.recipe.settings, f"recipe {job.recipe.name}")
    schemes = {name: rule.scheme for name, rule in job.recipe.assign(adapter.layer_roles(source)).items()}
    check_targets(job.engine, [t.name for t in job.targets])
    options = {t.name: BuildOptions.for_target(job.engine, t.name) for t in job.targets}
    without = check_mode(job.plugins) == "off"
    for target in job.targets:
        if not job.fallback:
            target.check(job.recipe, plugins=not without)  # once more when it is known where there is a library
        backend(target.backend).check(target, options[target.name])
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
    for target in job.targets:
        said = options[target.name]
        check_count(said.segments, adapter.layer_roles(source), f"target {target.name}")
        if said.segments is None and backend(target.backend).builds_here(target):  # the greatest segment is known when the graph is cut
            check_build_memory(memory[target.name].builder, said.memory, f"building for {target.name}", progress)
    plugins = choose_plugins(job.plugins, job.targets, job.recipe, progress, fallback=job.fallback)
    verified = model.sampled(verify_set, solved=True)
    return Plan(job, model, profile, memory, model.sampled(calibration_set), verified, plugins, options)


def prepare_experts(job: Job, progress: Progress = SILENT) -> tuple[Plan, ...]:
    """`prepare` for each expert of a model, in the order in which they walk, with its own steps; for one transformer, that alone."""
    given = {"--recipe-2": job.recipe_2, "--guidance-2": job.guidance_scale_2, "--lora-2": job.loras_2 or None}
    if job.part is not None or len(ModelDir.parts_in(job.model_dir)) == 1:
        if told := [option for option, value in given.items() if value is not None]:
            raise InputError(
                found=f"{', '.join(told)} for one transformer",
                wanted="a model of two experts, and no --part",
                where=str(job.model_dir),
                fix=f"leave {' and '.join(told)} out",
            )
        return (prepare(job, progress),)
    first = prepare(dataclasses.replace(job, part=PARTS[0]), progress)
    follows = job.guidance_scale_2 is None and first.model.sampling.guidance_scale_2 is None
    second = prepare(
        dataclasses.replace(
            job,
            part=PARTS[1],
            exported=TRANSFORMER,  # the parts are the first one's
            recipe=job.recipe_2 or job.recipe,
            guidance_scale=job.guidance_scale if follows else job.guidance_scale_2,
            loras=job.loras_2,
        ),
        progress,
    )
    if first.verified.specs != second.verified.specs:
        raise InputError(
            found="experts that take different inputs",
            wanted="the same latents and encodings for both",
            where=str(job.model_dir),
            fix="compile each of them alone: --part transformer, --part transformer_2",
        )
    begin, rest = own_steps(first.model.source, first.verified.scheduler)
    first, second = first.walking(begin), second.walking(rest)
    return first, dataclasses.replace(second, before=(first,))


def _default_profile(own: Profile, given: Conditioning | None, specs: tuple[InputSpec, ...]) -> Profile:
    """The model's own, for texts (and what else is not the clip's size) as long as the saved ones: an engine should serve those."""
    told = {} if given is None else given.sizes(specs)
    return Profile({**own.axes, **{axis: Range(n, n, n) for axis, n in told.items() if axis in own.axes and axis not in CLIP}})


def compile_bundle(job: Job, progress: Progress) -> Bundle:
    """Run every stage and return the finished bundle.

    InputError leaves nothing behind. Any other failure leaves `OUT.partial`, from which `resume` goes on.
    """
    plans = prepare_experts(job, progress)
    space = Workspace.start(job.out, plans[-1].digest, plans[-1].about, resume=job.resume, force=job.force)
    try:
        return _run(plans, space, progress)
    except InputError:
        space.discard()
        raise


@dataclasses.dataclass(frozen=True)
class _Made:
    """A transformer that is calibrated, exported, lowered and built."""

    plan: Plan
    space: Workspace
    calibration: Calibration
    graph: Mapping[str, Any]
    targets: Mapping[str, Any]


def _run(plans: Sequence[Plan], space: Workspace, progress: Progress) -> Bundle:
    """One expert after the other, then the clips that all of them sample together."""
    first, job = plans[0], plans[0].job
    for note in first.model.exported.notes:
        progress.note(note)
    made = [_make(plan, space.within(plan.folder), progress) for plan in plans]
    first.model.parts.copy_to(space.path / "components")
    shape = first.verified.conditioning.latent_shape[1:]
    exported = first.model.exported.compile(space, [(t, first.options[t.name]) for t in job.targets], first.profile, shape, progress)
    components = [p.relative_to(space.path).as_posix() for p in sorted((space.path / "components").rglob("*")) if p.is_file()]
    verified = space.stage("verify", lambda: _verify(made, space, progress), (CLIPS,))
    quality, schedule = verified["quality"], first.model.walk(first.verified.conditioning.latent_shape[1:]).schedule
    gates = []
    for one, own in zip(made, quality, strict=True):
        recipe = one.plan.job.recipe
        gates.append(gate := {**check_gate(recipe.gate, own), "enforced": job.gate})
        if job.gate:
            refuse(gate, f"recipe {recipe.name}", f"choose another recipe, or --resume --no-gate to finish {job.out} all the same")
    inner: dict[str, Manifest] = {}
    for one, own, gate in zip(made[1:], quality[1:], gates[1:], strict=True):
        inner[one.plan.folder] = _manifest(one, own, gate, one.plan.verified.scheduler, list_files(one.space.path))
        write_manifest(one.space.path, inner[one.plan.folder])
    files = list_files(space.path, inner)
    manifest = _manifest(made[0], quality[0], gates[0], schedule, files, components, verified["step_cache"])
    manifest = dataclasses.replace(manifest, components=exported)
    if inner:
        manifest = _with_experts(manifest, plans)
    write_manifest(space.path, manifest)
    write_text(space.path / "report" / "run.json", json.dumps({"stages": space.stages}, indent=1, sort_keys=True) + "\n")
    space.finish()
    return Bundle(job.out, manifest)


def _make(plan: Plan, space: Workspace, progress: Progress) -> _Made:
    job, root = plan.job, space.path
    source, adapter = plan.model.source, plan.model.adapter

    def run_calibrate() -> None:
        calibrate(
            _begun(plan, space, progress),
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

    graph = timeless(space.stage("export", run_export, ("model.onnx*", "model.refit.json")))
    targets = {t.name: _target(plan, space, t, calibration, progress) for t in job.targets}
    return _Made(plan, space, calibration, graph, targets)


def _manifest(
    made: _Made,
    quality: Mapping[str, Any],
    gate: Mapping[str, Any],
    schedule: Schedule,
    files: Mapping[str, FileEntry],
    components: Sequence[str] = (),
    step_cache: Mapping[str, Any] | None = None,
) -> Manifest:
    """Of one transformer; `schedule` is what the bundle's clips walk."""
    plan, calibration, root = made.plan, made.calibration, made.space.path
    job, source, sampling = plan.job, plan.model.source, plan.model.sampling
    return Manifest(
        vditc=importlib.metadata.version("vditc"),
        model={
            "class": source.model_class,
            "adapter": plan.model.adapter.name,
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
                "input": input_range(calibration.statistics, name),
            }
            for name, layer in calibration.layers.items()
        },
        kept={name: {"role": k.role, "reason": k.reason} for name, k in calibration.kept.items()},
        mean_bits=round(calibration.mean_bits, 4),
        sampling={
            "steps": len(schedule.timesteps),
            "guidance_scale": sampling.guidance_scale,
            "semantics": sampling.semantics,
            "extra_channels": sampling.extra_channels,
            "fps": plan.model.exported.fps,
            "latent_shape": list(plan.verified.conditioning.latent_shape),
            "schedule": schedule.to_json(),
            "solver": plan.model.solver.to_json(),
            **({} if step_cache is None else {"step_cache": step_cache}),
        },
        inputs=graph_inputs(root / "model.onnx"),
        profile=plan.profile.to_json(),
        graph=made.graph,
        targets=made.targets,
        quality=quality,
        gate=gate,
        tools={name: importlib.metadata.version(name) for name in ("numpy", "torch", "diffusers", "onnx", "onnx-ir", "onnxruntime")},
        files=files,
    )


def _with_experts(manifest: Manifest, plans: Sequence[Plan]) -> Manifest:
    """What the bundle of `transformer` says of the other expert."""
    first, second = plans
    told = first.job.guidance_scale_2 is not None or first.model.sampling.guidance_scale_2 is not None
    scale = {"guidance_scale_2": second.model.sampling.guidance_scale} if told else {}
    about = {"path": second.folder, "boundary": first.model.source.boundary_ratio, "first_step": second.verified.scheduler.first}
    return dataclasses.replace(manifest, sampling={**manifest.sampling, **scale}, experts={second.folder: about})


def _target(plan: Plan, space: Workspace, target: Target, calibration: Calibration, progress: Progress) -> dict[str, Any]:
    """Lower for one target and build; returns what the manifest says of it. With a fallback, again and again until every layer landed."""
    if not plan.job.fallback:
        return _attempt(plan, space, target, (), progress)
    ladder = Ladder.start(target, calibration, space.scratch / target.name / "fallback.json", plugins=plan.plugins[target.name].layers)
    for step in ladder.recorded:
        progress.note(f"{target.name}: {rung_text(step)}")
    while True:
        try:
            made = _attempt(plan, space, target, ladder.passes(), progress)
        except PrecisionError as error:
            if not error.layers:
                raise
            for step in ladder.step(error.layers):
                progress.note(f"{target.name}: {rung_text(step)}")
            continue
        return made | ({"fallback": ladder.recorded} if ladder.taken else {})


def _attempt(plan: Plan, space: Workspace, target: Target, fallback: tuple[Pass, ...], progress: Progress) -> dict[str, Any]:
    """One lowering and one build, with `fallback` in front of the target's passes; PrecisionError names the layers that did not land."""
    job, root, lowered = plan.job, space.path, f"lowered/{target.name}.onnx"
    choice, options, rungs = plan.plugins[target.name], plan.options[target.name], [str(one) for one in fallback]
    if choice.lacking:
        progress.note(f"{target.name} without plugins: {choice.reason}")
    attention = plan.int8_attention(target)

    def run_lower() -> dict[str, Any]:
        def lower_for(chosen: Target) -> LowerFacts:
            return lower(
                model=root / "model.onnx",
                target=chosen,
                out=root / lowered,
                keep_time_path=job.keep_time_path,
                plugins=choice.layers,
                attention=attention,
                first=fallback,
                progress=progress,
            )

        facts = lower_for(chosen := target)
        check_refusals(facts.passes[: len(fallback)], target)
        # `prepare` has counted tokens; a model may give attention more than those.
        if (wider := target.for_keys(float16_keys(root / lowered, plan.profile.largest))) != target:
            facts = lower_for(chosen := wider)
        _check_keys(plan, chosen, root / lowered)
        model, scratch = root / "model.onnx", space.scratch / target.name
        runs = runnable_twin(
            model,
            root / lowered,
            chosen,
            scratch,
            choice=choice,
            keep_time_path=job.keep_time_path,
            attention=attention,
            fallback=fallback,
        )
        error = _lowered_error(plan, portable_twin(model, rungs, scratch), runs)
        if not error <= LOWERED_TOLERANCE:
            raise PrecisionError(
                found=f"a relative error of {error:.3g} in one step",
                wanted=f"at most {LOWERED_TOLERANCE}",
                where=f"lowered graph of target {target.name}",
                fix="run `vditc lower --verify` on model.onnx to see which pass changed the numbers",
            )
        passes = [dataclasses.asdict(p) for p in facts.passes]
        return {
            "passes": passes,
            "nodes": facts.nodes_after,
            "error": round(error, 6),
            "attention": chosen.attention or chosen.compute,
            "operators": plugin_operators(root / lowered),
            "attention_left": attention_left(facts.passes),
        }

    outputs = (lowered, f"{lowered}.data", "lowered/model.onnx.data")
    facts = space.stage(f"lower {target.name}", run_lower, outputs, key=rungs or None)
    # What was asked for is no part of a stage: a job that is resumed may ask otherwise.
    facts = facts | {"plugins": recorded(choice, target, facts["operators"], facts["attention_left"])}
    if "attention" in facts["plugins"]:
        progress.note(f"{target.name} computes attention in {facts['plugins']['attention']['computed']}")
    if facts["attention"] != target.compute and target.fp16_keys is not None:
        progress.note(f"{target.name} computes attention in {facts['attention']}: {target.fp16_keys.says}")

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
    library = root / library_in_bundle(target) if plugins else None

    def run_build() -> dict[str, Any]:
        return build_engine(
            root=root,
            folder=root / "engines" / target.name,
            lowered=root / lowered,
            target=target,
            profile=plan.profile,
            work=space.scratch / target.name,
            progress=progress,
            library=library,
            options=options,
            memory=plan.memory[target.name],
        ).to_json()

    made = (f"engines/{target.name}/*", f"lowered/{target.name}.segment_*.onnx")
    engine = space.stage(f"build {target.name}", run_build, made, key=[options.to_json(), rungs])
    return {
        "backend": target.backend,
        "built_in": target.name if target.built_in else None,
        "arch": list(target.arch),
        "runtime": target.runtime,
        "compute": target.compute,
        "attention": facts["attention"],
        "lowered": lowered,
        "inputs": graph_inputs(root / lowered),
        "memory": plan.memory[target.name].to_json(),  # estimated, bytes at the profile's largest sizes
        "plugins": facts["plugins"],
        "graph": timeless({key: value for key, value in facts.items() if key not in ("plugins", "attention_left")}),
        "build": options.to_json(),
        "engine": timeless(engine),
    }


def _check_keys(plan: Plan, target: Target, lowered: Path) -> None:
    """The work so far is worth keeping where attention has too many keys after all."""
    try:
        target.check_attention(float16_keys(lowered, plan.profile.largest), str(lowered))
    except InputError as error:
        raise PrecisionError(found=error.found, wanted=error.wanted, where=error.where, fix=error.fix) from error


def _lowered_error(plan: Plan, portable: Path, lowered: Path) -> float:
    """Relative error of the velocity of the middle step, from noise, lowered against portable graph."""
    sampled = plan.verified
    index, clip = sampled.steps // 2, sampled.clip(0)
    feeds = clip.feeds(sampled.scheduler, index, clip.start(sampled.scheduler), guided=False)
    want, got = (OnnxRuntimeModel(p)(feeds, index) for p in (portable, lowered))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _begun(plan: Plan, space: Workspace, progress: Progress) -> SampledModel:
    """What the calibration samples: clips that full-precision experts before this one have begun."""
    if not plan.before:
        return plan.calibrated
    clips = plan.calibrated.conditioning
    walkers = [full_precision(dataclasses.replace(one.calibrated, conditioning=clips), plan.job.device) for one in plan.before]
    before = sample_experts(walkers, _references(plan.job, space), progress, FULL_PRECISION)
    return dataclasses.replace(plan.calibrated, starts=before[-1].latents[:, -1])


def _references(job: Job, space: Workspace) -> Path:
    return job.references or space.within("").scratch / "references"


def _verify(made: Sequence[_Made], space: Workspace, progress: Progress) -> dict[str, Any]:
    """Quality numbers of the portable graphs in ONNX Runtime, for each one's manifest, and a step cache."""
    first = made[0].plan
    return verify_clips(
        [_walker(one) for one in made],
        [one.calibration for one in made],
        first.model.parts,
        first.model.sampling.semantics,
        references=_references(first.job, space),
        work=space.scratch / "clips",
        out=space.path / CLIPS,
        title=f"sample {first.job.recipe.name} in ONNX Runtime",
        device=first.job.device,
        progress=progress,
    )


def _walker(made: _Made) -> Walker:
    key = {"calibration": made.space.written_by("calibrate"), "graph": made.space.written_by("export")}
    return Walker(made.plan.verified, lambda: OnnxRuntimeModel(made.space.path / "model.onnx"), key)
