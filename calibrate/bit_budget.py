"""Which weights get more bits, under a budget: groups share it by their error, and in a group the most sensitive come first.

ViDiT-Q (arXiv 2406.02540), section 4.3: a layer's sensitivity is measured by what its group is there for, and between groups, whose
metrics cannot be compared, the error of the output decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Layers whose weights get the same bits."""

    name: str
    group: str
    count: int  # of weights
    error: float  # of the output, when only this unit has few bits
    sensitivity: float  # the same, in the group's own metric


def ranked(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """The units of every group, the most sensitive first; of equals the one with more error, then the first."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    return {name: sorted(own, key=lambda u: (-u.sensitivity, -u.error)) for name, own in groups.items()}


def raised(units: Sequence[Unit], weights: int) -> set[str]:
    """Names of the units that get more bits: at most so many weights, and in every group none before one that is more sensitive.

    A group's share of the budget is its share of all error, but no more than it has weights; what is left over by units that are too
    large goes on to the groups' next units, that with most error first.
    """
    groups = ranked(units)
    chosen: set[str] = set()
    left = weights
    for name, share in _shares(groups, weights).items():
        for unit in list(groups[name]):
            if unit.count > share:
                break
            share, left = share - unit.count, left - unit.count
            chosen.add(unit.name)
            groups[name].remove(unit)
    while following := [own[0] for own in groups.values() if own and own[0].count <= left]:
        unit = max(following, key=lambda u: u.error)
        left -= unit.count
        chosen.add(unit.name)
        groups[unit.group].remove(unit)
    return chosen


def _shares(groups: Mapping[str, Sequence[Unit]], weights: int) -> dict[str, float]:
    """Of the budget, by error; what a group cannot use goes to the others."""
    size = {name: sum(u.count for u in own) for name, own in groups.items()}
    error = {name: sum(u.error for u in own) for name, own in groups.items()}
    shares, left = dict.fromkeys(groups, 0.0), float(weights)
    open_groups = set(groups)
    while open_groups and left > 0:
        total = sum(error[name] for name in open_groups)
        wanted = {name: left * (error[name] / total if total else 1 / len(open_groups)) for name in open_groups}
        full = {name for name in open_groups if wanted[name] >= size[name]}
        for name in full or open_groups:
            shares[name] = min(wanted[name], size[name])
            left -= shares[name]
        open_groups -= full or open_groups
    return shares
