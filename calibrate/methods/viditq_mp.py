"""ViDiT-Q's metric-decoupled mixed precision: what a layer is there for decides how its sensitivity is measured.

Zhao et al., "ViDiT-Q" (arXiv 2406.02540), section 4.3. Cross-attention is ranked by text alignment, temporal attention by motion, attention
within frames and feed-forward by the pictures; between these groups the error of the output splits the budget. Where the paper scores
sampled clips by other networks, here the full-precision model's own predictions are the measure (`vditc.calibrate.clip_metrics`), on
inputs of its own trajectories, with one unit of layers in few bits at a time.

A model without temporal attention has one self-attention for both: it is a group of its own, ranked by the worse of picture and motion,
each relative to its mean over the model. Steps are told apart in as many groups as the settings say: an engine holds one copy of the
weights, so a layer's sensitivity is that of its worst group of steps, and activations have the same bits at all steps, since one graph has
one type for them; the table of all groups is in the file. Weights are balanced, rotated and rounded as by method viditq; while units are
measured, one at a time, what attention gives out is rotated over its whole width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import linear

from vditc.calibrate.bit_budget import Unit, raised, ranked
from vditc.calibrate.clip_metrics import METRICS, clip_metrics
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.fake_quant import quantized_tokens
from vditc.calibrate.groups import layer_weight
from vditc.calibrate.methods.base import InputStatistics, Quantized
from vditc.calibrate.methods.viditq import ViDiTQ
from vditc.errors import InputError
from vditc.files import write_text
from vditc.numerics import QType, short
from vditc.progress import Progress
from vditc.sampling import Feeds
from vditc.schedule import step_groups
from vditc.scheme import Scheme
from vditc.torch_transform import InputTransform

if TYPE_CHECKING:
    from vditc.calibrate.trajectories import Trajectories

Array = npt.NDArray[Any]
TEXT, MOTION, VISUAL, BOTH = "text alignment", "motion", "visual quality", "visual quality and motion"
STATE = "sensitivity.json"  # in the working folder: the units that were measured


@dataclasses.dataclass(frozen=True)
class ViDiTQMixed(ViDiTQ):
    """Weights that the recipe's rules give `low` bits are raised to `high` where it matters; what rules give other bits keeps them."""

    low: str = "int4"
    high: str = "int8"
    mean_bits: float = 5.0  # of the codes of all quantized weights
    step_groups: int = 4
    examples: int = 2  # of each group of steps

    name: ClassVar[str] = "viditq-mp"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [q.value for q in QType if q.integer]
        for key, value in (("low", self.low), ("high", self.high)):
            if value not in known:
                raise _bad(f"{key} = {value!r}", f"one of {', '.join(known)}")
        if QType(self.low).bits >= QType(self.high).bits:
            raise _bad(f"low = {self.low!r}, high = {self.high!r}", "fewer bits in low")
        for key, count in (("step_groups", self.step_groups), ("examples", self.examples)):
            if count < 1:
                raise _bad(f"{key} = {count}", "at least 1")

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Inputs must run, so that it is known which layers read one tensor."""
        return True

    def check_layers(self, schemes: Mapping[str, Scheme], roles: Mapping[str, str]) -> None:
        """Some rule must leave a choice."""
        if not any(self._open(scheme) for scheme in schemes.values()):
            raise _bad(f"no rule that gives weights {self.low}", f"one: weights of {self.low} are those that may be raised to {self.high}")

    def choose(
        self,
        of: Trajectories,
        groups: Sequence[tuple[str, ...]],
        statistics: Mapping[str, InputStatistics],
        schemes: Mapping[str, Scheme],
        roles: Mapping[str, str],
        progress: Progress,
    ) -> tuple[dict[str, Scheme], dict[str, Any]]:
        """See `Method.choose`: the schemes with the chosen bits, and `mixed_precision`, a table of what was measured and chosen."""
        free = [tuple(layer for layer in group if self._open(schemes[layer])) for group in groups]
        parts = _units(free, roles)
        counts = {layer: int(np.prod(of.sampled.source.weights[f"{layer}.weight"].shape)) for layer in schemes}
        weights = self._raisable(schemes, counts, parts)
        examples = _Examples(of, self.step_groups, self.examples, progress)
        measured = self._measured(of, examples, parts, statistics, schemes, progress)
        full = not any(role.startswith("temporal_attn.") for role in roles.values())
        purpose = {name: _purpose(roles[part[0]], full=full) for name, part in parts.items()}
        sensitivity = _sensitivities(measured, purpose, guided=examples.guided)
        units = [
            Unit(
                name=name,
                group=purpose[name],
                count=sum(counts[layer] for layer in part),
                error=max(row["output"] for row in measured[name]),
                sensitivity=sensitivity[name],
            )
            for name, part in parts.items()
        ]
        chosen = raised(units, weights)
        table: dict[str, Any] = {}
        for group, own in ranked(units).items():
            for rank, unit in enumerate(own, 1):
                up = unit.name in chosen
                for layer in parts[unit.name]:
                    table[layer] = {
                        "unit": unit.name,
                        "group": group,
                        "rank": rank,
                        "of": len(own),
                        "sensitivity": short(unit.sensitivity),
                        "by_step_group": measured[unit.name],
                        "bits": self.high if up else self.low,
                        "why": f"{rank} of {len(own)} by {group}; the budget raised {sum(u.name in chosen for u in own)} of them",
                    }
        result = dict(schemes)
        for layer, row in table.items():
            weight = dataclasses.replace(schemes[layer].weight, qtype=QType(row["bits"]))
            result[layer] = dataclasses.replace(schemes[layer], weight=weight)
        bits = sum(result[layer].weight.qtype.bits * count for layer, count in counts.items()) / sum(counts.values())
        report = {
            "mean_bits_wanted": self.mean_bits,
            "mean_bits": short(bits),
            "step_groups": [list(steps) for steps in examples.groups],
            "guided": examples.guided,
            "layers": {layer: table[layer] for layer in schemes if layer in table},
        }
        return result, {"mixed_precision": report}

    def _open(self, scheme: Scheme) -> bool:
        return scheme.weight.qtype is QType(self.low)

    def _raisable(self, schemes: Mapping[str, Scheme], counts: Mapping[str, int], parts: Mapping[str, Sequence[str]]) -> int:
        """How many weights the budget lets have more bits; InputError when it is less than nothing."""
        low, high = QType(self.low).bits, QType(self.high).bits
        least = sum(schemes[layer].weight.qtype.bits * count for layer, count in counts.items())
        most = least + sum(counts[layer] for part in parts.values() for layer in part) * (high - low)
        total = sum(counts.values())
        if not least <= self.mean_bits * total <= most:
            raise _bad(f"mean_bits = {self.mean_bits}", f"{least / total:.3f} to {most / total:.3f}, what rules, low and high allow")
        return int((self.mean_bits * total - least) / (high - low))

    def _measured(
        self,
        of: Trajectories,
        examples: _Examples,
        parts: Mapping[str, tuple[str, ...]],
        statistics: Mapping[str, InputStatistics],
        schemes: Mapping[str, Scheme],
        progress: Progress,
    ) -> dict[str, list[dict[str, float]]]:
        """Metrics of every unit, a row for each group of steps; those that a killed run has measured are read."""
        state = of.work / STATE
        run = of.run(units={name: list(part) for name, part in parts.items()}, settings=dataclasses.asdict(self))
        done: dict[str, list[dict[str, float]]] = _read(state, run)
        with progress.task("measure sensitivity", len(parts)) as advance:
            for name, part in parts.items():
                if name not in done:
                    weights = {layer: layer_weight(of.sampled.source, layer) for layer in part}
                    changed = self.quantize(weights, statistics[part[0]], {layer: schemes[layer] for layer in part})
                    done[name] = examples.metrics({layer: (changed[layer], schemes[layer]) for layer in part})
                    write_text(state, json.dumps({"run": run, "units": done}))
                advance()
        state.unlink(missing_ok=True)
        return done


class _Examples:
    """Inputs of the full-precision model at some steps of some clips, what it said, and what it says with a few linears changed."""

    def __init__(self, of: Trajectories, groups: int, each: int, progress: Progress) -> None:
        sampled = of.sampled
        self.scheduler, self.scale, self.guided = sampled.scheduler, sampled.guidance_scale, sampled.guided
        steps, clips = sampled.steps, len(sampled.conditioning)
        self.groups = step_groups(steps, groups)
        self.model = FullPrecision(sampled.adapter, sampled.source, of.device, of.memory)
        # As many of every group, spread over its steps, and over the clips.
        wanted: dict[int, list[tuple[int, int]]] = {}
        for number, group in enumerate(self.groups):
            for i in range(each):
                step = group[(2 * i + 1) * len(group) // (2 * each)]
                wanted.setdefault((number + i) % min(clips, each), []).append((step, number))
        self.held: list[tuple[int, int, Array, Feeds, Array]] = []  # step, its group, latents, inputs, what was said
        with progress.task("sample examples", len(wanted) * steps) as advance:
            for clip, places in wanted.items():
                at = [sampled.clip(clip).start(self.scheduler)]  # the latents now

                def denoise(feeds: Feeds, step: int, at: list[Array] = at, places: list[tuple[int, int]] = places) -> Array:
                    said = self.model(feeds, step)
                    self.held += [(step, group, at[0][0], feeds, said) for place, group in places if place == step]
                    return said

                def after(_step: int, latents: Array, at: list[Array] = at) -> None:
                    at[0] = latents
                    advance()

                sampled.sample(denoise, clip, after)

    def metrics(self, changed: Mapping[str, tuple[Quantized, Scheme]]) -> list[dict[str, float]]:
        """Means over the examples of each group of steps."""
        found: list[list[dict[str, float]]] = [[] for _ in self.groups]
        module = self.model.model
        own = {layer: module.get_submodule(layer) for layer in changed}
        for layer, (quantized, scheme) in changed.items():
            module.set_submodule(layer, _Fake(quantized, scheme, own[layer].bias).to(self.model.device))
        try:
            for step, group, latents, feeds, said in self.held:
                now = self.model(feeds, step)
                found[group].append(clip_metrics(self.scheduler, step, latents, said, now, self.scale))
        finally:
            for layer, linear_layer in own.items():
                module.set_submodule(layer, linear_layer)
        return [{key: short(float(np.mean([row[key] for row in rows]))) for key in METRICS if key in rows[0]} for rows in found]


class _Fake(torch.nn.Module):
    """A linear that computes with quantized numbers, in float32."""

    def __init__(self, quantized: Quantized, scheme: Scheme, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.inputs, self.spec, self.bias = InputTransform(quantized.transform), scheme.activation, bias
        self.register_buffer("weight", torch.from_numpy(quantized.weight.read().dequantize()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N]."""
        x = self.inputs(x)
        return linear(x if self.spec is None else quantized_tokens(x, self.spec), self.weight, self.bias)  # type: ignore[arg-type]


def _units(groups: Sequence[tuple[str, ...]], roles: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Layers that read one tensor and are there for the same: by the name of the first."""
    found: dict[str, tuple[str, ...]] = {}
    for group in groups:
        kinds: dict[str, list[str]] = {}
        for layer in group:
            kinds.setdefault(roles[layer].split(".")[0], []).append(layer)
        found |= {own[0]: tuple(own) for own in kinds.values()}
    return found


def _purpose(role: str, *, full: bool) -> str:
    """Which group a role is of; `full`: there is no temporal attention."""
    kind = role.split(".")[0]
    if kind == "temporal_attn":
        return MOTION
    if kind == "self_attn":
        return BOTH if full else VISUAL
    return TEXT if kind in ("cross_attn", "image_attn", "text_attn", "text_ffn", "refiner_attn", "refiner_ffn") else VISUAL


def _sensitivities(measured: Mapping[str, list[dict[str, float]]], purpose: Mapping[str, str], *, guided: bool) -> dict[str, float]:
    """Of every unit, in its own metric, where it is worst. Without guidance there is no direction: text shows in the picture."""
    worst = {name: {key: max(row[key] for row in rows) for key in rows[0]} for name, rows in measured.items()}
    mean = {key: float(np.mean([row[key] for row in worst.values()])) or 1.0 for key in ("visual", "motion")}

    def value(name: str) -> float:
        row = worst[name]
        match purpose[name]:
            case "text alignment":
                return row["text"] if guided else row["visual"]
            case "motion":
                return row["motion"]
            case "visual quality and motion":
                return max(row["visual"] / mean["visual"], row["motion"] / mean["motion"])
        return row["visual"]

    return {name: value(name) for name in measured}


def _read(state: Any, run: str) -> dict[str, list[dict[str, float]]]:
    """What a killed run of the same inputs has measured."""
    try:
        saved = json.loads(state.read_text())
        return dict(saved["units"]) if saved["run"] == run else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _bad(found: str, wanted: str) -> InputError:
    return InputError(found=found, wanted=wanted, where="method viditq-mp", fix="correct [settings] or [[rules]]")
