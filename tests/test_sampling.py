from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vditc.adapter import InputSpec
from vditc.sampling import Clips, Feeds, noise, sample
from vditc.schedule import Schedule

Array = npt.NDArray[Any]
SCHEDULE = Schedule.flow(np.array([1, 0.5, 0]))
TEXT = np.full((2, 1, 1), 3, np.float32)
SPECS = (
    InputSpec("latents", "float32", ("batch", 1, "frames", 1, 1)),
    InputSpec("timestep", "float32", ("batch",), "timestep"),
    InputSpec("text", "float32", ("batch", 1, 1)),
)
EMPTY = np.full((2, 1, 1), 1, np.float32)


class Recorder:
    """A denoiser whose velocity is its text, so that every result is known."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[float], int]] = []
        self.seen: list[Feeds] = []

    def __call__(self, feeds: Feeds, step: int) -> Array:
        self.seen.append(feeds)
        self.calls.append((len(feeds["latents"]), feeds["timestep"].tolist(), step))
        return np.broadcast_to(feeds["text"][:, :, :, None, None], feeds["latents"][:, :1].shape)


def clips(count: int = 2, **more: Any) -> Clips:
    return Clips(specs=SPECS, noise=np.zeros((count, 1, 2, 1, 1), np.float32), prompted={"text": TEXT}, unprompted={"text": EMPTY}, **more)


def test_noise_is_seeded_float32() -> None:
    assert noise((2, 3), 5).dtype == np.float32
    np.testing.assert_array_equal(noise((2, 3), 5), noise((2, 3), 5))
    assert (noise((2, 3), 5) != noise((2, 3), 6)).all()
    # The first values of seed 0: stored clips and references are only comparable as long as these stay.
    assert noise((4,), 0).tolist() == [1.1176220178604126, -1.3871248960494995, -0.4265716075897217, -0.8035872578620911]


@pytest.mark.parametrize(("scale", "velocity"), [(1.0, 3.0), (2.0, 5.0), (0.0, 1.0)])
def test_guidance(scale: float, velocity: float) -> None:
    model = Recorder()
    result = sample(model, SCHEDULE, clips(), scale)
    assert result.dtype == np.float32
    assert result.ravel().tolist() == [-velocity] * 4  # sigma falls by 1 in all


def test_branches_run_as_one_batch_only_when_guided() -> None:
    plain, guided = Recorder(), Recorder()
    sample(plain, SCHEDULE, clips(), 1.0)
    sample(guided, SCHEDULE, clips(), 3.0)
    assert plain.calls == [(2, [1000.0] * 2, 0), (2, [500.0] * 2, 1)]
    assert guided.calls == [(4, [1000.0] * 4, 0), (4, [500.0] * 4, 1)]


def test_on_step_sees_the_latents_after_each_step() -> None:
    seen: list[tuple[int, list[float]]] = []
    chosen = clips()
    sample(Recorder(), SCHEDULE, chosen, 1.0, lambda i, x: seen.append((i, x.ravel().tolist())))
    assert seen == [(0, [-1.5] * 4), (1, [-3.0] * 4)]
    assert (chosen.noise == 0).all()


def test_constant_channels_are_seen_and_not_denoised() -> None:
    model, channels = Recorder(), np.arange(4, dtype=np.float32).reshape(2, 1, 2, 1, 1)
    result = sample(model, SCHEDULE, clips(channels=channels), 2.0)
    assert result.shape == (2, 1, 2, 1, 1)
    for feeds in model.seen:
        np.testing.assert_array_equal(feeds["latents"][:, 1:], np.concatenate([channels, channels]))


def test_given_frames_stay_and_have_time_zero() -> None:
    model, known = Recorder(), np.full((2, 1, 2, 1, 1), 7, np.float32)
    specs = (SPECS[0], InputSpec("timestep", "float32", ("batch", "frames"), "timestep"), SPECS[2])
    chosen = dataclasses.replace(clips(known=known, known_frames=(0,)), specs=specs)
    result = sample(model, SCHEDULE, chosen, 1.0)
    assert result[:, 0, :, 0, 0].tolist() == [[7.0, -3.0]] * 2
    for feeds, time in zip(model.seen, (1000.0, 500.0), strict=True):
        assert feeds["timestep"].tolist() == [[0.0, time]] * 2
        assert (feeds["latents"][:, 0, 0] == 7).all()


def test_inputs_without_a_batch_axis_are_fed_once() -> None:
    model, fps = Recorder(), InputSpec("fps", "float32", (1,), 24.0)
    chosen = clips()
    both = {"fps": np.array([24], np.float32)}
    chosen = dataclasses.replace(
        chosen, specs=(*SPECS, fps), prompted={**chosen.prompted, **both}, unprompted={**chosen.unprompted, **both}
    )
    sample(model, SCHEDULE, chosen, 2.0)
    assert [feeds["fps"].tolist() for feeds in model.seen] == [[24.0]] * 2


@pytest.mark.parametrize("boundary", [1, 2, 3])
def test_a_trajectory_in_two_parts_is_that_of_the_whole(boundary: int) -> None:
    """By one schedule that is left and gone on with, and by a schedule for each part."""
    whole = Schedule.flow(np.array([1, 0.75, 0.5, 0.25, 0]))
    whole = dataclasses.replace(whole, start=2.0)
    given = dataclasses.replace(clips(), noise=np.arange(4, dtype=np.float32).reshape(2, 1, 2, 1, 1))
    wanted = sample(told := Recorder(), whole, given, 2.0)
    begun = sample(recorder := Recorder(), whole, given, 2.0, end=boundary)
    np.testing.assert_array_equal(sample(recorder, whole, given, 2.0, begin=boundary, latents=begun), wanted)
    assert recorder.calls == told.calls
    first, second = whole.part(range(boundary)), whole.part(range(boundary, 4))
    assert (first.first, second.first) == (0, boundary) and (first.start, second.start) == (2.0, 1.0)
    np.testing.assert_array_equal(sample(Recorder(), first, given, 2.0), begun)
    np.testing.assert_array_equal(sample(Recorder(), second, dataclasses.replace(given, noise=begun), 2.0), wanted)
    for part in (first, second):
        assert Schedule.from_json(part.to_json()) == part
    assert whole.part(range(4)) == whole and "first" not in whole.to_json()
    # What a prediction says of the clip depends on the noise behind the part's last step.
    latents, said = np.full(1, 0.3, np.float32), np.full(1, -0.7, np.float32)
    assert first.finished(boundary - 1, latents, said) == whole.finished(boundary - 1, latents, said)
    assert second.finished(0, latents, said) == whole.finished(boundary, latents, said)
