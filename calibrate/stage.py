"""The calibrate stage: model directory and recipe in, calibration file out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vditc.adapter import ModelAdapter, of_time_path
from vditc.attention import AttentionCalibration
from vditc.calibrate.groups import Groups, forget_groups, layer_weight
from vditc.calibrate.leftovers import START, forget_training
from vditc.calibrate.methods.base import InputStatistics, Method, TrainedMethod, TrainingJob
from vditc.calibrate.methods.registry import method_for
from vditc.calibrate.quantize_groups import quantize_groups
from vditc.calibrate.ranks import Ranks
from vditc.calibrate.sharding import asked
from vditc.calibrate.trajectories import Trajectories
from vditc.calibration import Calibration, Kept, LayerCalibration
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.numerics import short
from vditc.progress import Progress
from vditc.recipe import Recipe, Rule
from vditc.sampled_model import SampledModel
from vditc.scheme import Scheme, scale_shape
from vditc.torch_device import torch_device

ALONE = Ranks()


def calibrate(
    sampled: SampledModel,
    *,
    recipe: Recipe,
    out: Path,
    work: Path,
    progress: Progress,
    device: str = "cpu",
    memory: int | None = None,
    ranks: Ranks = ALONE,
) -> Calibration | None:
    """Quantize the layers that `recipe` names and write the calibration file `out`; also returns it, on rank 0.

    Every rule is checked against every layer before any work. The model is sampled (on `device`: auto, cpu or cuda[:N]) only
    if a layer needs statistics: a copy of it in float32 is held, or, where that is more than `memory` bytes (by default half of what is
    free), one block of it; and one clip's activations. Weights are quantized group by group, two in memory at a time. `ranks` share
    the clips, rank 0 quantizes. A killed run goes on from the files in `work`; the same inputs give the same bytes.

    Raises InputError when the recipe does not fit the model, the clips do not fit it or make it compute what is not finite, or the
    device is not there.
    """
    chosen, source, adapter = torch_device(ranks.device(device)), sampled.source, sampled.adapter
    adapter.check(source)
    method, roles, rules, schemes = _schemes(source, adapter, recipe)
    sharding = asked() if isinstance(method, TrainedMethod) else None

    # Dynamic scales need no range, but the file records it all the same: it tells what a static scale would cost a layer.
    wanted = {layer for layer, scheme in schemes.items() if scheme.activation is not None or method.needs_statistics(scheme)}
    wanted |= {layer for layer in roles if method.watches(roles[layer]) and len(source.weights[f"{layer}.weight"].shape) == 2}
    observed = {layer: source.weights[f"{layer}.weight"].shape[1] for layer in roles if layer in wanted}
    groups: list[tuple[str, ...]] = [(layer,) for layer in schemes if layer not in observed]
    statistics: dict[str, InputStatistics] = {}
    trajectories = Trajectories(
        sampled=sampled,
        recipe_digest=recipe.digest,
        device=chosen,
        work=work,
        ranks=ranks,
        rows=method.rows,
        bounds=method.bounds,
        memory=memory,
        attention=recipe.attention,
    )
    attention: dict[str, AttentionCalibration] = {}
    if observed or recipe.attention is not None or isinstance(method, TrainedMethod):
        sampled.check()
    if observed or recipe.attention is not None:
        if (seen := trajectories.observe(observed, progress)) is not None:
            groups += [own for group in seen.observers.groups() if (own := tuple(layer for layer in group if layer in schemes))]
            statistics = {n: dataclasses.replace(seen.observers.statistics(n), temporal=of_time_path(roles[n])) for n in observed}
            attention = {} if seen.attention is None else seen.attention.result()
    else:
        progress.note(f"recipe {recipe.name} needs no calibration data: no clip is sampled")

    def whole(layers: Mapping[str, LayerCalibration], report: Mapping[str, Any]) -> Calibration:
        return Calibration(
            model_class=source.model_class,
            model_digest=source.digest,
            recipe=recipe.name,
            recipe_digest=recipe.digest,
            method=recipe.method,
            schedule=sampled.scheduler,
            guidance_scale=sampled.guidance_scale,
            layers=layers,
            kept=_kept(source, roles, rules),
            statistics=report,
            latent_frames=sampled.conditioning.latent_shape[1] if any(c.correction.frames is not None for c in layers.values()) else None,
            attention=attention,
        )

    report = _report(statistics, len(sampled.conditioning)) if observed else {}
    if statistics:
        report |= method.report(statistics, {layer: layer_weight(source, layer) for layer in statistics}, schemes)
    layers: dict[str, LayerCalibration] = {}
    start = work / START
    with ranks.together():
        if ranks.first:
            schemes, chosen_by = method.choose(trajectories, groups, statistics, schemes, roles, progress)
            report |= chosen_by
            how = Groups(source=source, method=method, schemes=schemes, roles=roles)
            layers, noted = quantize_groups(how, groups, statistics, trajectories, progress, observed=bool(observed))
            report |= noted
            if isinstance(method, TrainedMethod):
                whole(layers, report).save(start)
    if isinstance(method, TrainedMethod):
        job = TrainingJob(
            sampled=sampled,
            start=Calibration.load(start).layers,
            run=trajectories.run(),
            memory=memory,
            device=chosen,
            work=work,
            ranks=ranks,
            sharding=sharding if ranks.size > 1 else None,
            progress=progress,
        )
        with ranks.together(), ranks.group():
            done, report["training"] = method.train(job)
            layers = {n: LayerCalibration(role=roles[n], scheme=schemes[n], **found._asdict()) for n, found in done.items()}
    with ranks.together():
        if ranks.first:
            with progress.task("quantize weights", len(layers)) as advance:
                whole(layers, report).save(out, advance)
            forget_groups(work)
            forget_training(work)
    trajectories.forget()
    return Calibration.load(out) if ranks.first else None


def uncalibrated(*, source: ModelDir, adapter: ModelAdapter, recipe: Recipe) -> Callable[[], Calibration]:
    """The calibration of a recipe that needs no data, in no file: weights are quantized when they are read. No model is run.

    Everything is checked now; the call of the result waits for the checkpoint's digest. InputError when the recipe does not fit
    the model, or has static activations. There is no schedule in it, and no statistics.
    """
    method, roles, rules, schemes = _schemes(source, adapter, recipe)
    fix = f"run `vditc calibrate {source.path} --recipe {recipe.name} -o calibration.safetensors`, then export with --calibration"
    if needy := [layer for layer, scheme in schemes.items() if isinstance(method, TrainedMethod) or method.needs_statistics(scheme)]:
        raise InputError(
            found=f"{len(needy)} layers that need calibration data, first {needy[0]}",
            wanted="a recipe that needs none: plain rounding, with dynamic activations or none",
            where=f"recipe {recipe.name}",
            fix=fix,
        )
    if recipe.attention is not None:
        raise InputError(
            found="[attention], which is calibrated on data",
            wanted="a recipe without it",
            where=f"recipe {recipe.name}",
            fix=fix,
        )
    layers: dict[str, LayerCalibration] = {}
    groups = Groups(source=source, method=method, schemes=schemes, roles=roles)
    for layer in schemes:
        layers |= groups.quantize((layer,), None)
    return lambda: Calibration(
        model_class=source.model_class,
        model_digest=source.digest,
        recipe=recipe.name,
        recipe_digest=recipe.digest,
        method=recipe.method,
        schedule=None,
        guidance_scale=None,
        layers=layers,
        kept=_kept(source, roles, rules),
        statistics={},
    )


def _schemes(source: ModelDir, adapter: ModelAdapter, recipe: Recipe) -> tuple[Method, dict[str, str], dict[str, Rule], dict[str, Scheme]]:
    """Method, and by layer: role, rule and, where it is quantized, scheme. InputError for a rule that does not fit a layer."""
    method = method_for(recipe.method, recipe.settings, f"recipe {recipe.name}")
    roles = adapter.layer_roles(source)
    rules = recipe.assign(roles)
    schemes = {layer: rule.scheme for layer, rule in rules.items() if rule.scheme is not None}
    for layer, scheme in schemes.items():
        shape = source.weights[f"{layer}.weight"].shape
        check_layer(method, scheme, shape, f"recipe {recipe.name}, layer {layer} (role {roles[layer]})")
    method.check_layers(schemes, roles)
    return method, roles, rules, schemes


def _kept(source: ModelDir, roles: Mapping[str, str], rules: Mapping[str, Rule]) -> dict[str, Kept]:
    return {
        layer: Kept(role=roles[layer], reason=rule.keep, shape=source.weights[f"{layer}.weight"].shape)
        for layer, rule in rules.items()
        if rule.keep
    }


def check_layer(method: Method, scheme: Scheme, shape: tuple[int, ...], where: str) -> None:
    """InputError, at `where`, when a weight of this shape cannot be quantized so."""
    if len(shape) != 2:
        raise InputError(
            found=f"a weight of shape {list(shape)}",
            wanted="a linear weight [N, K]: convolutions stay in floating point",
            where=where,
            fix="give this layer a rule with keep",
        )
    if scheme.weight.qtype.bits <= 4 and shape[0] * shape[1] % 2:
        raise InputError(
            found=f"{shape[0]} x {shape[1]} weights in {scheme.weight.qtype.value}",
            wanted="an even number: two codes share a byte",
            where=where,
            fix="use int8, or give this layer a rule with keep",
        )
    try:
        scale_shape(shape, scheme.weight)
        method.check(scheme)
    except InputError as error:
        raise InputError(found=error.found, wanted=error.wanted, where=f"{where}: {error.where}", fix=error.fix) from error


def _report(statistics: Mapping[str, InputStatistics], clips: int) -> dict[str, Any]:
    """Plain data for people: per layer the range at every step, and how much the widest channel exceeds the median one."""
    layers = {}
    for name, seen in statistics.items():
        median = float(np.median(seen.channels))
        layers[name] = {
            "absmax_per_step": [short(v) for v in seen.absmax],
            "channel_spread": short(float(seen.channels.max()) / median) if median else None,
        }
    return {"clips": clips, "layers": layers}
