"""`sample` with `reuse` takes a step in one pass over memory, in place: the same bits as array by array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vditc import elementwise
from vditc.adapter import InputSpec
from vditc.runtimes.schedulers.registry import scheduler_of
from vditc.runtimes.schedulers.walk import Walk
from vditc.sampling import Clips, Denoiser, Feeds, Passes, sample
from vditc.step_cache import Skips, StepCache

Array = npt.NDArray[Any]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
STEPS = 5
WALKS: dict[str, dict[str, Any]] = {
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "unipc": {"_class_name": "UniPCMultistepScheduler", **FLOW},
    "unipc-3": {"_class_name": "UniPCMultistepScheduler", "solver_order": 3, **FLOW},
    "dpm": {"_class_name": "DPMSolverMultistepScheduler", **FLOW},
    "sde": {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", **FLOW},
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"},
    "scaled": {"_class_name": "EulerDiscreteScheduler"},  # shows the model scaled latents
}
SPECS = (
    InputSpec("latents", "float32", ("batch", 6, "frames", "height", "width")),
    InputSpec("timestep", "float32", ("batch",), "timestep"),
    InputSpec("text", "float32", ("batch", 4, 1)),
)
CLIPS: dict[str, dict[str, Any]] = {"one": {}, "two": {"count": 2}, "channels": {"extra": 2}, "two with channels": {"count": 2, "extra": 2}}


def walk(name: str) -> Walk:
    return scheduler_of(WALKS[name], STEPS)


def clips(count: int = 1, extra: int = 0, known: bool = False) -> Clips:
    random = np.random.default_rng(1)
    shape = (count, 4, 3, 5, 7)
    return Clips(
        specs=SPECS,
        noise=random.standard_normal(shape, np.float32),
        prompted={"text": random.standard_normal((count, 4, 1), np.float32)},
        unprompted={"text": random.standard_normal((count, 4, 1), np.float32)},
        channels=random.standard_normal((count, extra, *shape[2:]), np.float32) if extra else None,
        known=np.ones(shape, np.float32) if known else None,
        known_frames=(0,) if known else (),
    )


def model(feeds: Feeds, step: int) -> Array:
    """Not linear, and another for each branch, channel and step."""
    seen = np.tanh(feeds["latents"][:, :4] + feeds["text"][:, :, :, None, None] + 0.1 * step)
    return np.asarray(seen + (0 if feeds["latents"].shape[1] == 4 else feeds["latents"][:, 4:].sum(1, keepdims=True)), np.float32)


def echo(feeds: Feeds, step: int) -> Array:
    """Answers in the array that it was fed."""
    return feeds["latents"][:, :4]


@pytest.fixture(autouse=True, params=[elementwise.BLOCK, 64])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers in one block, or in many on two threads."""
    monkeypatch.setattr(elementwise, "BLOCK", request.param)
    monkeypatch.setattr(elementwise, "cores", lambda: 2)


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize(("scale", "passes"), [(1.0, "batched"), (4.5, "batched"), (4.5, "two")])
def test_the_same_bits(name: str, kind: str, scale: float, passes: Any) -> None:
    given = clips(**CLIPS[kind])
    for denoise in (model, echo):
        for one, other in zip(*(steps(denoise, walk(name), given, scale, passes, reuse) for reuse in (False, True)), strict=True):
            np.testing.assert_array_equal(one, other)


def steps(denoise: Denoiser, walked: Walk, given: Clips, scale: float, passes: Any, reuse: bool) -> list[Array]:
    """Latents after each step, and what is returned."""
    found: list[Array] = []
    last = sample(denoise, walked, given, scale, lambda _, x: found.append(x.copy()), passes=passes, reuse=reuse)
    return [*found, last]


@pytest.mark.parametrize("name", WALKS)
def test_known_frames_and_a_step_cache(name: str) -> None:
    def skips() -> Skips:
        line = {"prompted": (1.0, 0.0), "unprompted": (1.0, 0.0)}
        return Skips(StepCache(coefficients=line, errors={}, low=0.0, high=9.0, thresholds={}), 1.0, STEPS)

    cases: list[tuple[Clips, Passes]] = [(clips(known=True), "batched"), (clips(), "batched"), (clips(extra=2), "two"), (clips(), "two")]
    for given, passes in cases:
        for cache in (None, skips):
            one, other = (
                sample(model, walk(name), given, 3.0, passes=passes, reuse=reuse, cache=cache and cache()) for reuse in (False, True)
            )
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_the_caller_gives_stays(scale: float) -> None:
    """Noise, and latents that a walk goes on with, are not written to."""
    given = clips()
    noise, whole = given.noise.copy(), sample(model, walk("flow"), given, scale, reuse=True)
    begun = sample(model, walk("flow"), given, scale, reuse=True, end=2)
    kept = begun.copy()
    np.testing.assert_array_equal(sample(model, walk("flow"), given, scale, reuse=True, begin=2, latents=begun), whole)
    np.testing.assert_array_equal(begun, kept)
    np.testing.assert_array_equal(given.noise, noise)


def test_each_array_is_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guided step of Euler's method: one pass, and latents stay in what is fed."""
    passes: list[int] = []
    real = elementwise.in_blocks

    def counted(size: int, task: Any) -> None:
        passes.append(size)
        real(size, task)

    monkeypatch.setattr("vditc.sampling.in_blocks", counted)
    fed: list[Array] = []

    def remember(feeds: Feeds, step: int) -> Array:
        fed.append(feeds["latents"])
        return model(feeds, step)

    given = clips()
    sample(remember, walk("flow"), given, 3.0, lambda _, x: fed.append(x), reuse=True)
    assert passes == [given.noise.size] * STEPS
    assert all(np.shares_memory(fed[0], one) for one in fed[1:])
