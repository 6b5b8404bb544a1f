"""QVD: input channels share one centre and one width, and what depends on the time alone keeps its steps apart.

After QVD (arXiv 2407.11585), as far as its text was at hand, which was without formulas: both parts are our reconstruction. Channels:
`vditc.calibrate.channel_range`. Temporal features, the outputs of the time path's layers: `vditc.calibrate.temporal_features`; of the
codes that are scored there powers and two ranges are no grid that an integer product has, so they are reported and not used. What is used
is the same shift and scale, where they keep neighbouring steps better apart than one plain scale does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vditc.adapter import of_time_path
from vditc.calibrate.channel_range import centred, shifted_bias
from vditc.calibrate.methods.base import InputStatistics, Method, Quantized, activation_scale, rounded
from vditc.calibrate.temporal_features import Candidate, best, candidate, codes_for
from vditc.correction import Correction
from vditc.errors import InputError
from vditc.float_weight import FloatWeight
from vditc.numerics import EPS, Granularity, QType, short
from vditc.scheme import QuantSpec, Scheme
from vditc.transform import IDENTITY, Transform

Array = npt.NDArray[Any]
TEMPORAL = ("float", "uniform", "discriminable")
# What the report supposes of a time path that stays in floating point.
SUPPOSED = Scheme(
    weight=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR),
)


@dataclasses.dataclass(frozen=True)
class QVD(Method):
    """One shift and one scale for all layers that read a tensor."""

    # 1 gives all channels one width, 0 one centre only. On the bundled model 1 costs the weights more than the activations gain: 46.1 dB
    # at W8A8 with static scales for every step where 0 has 48.4, 0.25 has 50.0 and plain rounding 48.3; 35.1, 39.4, 38.5 and 38.2 at W6A6.
    strength: float = 0.25
    temporal: str = "float"  # the time path: kept by the recipe, or quantized with one scale as it is, or with the shift that scores best

    name: ClassVar[str] = "qvd"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise _bad(f"strength = {self.strength}", "0 to 1")
        if self.temporal not in TEMPORAL:
            raise _bad(f"temporal = {self.temporal!r}", f"one of {', '.join(TEMPORAL)}")

    @property
    def bounds(self) -> bool:
        """A centre has a sign."""
        return True

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Activations that stay in floating point have no range to use well."""
        return scheme.activation is not None

    def watches(self, role: str) -> bool:
        """The time path's scores are told of every model."""
        return of_time_path(role)

    def check_layers(self, schemes: Mapping[str, Scheme], roles: Mapping[str, str]) -> None:
        """The setting and the recipe's rules must say the same of the time path."""
        quantized = [layer for layer in schemes if of_time_path(roles[layer])]
        if bool(quantized) == (self.temporal == "float"):
            raise InputError(
                found=f"temporal = {self.temporal!r} and {len(quantized)} quantized layers of the time path",
                wanted='"float" with rules that keep time_embed.* and modulation, or "uniform" or "discriminable" with rules that do not',
                where="method qvd",
                fix="correct [settings] or [[rules]]",
            )

    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """See `Method.quantize`."""
        if statistics is None:
            return {layer: rounded(weight, schemes[layer]) for layer, weight in weights.items()}
        assert statistics.bounds is not None
        transform = centred(statistics.bounds, self.strength)
        if statistics.temporal:
            chosen, _ = self._chosen(statistics, weights, schemes)
            transform = IDENTITY if self.temporal == "uniform" else dict(self._transforms(statistics))[chosen.name]
        return {layer: _quantized(weight, schemes[layer], statistics, transform) for layer, weight in weights.items()}

    def report(
        self, seen: Mapping[str, InputStatistics], weights: Mapping[str, FloatWeight], schemes: Mapping[str, Scheme]
    ) -> dict[str, Any]:
        """`temporal`: what every layer of the time path does to the discriminability of its own output."""
        groups: dict[tuple[int, bool], list[str]] = {}  # that read one tensor, and share what is chosen
        for layer, statistics in seen.items():
            if statistics.temporal:
                groups.setdefault((id(statistics.bounds), layer in schemes), []).append(layer)
        found: dict[str, Any] = {}
        for group in groups.values():
            statistics = seen[group[0]]
            own = {layer: schemes.get(layer, SUPPOSED) for layer in group}
            name = self._chosen(statistics, {layer: weights[layer] for layer in group}, own)[0].name
            for layer in group:
                _, ways = self._chosen(statistics, {layer: weights[layer]}, own)
                found[layer] = {
                    "temporal": self.temporal,
                    "scheme": str(own[layer]),
                    "float": 1.0,
                    "uniform": _plain(ways[0]),
                    "discriminable": _plain(next(way for way in ways if way.name == name)),
                    "codes_of_the_output": [_plain(c) for c in codes_for(_table(statistics) @ weights[layer].read().T)],
                }
        return {"temporal_features": {layer: found[layer] for layer in seen if layer in found}}

    def _transforms(self, statistics: InputStatistics) -> Iterator[tuple[str, Transform]]:
        """Inputs as they are first."""
        assert statistics.bounds is not None
        yield "uniform", IDENTITY
        for strength in (0.0, 0.5, 1.0):
            yield f"shifted, scaled {strength:g}", centred(statistics.bounds, strength)

    def _chosen(
        self, statistics: InputStatistics, weights: Mapping[str, FloatWeight], schemes: Mapping[str, Scheme]
    ) -> tuple[Candidate, list[Candidate]]:
        """The transform whose outputs score best, all layers side by side; and all of them."""
        table = _table(statistics)
        exact = np.concatenate([table @ weight.read().T for weight in weights.values()], -1)
        found = []
        for name, transform in self._transforms(statistics):
            outputs = [_output(table, weights[layer], schemes[layer], statistics, transform) for layer in weights]
            found.append(candidate(name, exact, np.concatenate(outputs, -1)))
        return best(found, found[0].error), found


def _table(statistics: InputStatistics) -> npt.NDArray[np.float32]:
    """[steps, K]: the input at each step; where a text has its part in it, the middle of what was seen."""
    assert statistics.bounds is not None
    return np.asarray(statistics.bounds[0] / 2 + statistics.bounds[1] / 2, np.float32)


def _quantized(weight: FloatWeight, scheme: Scheme, statistics: InputStatistics, transform: Transform) -> Quantized:
    done = rounded(weight, scheme, statistics, transform)
    return done if transform.shift is None else done._replace(correction=Correction(bias=shifted_bias(weight.read(), transform.shift)))


def _output(table: Array, weight: FloatWeight, scheme: Scheme, statistics: InputStatistics, transform: Transform) -> Array:
    """What the quantized layer makes of a table [steps, K], without the layer's own bias."""
    done, x = _quantized(weight, scheme, statistics, transform), transform.input(table)
    if (spec := scheme.activation) is not None:
        scale = activation_scale(scheme, statistics, transform)
        if scale is None:
            scale = np.maximum(np.abs(x).max(-1) / np.float32(spec.qtype.high), np.float32(EPS))
        scale = scale[:, None] if scale.ndim else scale
        x = np.clip(np.rint(x / scale), spec.qtype.low, spec.qtype.high) * scale
    y = x @ done.weight.read().dequantize().T
    return np.asarray(y if done.correction.bias is None else y + done.correction.bias, np.float32)


def _plain(found: Candidate) -> dict[str, Any]:
    return {"name": found.name, "score": short(found.score), "error": short(found.error)}


def _bad(found: str, wanted: str) -> InputError:
    return InputError(found=found, wanted=wanted, where="method qvd", fix="correct [settings]")
