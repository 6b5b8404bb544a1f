"""Which built-in recipe is nearest to another one, among those that a target can run.

In this order: the same method; the least distance in bits of weights, then of activations (16 where they are not quantized), each the
mean over the rules that quantize; the fewest granularities that differ; attention calibrated or not as before; the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import NamedTuple

from vditc.recipe import Recipe, builtin_recipes
from vditc.scheme import Scheme

FLOAT_BITS = 16


class Distance(NamedTuple):
    """Compared field by field."""

    other_method: bool
    weight_bits: float
    activation_bits: float
    granularities: int
    other_attention: bool
    name: str

    def __str__(self) -> str:
        apart = [
            f"{bits:g} bits of {side} apart"
            for side, bits in (("weights", self.weight_bits), ("activations", self.activation_bits))
            if bits
        ]
        same = "another method" if self.other_method else "the same method"
        return ", ".join([same, *(apart or ["the same bits"])])


def distance(one: Recipe, other: Recipe) -> Distance:
    """How far `other` is from `one`."""
    a, b = _schemes(one), _schemes(other)
    return Distance(
        other_method=one.method != other.method,
        weight_bits=abs(_weight_bits(a) - _weight_bits(b)),
        activation_bits=abs(_activation_bits(a) - _activation_bits(b)),
        granularities=len(_granularities(a) ^ _granularities(b)),
        other_attention=one.attention != other.attention,
        name=other.name,
    )


def nearest(recipe: Recipe, runs: Callable[[Recipe], bool]) -> tuple[Recipe, Distance] | None:
    """The built-in recipe nearest to `recipe` for which `runs` holds, and how far it is; None if there is none."""
    known = (Recipe.load(name) for name in builtin_recipes())
    found = [(distance(recipe, other), other) for other in known if runs(other)]
    if not found:
        return None
    far, best = min(found, key=lambda pair: pair[0])
    return best, far


def _schemes(recipe: Recipe) -> list[Scheme]:
    return [rule.scheme for rule in recipe.rules if rule.scheme is not None]


def _weight_bits(schemes: Iterable[Scheme]) -> float:
    return fmean([s.weight.qtype.bits for s in schemes] or [FLOAT_BITS])


def _activation_bits(schemes: Iterable[Scheme]) -> float:
    return fmean([FLOAT_BITS if s.activation is None else s.activation.qtype.bits for s in schemes] or [FLOAT_BITS])


def _granularities(schemes: Iterable[Scheme]) -> set[tuple[str, str, int | None, bool, bool]]:
    specs = [(side, spec) for s in schemes for side, spec in (("weight", s.weight), ("activation", s.activation)) if spec is not None]
    return {(side, spec.granularity.value, spec.group_size, spec.symmetric, spec.per_step) for side, spec in specs}
