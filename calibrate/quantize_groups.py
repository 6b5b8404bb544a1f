"""All groups of layers in their order: those behind attention first, for their balance and rotation go into the weight of v."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from vditc.calibrate.attention_outputs import AttentionOutput, attention_outputs, joined_statistics, parts_of
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.groups import Groups
from vditc.calibrate.methods.base import InputStatistics
from vditc.calibrate.trajectories import Trajectories
from vditc.calibration import LayerCalibration
from vditc.errors import VditcError
from vditc.progress import Progress
from vditc.transform import OutputTransform

Group = tuple[str, ...]


class Found(NamedTuple):
    """Calibrated layers, and plain data for the file's statistics."""

    layers: dict[str, LayerCalibration]
    report: dict[str, Any]


def quantize_groups(
    how: Groups,
    groups: Sequence[Group],
    statistics: Mapping[str, InputStatistics],
    of: Trajectories,
    progress: Progress,
    *,
    observed: bool,
) -> Found:
    """Every layer, in the order of the schemes. `observed`: whether the model runs for this recipe at all.

    `attention_output` of the report says of every layer behind attention which v layers make its rotation, or why it stays explicit.
    """
    run, layers, there = of.run(), dict[str, LayerCalibration](), 0
    pairs: list[AttentionOutput] = []
    refused: dict[str, str] = {}
    asked = how.method.rotates_within_heads and observed
    if asked:
        given, clip = of.sampled, of.sampled.clip(0)
        feeds = clip.feeds(given.scheduler, 0, clip.start(given.scheduler), guided=given.guided)
        load = functools.partial(FullPrecision, given.adapter, given.source, of.device, of.memory)
        pairs, refused = attention_outputs(load, feeds, how.schemes, how.roles)
    elif how.method.rotates_within_heads:
        progress.note("the model is not run, so rotations behind attention are not looked for in v: they are computed when it runs")
    joint, pairs, others = _joint(groups, pairs, statistics)
    refused |= others
    how = dataclasses.replace(how, heads={one.outs[0]: one.head for one in pairs})
    # Of a layer that is quantized in weights only nothing was observed, nor is it asked for.
    seen = {one.outs[0]: [statistics[out] for out in one.outs] for one in pairs if one.outs[0] in statistics}
    pooled = {**statistics, **{out: joined_statistics(all_of) for out, all_of in seen.items()}}
    behind, outputs, parts = {one.outs: one for one in pairs}, dict[str, OutputTransform](), parts_of(how.roles)
    with progress.task(f"choose by {how.method.name}", len(how.schemes)) as advance:
        for group in sorted(joint, key=lambda group: group not in behind):
            found, kept = how.kept(group, pooled.get(group[0]), of.work, run, outputs)
            there += len(found) if kept else 0
            if (one := behind.get(group)) is not None:
                if (reason := _unlike(found)) is not None:
                    refused |= dict.fromkeys(one.outs, reason)
                else:
                    outputs |= one.transforms(parts, found[group[0]].transform)
                    found = {n: _made(layer, one.values) for n, layer in found.items()}
            layers |= found
            for _ in group:
                advance()
    if there:
        progress.note(f"{of.work} held {there} of {len(layers)} layers of an earlier run: they were not computed again")
    if missing := [layer for layer in how.schemes if layer not in layers]:
        raise VditcError(
            found=f"{len(missing)} layers without codes: {', '.join(missing)}",
            wanted="every layer that the recipe quantizes",
            where=f"method {how.method.name}",
            fix="report the recipe and the model's config.json",
        )
    made = {n: list(layer.transform.made_by) for n, layer in layers.items() if layer.transform.made_by}
    report = {"attention_output": {"made_by_v": made, "explicit": refused}} if asked else {}
    return Found({layer: layers[layer] for layer in how.schemes}, report)


def _joint(
    groups: Sequence[Group], pairs: Sequence[AttentionOutput], observed: Container[str]
) -> tuple[list[Group], list[AttentionOutput], dict[str, str]]:
    """Streams that attend together make one group; also the pairs that are left, and why others are not. All or none are `observed`."""
    left, kept, refused = list(groups), list[AttentionOutput](), dict[str, str]()
    for one in pairs:
        own = [group for group in left if set(group) & set(one.outs)]
        if strangers := [layer for group in own for layer in group if layer not in one.outs]:
            refused |= dict.fromkeys(one.outs, f"{strangers[0]} reads its input too")
            continue
        unseen = [out for out in one.outs if out not in observed]
        if unseen and len(unseen) < len(one.outs):
            refused |= dict.fromkeys(one.outs, f"{unseen[0]} is quantized in weights only, other streams that attend with it are not")
            continue
        left = [one.outs if group == own[0] else group for group in left if group not in own[1:]]
        kept.append(one)
    return left, kept, refused


def _unlike(found: Mapping[str, LayerCalibration]) -> str | None:
    """Why v cannot make what these layers read."""
    transforms = [layer.transform for layer in found.values()]
    if any(t.rotation is None for t in transforms):
        return "its input is not rotated"
    if any(t.shift is not None or t.balance is None for t in transforms) or len({t.input_key() for t in transforms}) > 1:
        return "the streams that attend together have transforms of their own"
    return None


def _made(layer: LayerCalibration, values: tuple[str, ...]) -> LayerCalibration:
    return dataclasses.replace(layer, transform=dataclasses.replace(layer.transform, made_by=values))
