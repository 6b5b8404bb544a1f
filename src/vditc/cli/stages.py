"""`vditc calibrate | export | build`: the stages alone, file in, file out. `lower` is in `vditc.cli.passes`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vditc.build_options import BuildOptions, check_targets
from vditc.cli.app import RichProgress, app, console, progress_of
from vditc.cli.build_bundle import (
    BuilderMemoryOption,
    ClusterOption,
    FallbackOption,
    JobsOption,
    RetryOption,
    SendOption,
    VerifyOption,
    WaitOption,
    build_bundle,
    refuse_options,
)
from vditc.cli.options import (
    ConditioningOption,
    DeviceOption,
    EngineOption,
    ForceOption,
    GuidanceOption,
    JsonOption,
    LoraOption,
    MemoryOption,
    ModelArg,
    OutOption,
    PartOption,
    ProfileOption,
    PromptsOption,
    RecipeOption,
    SegmentsOption,
    StepsOption,
    engine_texts,
    fresh,
    memory_bytes,
    read_prompts,
)
from vditc.errors import InputError
from vditc.recipe import Recipe
from vditc.target import Target


@app.command("calibrate")
def calibrate_command(
    model: ModelArg,
    recipe: RecipeOption,
    out: OutOption,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    prompts: PromptsOption = None,
    conditioning: ConditioningOption = None,
    part: PartOption = None,
    lora: LoraOption = None,
    device: DeviceOption = "auto",
    memory: MemoryOption = None,
    force: ForceOption = False,
) -> None:
    """Quantize the weights and observe activations on real trajectories; write calibration.safetensors.

    An interrupted run leaves OUT.work beside OUT and goes on from it when it is repeated. Under torchrun the ranks share the clips.
    """
    chosen, path, limit, given = Recipe.load(recipe), fresh(out, force), memory_bytes(memory), read_prompts(prompts)

    from vditc.calibrate.ranks import joined_ranks
    from vditc.calibrate.stage import calibrate
    from vditc.pipeline.opened import OpenedModel

    with joined_ranks() as ranks:
        opened = OpenedModel.open(model, part=part, loras=lora or (), steps=steps, guidance_scale=guidance)
        clips = opened.saved(conditioning) or opened.prompted(chosen.calibration_prompts, chosen.calibration_seed, given)
        work = path.with_name(path.name + ".work")
        result = calibrate(
            opened.sampled(clips),
            recipe=chosen,
            out=path,
            work=work,
            progress=progress_of(ranks.rank),
            device=device,
            memory=limit,
            ranks=ranks,
        )
    if result is None:
        return
    if work.exists() and not any(work.iterdir()):
        work.rmdir()
    say(f"wrote {path}: {len(result.layers)} layers quantized, {len(result.kept)} kept, {result.mean_bits:.2f} bits per weight")
    if result.attention:
        worst = max(result.attention, key=lambda name: result.attention[name].error)
        found = result.attention[worst]
        say(
            f"attention of {len(result.attention)} modules as {found.scheme}: relative error of the output at most {found.error:.2%}, "
            f"in {worst}; `vditc inspect {path}` has all"
        )


@app.command("export")
def export_command(
    model: ModelArg,
    out: OutOption,
    calibration: Annotated[Path | None, typer.Option("--calibration", help="what `vditc calibrate` wrote")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="instead: a recipe that needs no calibration data")] = None,
    lora: LoraOption = None,
    part: PartOption = None,
    steps: StepsOption = None,
    check: Annotated[bool, typer.Option("--check", help="compare the graph with the model in ONNX Runtime at three sizes")] = False,
    force: ForceOption = False,
) -> None:
    """Write the portable Q/DQ graph: OUT, OUT.data, and beside them OUT's map of weights for refitting, .refit.json.

    Give --calibration, or --recipe: weights are then quantized on their way from the checkpoint to OUT.data. The schedule that
    lowering precomputes the time path for is the calibration's, or that of the model's scheduler and --steps.
    """
    if (calibration is None) == (recipe is None):
        raise InputError(
            found="both" if recipe else "neither",
            wanted="--calibration FILE or --recipe RECIPE",
            where="vditc export",
            fix="give one of them; `vditc calibrate` writes the file",
        )
    chosen, path = Recipe.load(recipe) if recipe else None, fresh(out, force)
    fresh(path.with_name(f"{path.name}.data"), force)

    from vditc.calibration import Calibration
    from vditc.export.adapters.registry import adapter_for
    from vditc.export.refit import refit_file
    from vditc.export.stage import export_model
    from vditc.lora import Lora, fuse
    from vditc.model_dir import ModelDir
    from vditc.pipeline.components import model_schedule

    fresh(refit_file(path), force)
    if check:
        import vditc.pipeline.check_export  # noqa: F401 # what it needs is missed before any work

    source = fuse(ModelDir.open(model, part), [Lora.parse(text) for text in lora or ()])
    adapter = adapter_for(source)
    codes: Calibration | Callable[[], Calibration]
    if chosen is not None:
        from vditc.calibrate.stage import uncalibrated

        codes = uncalibrated(source=source, adapter=adapter, recipe=chosen)
    else:
        assert calibration is not None
        codes = Calibration.load(calibration)
    progress = RichProgress()
    own = codes.schedule if isinstance(codes, Calibration) else None
    if own is not None and steps not in (None, len(own.timesteps)):
        raise InputError(
            found=f"--steps {steps}", wanted=f"{len(own.timesteps)}, as in {calibration}", where="vditc export", fix="leave --steps out"
        )
    schedule = own or model_schedule(source, steps, progress)
    facts = export_model(source=source, adapter=adapter, calibration=codes, schedule=schedule, out=path, progress=progress)
    kinds = ", ".join(f"{count} layers {scheme}" for scheme, count in facts.layers.items()) or "no layer quantized"
    say(f"wrote {path}: {facts.nodes} nodes, {kinds}; graph {facts.graph_bytes / 1e6:.1f} MB, weights {facts.data_bytes / 1e9:.2f} GB")
    if check:
        from vditc.pipeline.check_export import check_export

        known = codes if isinstance(codes, Calibration) else codes()
        for parity in check_export(path, source=source, adapter=adapter, calibration=known, progress=RichProgress()):
            sizes = ", ".join(f"{axis} {size}" for axis, size in parity.sizes.items())
            say(f"checked at {sizes}: relative distance {parity.distance:.1e} of at most {parity.tolerance:g}")


@app.command("build")
def build_command(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|LOWERED.onnx", help="a bundle, or one graph that `vditc lower` wrote")],
    target: Annotated[
        list[str] | None, typer.Option("--target", help="built-in target or a .toml file; of a bundle several, or `all` that it has")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="what to write; a bundle keeps its engines itself")] = None,
    profile: ProfileOption = "",
    plugins: Annotated[
        Path | None,
        typer.Option("--plugins", metavar="LIB", help="plugin library, or folder with it [default: VDITC_PLUGINS, or the cache]"),
    ] = None,
    engine: EngineOption = None,
    segments: SegmentsOption = None,
    jobs: JobsOption = None,
    memory: BuilderMemoryOption = None,
    cluster: ClusterOption = None,
    send: SendOption = False,
    wait: WaitOption = None,
    retry_failed: RetryOption = False,
    fallback: FallbackOption = False,
    verify: VerifyOption = True,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build the engine of a lowered graph into the folder OUT, or all engines of a bundle. Needs no PyTorch.

    Of a bundle every part is built for every --target, those that it was not compiled for as well; the engines go into the bundle.
    Repeated, the command goes on with what is not done; without --target it takes the targets of the time before (docs/datacenter.md).

    A graph with operators of the plugin library (`vditc lower --plugins`) needs the library; so does its engine when it runs.
    """
    said = engine_texts(engine, segments)
    many = {"--jobs": jobs, "--memory": memory, "--cluster": cluster, "--send": send, "--wait": wait, "--retry-failed": retry_failed}
    many["--fallback"] = fallback
    if source.is_dir():
        refuse_options({"-o": out, "--profile": profile, "--plugins": plugins}, f"{source}, a bundle", "has its own; leave it out")
        build_bundle(
            source,
            tuple(target or ()),
            engine=said,
            jobs=jobs,
            memory=memory,
            cluster=cluster,
            send=send,
            wait=wait,
            retry_failed=retry_failed,
            fallback=fallback,
            verify=verify,
            force=force,
            as_json=as_json,
        )
        return
    refuse_options(many, f"{source}, one graph", "is for bundles; leave it out")
    if out is None or len(target or ()) != 1:
        raise InputError(
            found=f"{len(target or ())} targets and {'no' if out is None else 'an'} -o",
            wanted="one --target and -o OUT",
            where=f"vditc build {source}",
            fix="say both; a bundle takes several targets, and needs no -o",
        )
    assert target is not None
    lowered, chosen, path = source, Target.load(target[0]), fresh(out, force, folder=True)
    check_targets(said, [chosen.name])
    options = BuildOptions.for_target(said, chosen.name)

    from vditc.files import sha256
    from vditc.pipeline.build_engine import build_alone
    from vditc.pipeline.plugin_choice import plugin_operators
    from vditc.pipeline.plugin_library import find_library
    from vditc.profile import Profile
    from vditc.runtimes.attention_keys import float16_keys
    from vditc.runtimes.graph_inputs import graph_sizes

    ranges = Profile.parse(profile, Profile({}), graph_sizes(lowered))
    chosen.check_attention(float16_keys(lowered, ranges.largest), f"{lowered} at the largest sizes of --profile")
    operators = plugin_operators(lowered) if chosen.backend != "onnxruntime" else {}
    library = find_library(chosen, plugins) if operators or plugins is not None else None
    facts = build_alone(
        lowered=lowered,
        out=path,
        target=chosen,
        profile=ranges,
        work=path.with_name(path.name + ".work"),
        progress=RichProgress(),
        library=library if operators else None,
        options=options,
    )
    result: dict[str, Any] = facts.to_json() | ({"options": options.to_json()} if options.asked else {})
    if library is not None and operators:
        result["plugin_library"] = {"path": str(library), "sha256": sha256(library)}
    if as_json:
        print(json.dumps(result))
    else:
        console.print_json(json.dumps(result))


def say(text: str) -> None:
    """One line on stdout, exactly as given."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
