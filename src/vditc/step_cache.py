"""Steps that are left out because the model would say nearly the same: TeaCache (Liu et al., arXiv 2411.19108), outside of an engine.

The paper watches the input of the blocks, modulated by the time, and reuses what the blocks added to it. An engine shows neither. So
what is watched is the latents that the model is shown, and what is used again is its prediction. The relative L1 change of the one from
step to step says, by a polynomial that was fitted to the quantized model's own trajectories, the relative change of the other; these
estimates add up until they reach a threshold, and the model runs again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vditc.elementwise import in_blocks
from vditc.errors import InputError

Array = npt.NDArray[Any]
PROMPTED, UNPROMPTED = "prompted", "unprompted"  # branches of classifier-free guidance
DEGREE = 4  # the paper's; lower where that fits clips that were not fitted better
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # of steps left out, that a threshold is known for


def change(now: Array, before: Array) -> float:
    """Relative L1 change, sum |now - before| / sum |before|, of two float32 arrays of one shape; 0 where nothing was and is."""
    a, b = now.reshape(-1), before.reshape(-1)
    sums: list[tuple[int, float, float]] = []

    def block(at: slice, scratch: Array) -> None:
        part = np.subtract(a[at], b[at], out=scratch[: len(a[at])])
        difference = float(np.abs(part, out=part).sum())
        sums.append((at.start, difference, float(np.abs(b[at], out=part).sum())))

    in_blocks(a.size, block)
    _, differences, sizes = zip(*sorted(sums), strict=True)  # in the order of the array, whatever core was first
    return sum(differences) / sum(sizes) if sum(sizes) else float(sum(differences) > 0)


class Changes:
    """Watches a clip being sampled, as `on_prediction` of `vditc.sampling.sample`."""

    def __init__(self) -> None:
        self._before: list[Array] = []
        self._rows: list[list[float]] = []

    def __call__(self, seen: Array, predictions: Sequence[Array]) -> None:
        """Of latents as the model was shown them, and what it said of each branch."""
        now = [np.ascontiguousarray(array, np.float32) for array in (seen, *predictions)]
        if self._before:
            self._rows.append([change(a, b) for a, b in zip(now, self._before, strict=True)])
        self._before = [np.array(array) for array in now]  # they may be used again

    @property
    def found(self) -> npt.NDArray[np.float64]:
        """[steps - 1, 1 + branches]."""
        return np.array(self._rows, np.float64).reshape(len(self._rows), max(len(self._before), 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCache:
    """What `fit` found for one model, one schedule and one guidance scale."""

    coefficients: Mapping[str, tuple[float, ...]]  # branch -> of the polynomial, highest power first
    errors: Mapping[str, float]  # branch -> root mean square error of the estimate on clips that it was not fitted to
    low: float  # changes of the latents that were seen; beyond them the polynomial is not asked
    high: float
    thresholds: Mapping[str, float]  # share of steps left out, as text -> the threshold that leaves out so many

    @classmethod
    def fit(cls, changes: npt.NDArray[np.float64]) -> Self | None:
        """Of changes [clips, steps - 1, 1 + branches] from step to step: of the latents shown, and of each branch's prediction.

        None where there are too few steps for any to be left out.
        """
        _, count, columns = changes.shape
        if count < 3 or not np.isfinite(changes).all():
            return None
        coefficients, errors = {}, {}
        for branch, column in zip((PROMPTED, UNPROMPTED), range(1, columns), strict=False):
            x, y = changes[:, :, 0], changes[:, :, column]
            degrees = range(1, min(DEGREE, count - 2) + 1)
            scores = {degree: _left_out(x, y, degree) for degree in degrees}
            best = min(scores, key=lambda degree: (scores[degree], degree))
            coefficients[branch] = tuple(float(f"{c:.9g}") for c in np.polyfit(x.ravel(), y.ravel(), best))
            errors[branch] = float(f"{scores[best]:.6g}")
        low, high = (float(f"{end:.9g}") for end in (changes[:, :, 0].min(), changes[:, :, 0].max()))
        found = cls(coefficients=coefficients, errors=errors, low=low, high=high, thresholds={})
        return dataclasses.replace(found, thresholds=found._thresholds(changes[:, :, 0]))

    def estimate(self, branches: Sequence[str], changed: float) -> float:
        """The greatest relative change of the branches' predictions for one of the latents; never below 0."""
        at = min(max(changed, self.low), self.high)
        return max(0.0, *(float(np.polyval(self.coefficients[branch], at)) for branch in branches))

    def threshold(self, text: str) -> float:
        """Of `--step-cache`: a number, or N% of the steps to be left out; InputError for anything else."""
        known = ", ".join(f"{float(share):.0%} ({value:.3g})" for share, value in self.thresholds.items())
        try:
            if text.endswith("%"):
                return self.thresholds[f"{float(text[:-1]) / 100:g}"]
            if 0 < (value := float(text)) < float("inf"):
                return value
        except (ValueError, KeyError):
            pass
        raise InputError(
            found=f"--step-cache {text}",
            wanted=f"a threshold above 0, or a share of steps: {known or 'none is known'}",
            where="step cache",
            fix="choose one; a higher threshold leaves out more steps",
        )

    def _thresholds(self, changes: Array) -> dict[str, float]:
        """For each of SHARES that is in reach, the lowest threshold that leaves out so many steps of trajectories without a cache."""
        estimates = [[self.estimate(tuple(self.coefficients), float(c)) for c in clip] for clip in changes]
        tried = sorted({round(float(t), 6) for t in np.geomspace(1e-4, max(1e-3, sum(map(max, estimates))), 400)})
        shares = [float(np.mean([_skipped(clip, t) for clip in estimates])) for t in tried]
        return {f"{share:g}": next(t for t, s in zip(tried, shares, strict=True) if s >= share) for share in SHARES if max(shares) >= share}

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return {**dataclasses.asdict(self), "coefficients": {b: list(c) for b, c in self.coefficients.items()}, "degree": self.degree}

    @property
    def degree(self) -> dict[str, int]:
        """Of each branch's polynomial."""
        return {branch: len(c) - 1 for branch, c in self.coefficients.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; InputError for something else."""
        try:
            return cls(
                coefficients={b: tuple(map(float, c)) for b, c in data["coefficients"].items()},
                errors=dict(data["errors"]),
                low=float(data["low"]),
                high=float(data["high"]),
                thresholds={s: float(t) for s, t in data["thresholds"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                found=f"step_cache without {error}",
                wanted="coefficients, errors, low, high, thresholds",
                where="manifest",
                fix="compile again",
            ) from error


def _left_out(x: Array, y: Array, degree: int) -> float:
    """Root mean square error of a polynomial on each clip that was fitted to the others; of all on all, where there is one clip."""
    missed = []
    for clip in range(len(x)):
        others = [i for i in range(len(x)) if i != clip or len(x) == 1]
        missed.append(np.polyval(np.polyfit(x[others].ravel(), y[others].ravel(), degree), x[clip]) - y[clip])
    return float(np.sqrt(np.mean(np.square(missed))))


def _skipped(estimates: Sequence[float], threshold: float) -> float:
    """Share of all steps that are left out when the model's changes from step to step are these: neither the first nor the last."""
    total, skipped = 0.0, 0
    for estimate in estimates[:-1]:
        total += estimate
        if total < threshold:
            skipped += 1
        else:
            total = 0.0
    return skipped / (len(estimates) + 1)


class Skips:
    """Which steps are left out, of clips that are sampled together; one object for one `sample` after the other.

    Branches that run as one batch share a decision, made for the one that changes more; those that run one by one have their own.
    """

    def __init__(self, calibrated: StepCache, threshold: float, steps: int) -> None:
        self.calibrated, self.limit, self.steps = calibrated, threshold, steps
        self.skipped = 0  # calls of the model that were left out, of all clips so far
        self.asked = 0
        self._before: Array | None = None
        self._changed = 0.0
        self._totals: dict[tuple[str, ...], float] = {}

    def look(self, index: int, seen: Array) -> None:
        """Before step `index`: `seen` is what the model would be shown."""
        if index == 0 or self._before is None or self._before.shape != seen.shape:
            self._before, self._changed, self._totals = np.array(seen, np.float32), float("inf"), {}
            return
        self._changed = change(np.ascontiguousarray(seen, np.float32), self._before)
        np.copyto(self._before, seen)

    def skips(self, index: int, branches: tuple[str, ...], *, known: bool = True) -> bool:
        """Whether these branches use their last prediction again; never at the first and the last step, nor where none is `known`."""
        self.asked += 1
        total = self._totals.get(branches, 0.0) + self.calibrated.estimate(branches, self._changed)
        skipped = known and 0 < index < self.steps - 1 and total < self.limit and np.isfinite(self._changed)
        self._totals[branches] = total if skipped else 0.0
        self.skipped += bool(skipped)
        return bool(skipped)
