"""Inputs that show what a graph pass did to the numbers: random ones, and ones that bring out what random ones hide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.axis import Axis
from vditc.runtimes.graph_inputs import graph_sizes, graph_timesteps, model_inputs

Array = npt.NDArray[Any]
# Standard deviations of one element in 64. From 1000 on a trained model with INT8 activations answers any rounding with another clip (an
# error of 0.2 from float16 alone), so that nothing can be learnt from it.
OUTLIER = 100.0
# Numbers that float16 holds exactly, and float32 sums too: a row of one of them has no variance, in either.
_DYADIC = np.array([-2, -1, -0.5, 0.25, 0.5, 1, 2, 4], np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of inputs; `feeds` has `step` too, whether the graph reads it or not."""

    kind: str
    sizes: Mapping[str, int]
    step: int
    feeds: Mapping[str, Array]

    @property
    def adversarial(self) -> bool:
        """Whether these inputs are made to bring out errors."""
        return self.kind in _KINDS

    def __str__(self) -> str:
        return f"{self.kind} inputs at {', '.join(f'{axis} {size}' for axis, size in self.sizes.items())}, step {self.step}"


def cases(model: Path) -> list[Case]:
    """Inputs at two sizes of every dynamic axis that the graph's metadata allows, for its first and its last step.

    Random values come with both steps at both sizes, the other kinds once at each size. Inputs that say when are the schedule's
    time of that step, so that a graph which reads a table by `step` instead is fed the same.
    """
    specs, times = model_inputs(model), graph_timesteps(model)
    first, last = 0, max(len(times) - 1, 0)
    random = np.random.default_rng(0)
    sizes = two_sizes(graph_sizes(model).axes)
    plan = [(_normal, "random", i, step) for i in (0, 1) for step in dict.fromkeys((first, last))]
    plan += [(fill, kind, i, (first, last)[i]) for kind, fill in _KINDS.items() for i in (0, 1)]
    return [Case(kind, sizes[i], step, dict(_feeds(specs, sizes[i], step, times, fill, random))) for fill, kind, i, step in plan]


def two_sizes(axes: Mapping[str, Axis]) -> tuple[dict[str, int], dict[str, int]]:
    """Two small sizes of every axis, different ones where there are two, and different from those of the other axes where that can be."""
    both: tuple[dict[str, int], dict[str, int]] = {}, {}
    for sizes, counts in zip(both, ((2, 3, 4, 5, 6, 7, 8, 9), (3, 2, 5, 4, 7, 6, 9, 8)), strict=True):
        for name, axis in axes.items():
            start = axis.least // axis.multiple
            known = [n * axis.multiple for n in (*counts, start + 1, start) if axis.allows(n * axis.multiple)]
            other = [size for size in known if size != both[0].get(name)] or known
            sizes[name] = next((size for size in other if size not in sizes.values()), other[0])
    return both


def _feeds(
    specs: tuple[InputSpec, ...],
    sizes: Mapping[str, int],
    step: int,
    times: tuple[float, ...],
    fill: Callable[[tuple[int, ...], np.random.Generator], Array],
    random: np.random.Generator,
) -> Iterator[tuple[str, Array]]:
    yield "step", np.array([step], np.int64)
    for spec in specs:
        if spec.fill == "normal":
            yield spec.name, np.asarray(fill(spec.shape(sizes), random), spec.dtype)
        elif spec.fill == "timestep" and times:
            yield spec.name, np.full(spec.shape(sizes), times[step], spec.dtype)
        else:
            yield spec.name, spec.example(sizes, random)


def _normal(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    return random.standard_normal(shape, np.float32)


def _constant_rows(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Every row of the last axis is one number: no variance for a norm to divide by."""
    return np.broadcast_to(random.choice(_DYADIC, (*shape[:-1], 1)), shape)


def _zeros(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """The greatest magnitude of every token is 0, and a scale is its floor."""
    return np.zeros(shape, np.float32)


def _outliers(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """A few elements stand far out, as in trained models: ranges are theirs, and the rest has few codes."""
    chosen = random.random(shape) < 1 / 64
    chosen.reshape(-1)[0] = True
    return np.where(chosen, OUTLIER, np.float32(1)) * random.standard_normal(shape, np.float32)


_KINDS = {"constant rows": _constant_rows, "zeros": _zeros, "outliers": _outliers}
