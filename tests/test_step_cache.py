from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from test_sampling import SCHEDULE, SPECS, Recorder, clips

from vditc.errors import InputError
from vditc.sampling import sample
from vditc.schedule import Schedule
from vditc.step_cache import PROMPTED, UNPROMPTED, Changes, Skips, StepCache, change

LINE = StepCache(
    coefficients={PROMPTED: (1.0, 0.0), UNPROMPTED: (2.0, 0.0)},
    errors={PROMPTED: 0.0, UNPROMPTED: 0.0},
    low=0.0,
    high=1.0,
    thresholds={"0.5": 0.3},
)


def test_a_change_is_relative_and_in_l1(rng: np.random.Generator) -> None:
    before, now = rng.standard_normal((2, 3, 40_000), np.float32)
    assert change(now, before) == pytest.approx(np.abs(now - before).sum() / np.abs(before).sum(), rel=1e-5)
    assert change(before, before) == 0
    assert change(np.zeros(3, np.float32), np.zeros(3, np.float32)) == 0 and change(np.ones(3, np.float32), np.zeros(3, np.float32)) == 1


def changes(function: Any, count: int = 4, steps: int = 16, noise: float = 0.0, branches: int = 2) -> np.ndarray:
    random = np.random.default_rng(0)
    x = random.uniform(0.05, 0.5, (count, steps - 1))
    y = [function(x) * (branch + 1) + noise * random.standard_normal(x.shape) for branch in range(branches)]
    return np.stack([x, *y], -1)


def test_the_polynomial_that_made_the_changes_is_found() -> None:
    found = StepCache.fit(changes(lambda x: 0.1 + 0.5 * x + 2 * x**2))
    assert found is not None
    for branch, factor in ((PROMPTED, 1), (UNPROMPTED, 2)):
        assert found.errors[branch] < 1e-6
        assert found.estimate((branch,), 0.3) == pytest.approx(factor * (0.1 + 0.15 + 0.18), abs=1e-6)
    assert found.estimate((PROMPTED, UNPROMPTED), 0.3) == found.estimate((UNPROMPTED,), 0.3)
    assert StepCache.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.to_json()["degree"] == {b: len(c) - 1 for b, c in found.coefficients.items()}


def test_the_degree_is_one_that_holds_for_other_clips() -> None:
    line = StepCache.fit(changes(lambda x: x, noise=0.02, steps=8, branches=1))
    assert line is not None and line.degree == {PROMPTED: 1}
    assert line.errors[PROMPTED] == pytest.approx(0.02, rel=0.5)


def test_nothing_is_estimated_beyond_what_was_seen() -> None:
    found = StepCache.fit(changes(lambda x: x - 0.2, branches=1))
    assert found is not None
    assert found.estimate((PROMPTED,), 0.0) == 0  # never below
    assert found.estimate((PROMPTED,), 9.0) == found.estimate((PROMPTED,), found.high) < 0.5


def test_too_few_steps_have_no_cache() -> None:
    assert StepCache.fit(changes(lambda x: x, steps=3)) is None
    assert StepCache.fit(np.full((2, 9, 2), np.nan)) is None


def test_thresholds_leave_out_the_share_that_they_say() -> None:
    seen = changes(lambda x: x, branches=1)
    found = StepCache.fit(seen)
    assert found is not None and list(found.thresholds) == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    assert sorted(found.thresholds.values()) == list(found.thresholds.values())
    skips, left_out = Skips(found, found.threshold("30%"), 16), []
    for clip in seen:
        before = np.ones(1, np.float32)
        for index, step in enumerate([0.0, *clip[:, 0]]):
            before = before * np.float32(1 + step)
            skips.look(index, before)
            left_out.append(skips.skips(index, (PROMPTED,)))
    assert 0.3 <= np.mean(left_out) <= 0.45
    assert skips.asked == 64 and skips.skipped == sum(left_out)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "31%", "much", "", "%"])
def test_thresholds_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"found --step-cache .*; wanted a threshold above 0, or a share of steps: 50% \(0.3\)"):
        LINE.threshold(text)
    assert LINE.threshold("0.25") == 0.25 and LINE.threshold("50%") == 0.3


@pytest.mark.parametrize("data", [{}, {**LINE.to_json(), "coefficients": 3}, {k: v for k, v in LINE.to_json().items() if k != "low"}])
def test_a_manifest_with_something_else(data: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="found step_cache without"):
        StepCache.from_json(data)


STEPS = Schedule.flow(np.linspace(1, 0, 9))


class Counter(Recorder):
    """Gives out one array again and again, as an engine may."""

    def __call__(self, feeds: Any, step: int) -> Any:
        super().__call__(feeds, step)
        out: Any = getattr(self, "out", None)
        if out is None or out.shape[0] != len(feeds["latents"]):
            out = self.out = np.empty_like(feeds["latents"])
        out[...] = 1.0 + 0.25 * step
        return out


def test_the_first_and_the_last_step_run_and_the_last_prediction_is_used_again() -> None:
    model, skips = Counter(), Skips(LINE, 1e9, 8)
    result = sample(model, STEPS, clips(), 1.0, cache=skips)
    assert [step for _, _, step in model.calls] == [0, 7]
    assert (skips.skipped, skips.asked) == (6, 8)
    np.testing.assert_allclose(result, -(7 * 1.0 + 2.75) / 8, rtol=1e-6)


def test_a_model_that_takes_over_is_run() -> None:
    """The second of two experts begins in the middle, with no prediction of its own: that run is none that was left out."""
    models, skips, latents = (Counter(), Counter()), Skips(LINE, 1e9, 8), None
    for model, begin, end in zip(models, (0, 4), (4, 8), strict=True):
        latents = sample(model, STEPS, clips(), 1.0, begin=begin, end=end, latents=latents, cache=skips)
    assert [[step for _, _, step in model.calls] for model in models] == [[0], [4, 7]]
    assert (skips.skipped, skips.asked) == (5, 8)


def test_estimates_add_up_to_the_threshold() -> None:
    """Latents go from 8 in steps of one eighth of their velocity 1: changes of 1/64, 1/63 and so on."""
    model, skips = Counter(), Skips(LINE, 0.04, 8)
    chosen = clips()
    chosen.noise[...] = 8

    def constant(feeds: Any, step: int) -> Any:
        model(feeds, step)
        return np.ones_like(feeds["latents"])

    sample(constant, STEPS, chosen, 1.0, cache=skips)
    assert [step for _, _, step in model.calls] == [0, 3, 6, 7]  # 2 / 64 is below 0.04, 3 / 64 above


def test_branches_in_one_batch_share_a_decision_and_others_have_their_own() -> None:
    def run(passes: Any) -> list[int]:
        model, chosen = Counter(), clips()
        chosen.noise[...] = 8

        def constant(feeds: Any, step: int) -> Any:
            model(feeds, step)
            return np.ones_like(feeds["latents"])

        sample(constant, STEPS, chosen, 3.0, cache=Skips(LINE, 0.04, 8), passes=passes)
        return [step for _, _, step in model.calls]

    assert run("batched") == [0, 2, 4, 6, 7]  # as the empty prompt, which changes twice as much
    assert run("two") == sorted([0, 3, 6, 7, 0, 2, 4, 6, 7])


def test_two_passes_give_what_one_batch_gives() -> None:
    ends = []
    for passes in ("batched", "two"):
        model = Recorder()
        ends.append(sample(model, SCHEDULE, clips(), 2.0, passes=passes))
        assert [size for size, _, _ in model.calls] == ([4, 4] if passes == "batched" else [2, 2, 2, 2])
    np.testing.assert_array_equal(ends[0], ends[1])


def test_a_denoiser_may_use_its_array_again() -> None:
    class Texts(Counter):
        def __call__(self, feeds: Any, step: int) -> Any:
            out = super().__call__(feeds, step)
            out[...] = feeds["text"][:, :, :, None, None]
            return out

    assert sample(Texts(), SCHEDULE, clips(), 2.0, passes="two").ravel().tolist() == [-5.0] * 4


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_fed_arrays_may_be_used_again(scale: float, rng: np.random.Generator) -> None:
    channels = rng.standard_normal((2, 1, 2, 1, 1)).astype(np.float32)
    ends, fed = [], []
    for reuse in (False, True):
        model, chosen = Recorder(), clips(channels=channels)
        chosen.noise[...] = rng.standard_normal() if reuse is None else 1.0
        ends.append(
            sample(
                lambda feeds, step, model=model: np.sin(model(feeds, step) * feeds["latents"][:, :1]), SCHEDULE, chosen, scale, reuse=reuse
            )
        )
        fed.append(len({id(feeds["latents"]) for feeds in model.seen}))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert fed == [2, 1]


def test_changes_of_a_clip_are_watched() -> None:
    watch, model = Changes(), Counter()
    sample(model, STEPS, clips(), 2.0, on_prediction=watch)
    assert watch.found.shape == (7, 3)
    np.testing.assert_allclose(watch.found[:, 1], [0.25 / (1 + 0.25 * i) for i in range(7)], rtol=1e-6)
    np.testing.assert_array_equal(watch.found[:, 1], watch.found[:, 2])
    assert SPECS[0].name == "latents" and Changes().found.shape == (0, 1)
