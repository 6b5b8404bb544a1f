"""A sampler as a table of numbers: what every solver here does at a step is linear in the latents, the prediction and what it remembers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.elementwise import Weighted, combine, in_blocks
from vditc.errors import InputError
from vditc.schedule import Schedule

Array = npt.NDArray[Any]
Pair = tuple[float, float]  # of the latents, of the prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One step, on latents x and the prediction p.

    m = converted[0] * x + converted[1] * p is remembered. If `corrected` is there, x becomes the weighted sum of: x as it was
    (corrected) at the step before, m, and the m of the steps before it, newest first. Latents after the step are the sum of x, m,
    the earlier m weighted by `following`, and standard normal noise times `noise`.
    """

    seen: float = 1.0  # what the model is shown, in units of the latents
    converted: Pair = (0.0, 1.0)
    corrected: tuple[float, ...] | None = None
    following: tuple[float, ...]
    noise: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """At step i latents are alpha[i] * clip + sigma[i] * noise; [steps], float64. `after_*`: the level that the step leads to."""

    timesteps: Array
    alpha: Array
    sigma: Array
    after_alpha: Array
    after_sigma: Array
    # What the model says: epsilon, v_prediction, sample, flow_prediction; flow_inverted is its negative, v_exploding v_prediction
    # where latents are clip + sigma * noise.
    prediction: str
    data: float | None = None  # EDM's standard deviation of the data

    @classmethod
    def along(cls, timesteps: Array, alpha: Array, sigma: Array, prediction: str, data: float | None = None) -> Levels:
        """A walk through all of `alpha`, `sigma` [steps + 1]."""
        return cls(
            timesteps=np.asarray(timesteps, np.float32),
            alpha=alpha[:-1],
            sigma=sigma[:-1],
            after_alpha=alpha[1:],
            after_sigma=sigma[1:],
            prediction=prediction,
            data=data,
        )

    def clip(self, i: int) -> Pair:
        """The clip that the prediction of step i tells of, as weights of latents and prediction."""
        a, s = float(self.alpha[i]), float(self.sigma[i])
        if self.data is not None:  # Karras et al., arXiv 2206.00364, eq. 7
            total = s * s + self.data**2
            out = s * self.data / total**0.5
            return self.data**2 / total, out if self.prediction == "epsilon" else -out
        match self.prediction:
            case "epsilon":
                return np.divide(1.0, a), np.divide(-s, a)
            case "v_prediction":
                return a, -s
            case "v_exploding":
                return 1 / (1 + s * s), -s / (1 + s * s) ** 0.5
            case "sample":
                return 0.0, 1.0
            case "flow_prediction":
                return 1.0, -s
            case "flow_inverted":
                return 1.0, s
        raise AssertionError(self.prediction)

    def noise(self, i: int) -> Pair:
        """The noise that it tells of."""
        a, s = float(self.alpha[i]), float(self.sigma[i])
        match self.prediction:
            case "epsilon" if self.data is None:
                return 0.0, 1.0
            case "v_prediction" if self.data is None:
                return s, a
            case "flow_prediction":
                return 1.0, a
            case "flow_inverted":
                return 1.0, -a
        x, p = self.clip(i)
        return np.divide(1 - a * x, s), np.divide(-a * p, s)

    def mixed(self, i: int) -> Pair:
        """Clip and noise mixed for the level behind step i: the step of Euler's method, or of DDIM."""
        if self.prediction.startswith("flow"):  # 1 and the difference of the levels, without rounding them twice
            sign = -1.0 if self.prediction == "flow_inverted" else 1.0
            return 1.0, sign * float(self.after_sigma[i] - self.sigma[i])
        a, s = float(self.after_alpha[i]), float(self.after_sigma[i])
        (x, p), (y, q) = self.clip(i), self.noise(i)
        return a * x + s * y, a * p + s * q


class Walk:
    """A `vditc.schedule.Scheduler` of one scheduler class, its options and a number of steps. Step 0 starts anew; steps come in order.

    Latents are float32 of any shape. The array that `step` returns is used again two steps later: copy what is kept.
    """

    def __init__(
        self, *, sigmas: Array, levels: Levels, rows: Sequence[Row], start: float = 1.0, where: str, about: Mapping[str, Any]
    ) -> None:
        """`sigmas`: as diffusers holds them. `about`: what it was made of, plain data. InputError for numbers that are not finite."""
        self.sigmas, self.levels, self.rows, self.start, self.about = (
            np.asarray(sigmas, np.float32),
            levels,
            tuple(rows),
            start,
            dict(about),
        )
        self.timesteps: npt.NDArray[np.float32] = np.asarray(levels.timesteps, np.float32)
        numbers = [(r.seen, *r.converted, *(r.corrected or ()), *r.following, r.noise) for r in self.rows]
        if not all(np.isfinite(row).all() for row in numbers) or not np.isfinite(self.timesteps).all():
            raise InputError(
                found=f"{about['class']} that comes to no finite numbers at {len(self.rows)} steps",
                wanted="noise levels that this solver can walk",
                where=where,
                fix="change the number of steps or the scheduler's options",
            )
        self.seed = 0  # of the noise of solvers that add some
        self._depth = max(max(len(r.following) - 1, len(r.corrected or ()) - 1) for r in self.rows)
        self._corrects = any(r.corrected for r in self.rows)
        self._next = 0
        self._memory: list[Array] = []  # m of this step and of those before, newest first
        self._last = self._shown = np.empty(0, np.float32)  # x of the step before
        self._out: list[Array] = []

    @property
    def schedule(self) -> Schedule:
        """The walk of one step each over the same noise levels and times, as a table."""
        mixed = np.array([self.levels.mixed(i) for i in range(len(self.rows))])
        return Schedule(
            scheduler=str(self.about["class"]),
            timesteps=self.timesteps,
            seen=np.array([r.seen for r in self.rows], np.float32),
            kept=np.asarray(mixed[:, 0], np.float32),
            added=np.asarray(mixed[:, 1], np.float32),
            signal=np.asarray(self.levels.alpha, np.float32),
            noise=np.asarray(self.levels.sigma, np.float32),
            start=self.start,
        )

    def shown(self, index: int, latents: Array) -> Array:
        """What the model sees of the latents, float32: they themselves where nothing scales them, else an array of the walk's own."""
        scale = self.rows[index].seen
        if scale == 1.0:
            return np.asarray(latents, np.float32)
        if self._shown.shape != latents.shape:
            self._shown = np.empty(latents.shape, np.float32)
        return np.multiply(latents, np.float32(scale), out=self._shown)

    def drawn(self, index: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Noise that step `index` adds, the same on every machine."""
        return np.random.default_rng((self.seed, index)).standard_normal(shape, np.float32)

    @property
    def scales(self) -> bool:
        """Whether what the model is shown of latents is at some step not they themselves."""
        return any(row.seen != 1.0 for row in self.rows)

    def step(self, prediction: Array, index: int, latents: Array) -> npt.NDArray[np.float32]:
        """Latents after step `index`; ValueError when a step is left out or repeated and the walk remembers earlier ones."""
        if not self._out or self._out[0].shape != latents.shape:
            self._out = [np.empty(latents.shape, np.float32) for _ in range(2)]
        self._out.reverse()
        if np.may_share_memory(self._out[0], latents):
            self._out.reverse()
        p = np.ascontiguousarray(prediction, np.float32).reshape(-1)
        move = self.moves(index, latents, self._out[0])
        in_blocks(p.size, lambda at, scratch: move(at, p[at], scratch))
        return self._out[0]

    def moves(self, index: int, latents: Array, out: Array) -> Callable[[slice, Array, Array], None]:
        """What makes `out` of `latents` block by block: `move(at, prediction[at], scratch)`, for each block of `elementwise.in_blocks`.

        `out` is contiguous float32 and may be `latents`, but not the prediction, which may lie in scratch: it is read once. ValueError as
        above.
        """
        row, shape = self.rows[index], latents.shape
        if index == 0 or (self._depth < 2 and not self._corrects):
            self._next = index
        if index != self._next:
            raise ValueError(f"step {index} where step {self._next} was expected: {self.about['class']} needs every step in order")
        plain = self._depth == 1 and row.converted == (0.0, 1.0) and not self._corrects  # nothing is remembered
        if not plain and (not self._memory or self._memory[0].shape != shape):
            self._memory = [np.empty(shape, np.float32) for _ in range(max(self._depth, 1))]
            self._last = np.empty(shape if self._corrects else 0, np.float32)
        if self._memory:
            self._memory.insert(0, self._memory.pop())
        x, to = np.ascontiguousarray(latents, np.float32).reshape(-1), out.reshape(-1)
        added = self.drawn(index, shape).reshape(-1) if row.noise else None
        memory, last = [m.reshape(-1) for m in self._memory], self._last.reshape(-1)
        self._next = index + 1

        def move(at: slice, p: Array, scratch: Array) -> None:
            if plain:
                m = p
            else:
                m = memory[0][at]
                combine(m, Weighted(row.converted, (x[at], p)), scratch)
            now, earlier = x[at], [a[at] for a in memory[1:]]
            if row.corrected is not None:
                now = last[at]
                combine(now, Weighted(row.corrected, (now, m, *earlier)), scratch)
            elif self._corrects:
                last[at] = now
            combine(to[at], Weighted(row.following, (now, m, *earlier)), scratch)
            if added is not None:
                to[at] += np.multiply(added[at], np.float32(row.noise), out=scratch[: len(p)])

        return move
