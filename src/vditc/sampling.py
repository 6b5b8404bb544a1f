"""The denoising loop, in numpy: any denoiser, any scheduler, any inputs, both guidance branches in one batch or one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.elementwise import guide, guide_block, in_blocks
from vditc.schedule import BlockScheduler, Moves, Scheduler
from vditc.step_cache import PROMPTED, UNPROMPTED, Skips

Array = npt.NDArray[Any]
Passes = Literal["batched", "two"]  # of guidance: one of 2B clips, or one for each branch
Feeds = Mapping[str, Array]  # graph input -> value


class Denoiser(Protocol):
    """Predicts what the schedule is made for: a velocity, or noise. `step` is the index in the schedule, the key of per-step tables."""

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """`feeds` by the names of the graph's inputs, without `step` -> prediction [B, C, F, H, W]."""
        ...


def noise(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Standard normal float32 noise of one clip, the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
    """B clips that are sampled together: where they start, and what the model is told of them beside the time."""

    specs: tuple[InputSpec, ...]  # what the model takes, the latents first
    noise: Array  # [B, C, F, H, W]
    prompted: Feeds  # inputs that no step changes: [B, ...], or without a batch axis where the spec has none
    unprompted: Feeds  # the same of the unconditional branch
    channels: Array | None = None  # [B, E, F, H, W], constant, behind the latents' own
    known: Array | None = None  # [B, C, F, H, W]: latents of frames that are given, as an image that a clip starts with
    known_frames: tuple[int, ...] = ()

    def with_known(self, latents: Array) -> Array:
        """`latents` [B, C, F, H, W] with the given frames put in."""
        if self.known is None:
            return latents
        latents = latents.copy()
        frames = list(self.known_frames)
        latents[:, :, frames] = self.known[:, :, frames]
        return latents

    def start(self, scheduler: Scheduler) -> Array:
        """Latents before the first step."""
        return self.with_known(np.asarray(self.noise * np.float32(scheduler.start), np.float32))

    def feeds(self, scheduler: Scheduler, index: int, latents: Array, *, guided: bool) -> dict[str, Array]:
        """What the denoiser takes at a step: the branch with the prompts, then, if `guided`, the one without.

        Where a model takes a time for every frame, that of given frames is 0.
        """
        branches = (PROMPTED, UNPROMPTED) if guided else (PROMPTED,)
        return Feeder(self, branches).feeds(scheduler.shown(index, latents), float(scheduler.timesteps[index]))


class Feeder:
    """What a denoiser takes for one or both branches of clips; inputs that no step changes are put together once."""

    def __init__(self, clips: Clips, branches: tuple[str, ...], *, reuse: bool = False) -> None:
        """`reuse`: latents are fed in one array for all steps, which is good until the next call."""
        self.clips, self.branches, self.reuse = clips, branches, reuse
        self.prediction: Array | None = None  # the last one, for who wants to use it again
        told = [clips.prompted if branch == PROMPTED else clips.unprompted for branch in branches]
        self._still = {
            s.name: np.concatenate([t[s.name] for t in told]) if len(told) > 1 and s.dims[0] == "batch" else told[0][s.name]
            for s in clips.specs[1:]
            if s.fill != "timestep"
        }
        self._latents: Array | None = None
        self.written = False  # whether `rows` have what is fed next

    def rows(self, latents: Array) -> list[Array]:
        """Where latents [B, C, F, H, W] lie in what is fed, flat, for each branch; none where they are fed as they are, or in pieces."""
        if self._latents is None or (self.clips.channels is not None and len(latents) > 1):
            return []
        return [part.reshape(-1)[: latents.size] for part in np.split(self._latents, len(self.branches))]

    def feeds(self, seen: Array, timestep: float) -> dict[str, Array]:
        """Of latents as the model is shown them [B, C, F, H, W], at a time."""
        clips, count = self.clips, len(self.branches)
        batch, channels, frames = count * len(seen), seen.shape[1], seen.shape[2]
        latents = seen
        if count > 1 or clips.channels is not None:
            shape = (batch, channels + (0 if clips.channels is None else clips.channels.shape[1]), *seen.shape[2:])
            if self._latents is None or not self.reuse or self._latents.shape != shape:
                self._latents = np.empty(shape, seen.dtype)
                for part in np.split(self._latents, count):
                    part[:, channels:] = 0 if clips.channels is None else clips.channels
            latents = self._latents
            for part in [] if self.written else np.split(latents, count):
                part[:, :channels] = seen
        found = {clips.specs[0].name: latents}
        for spec in clips.specs[1:]:
            if spec.fill == "timestep":
                found[spec.name] = np.full(spec.shape({"batch": batch, "frames": frames}), timestep, spec.dtype)
                if spec.dims[1:] == ("frames",):
                    found[spec.name][:, list(clips.known_frames)] = 0
            else:
                found[spec.name] = self._still[spec.name]
        return found


def started(denoise: Denoiser, feeds: Feeds, step: int, *, keep: bool) -> Callable[[], Array]:
    """What waits for a prediction; a denoiser with a method `begin` works on it in the meantime. `keep`: it is used after later calls."""
    begin = getattr(denoise, "begin", None)
    if begin is not None:
        waiting: Callable[[], Array] = begin(feeds, step)
        return waiting
    found = denoise(feeds, step)
    if keep:  # a denoiser may use its array again
        found = np.array(found, np.float32)
    return lambda: found


def joined_feeds(specs: Sequence[InputSpec], parts: Sequence[Feeds]) -> dict[str, Array]:
    """What the denoiser takes for several batches as one; inputs without a batch axis are those of the first."""
    first = parts[0]
    return {s.name: np.concatenate([p[s.name] for p in parts]) if s.dims[0] == "batch" else first[s.name] for s in specs}


def sample(
    denoise: Denoiser,
    scheduler: Scheduler,
    clips: Clips,
    guidance_scale: float,
    on_step: Callable[[int, Array], None] | None = None,
    *,
    begin: int = 0,
    end: int | None = None,
    latents: Array | None = None,
    passes: Passes = "batched",
    cache: Skips | None = None,
    on_prediction: Callable[[Array, Sequence[Array]], None] | None = None,
    reuse: bool = False,
) -> npt.NDArray[np.float32]:
    """Denoise `clips`; returns their latents [B, C, F, H, W].

    Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): v = v_empty + scale * (v_text - v_empty); both branches run
    as one batch of 2B, prompts first, or in two passes. At scale 1 only the prompts run. `on_step(index, latents after the step)`.
    `begin` and `latents`, those after step `begin - 1`, go on with clips that were begun, with a solver of several steps only in the
    object that has begun them; `end` leaves them before that step.
    `cache` leaves out steps. `on_prediction(latents shown, prediction of each branch)`. `reuse`: what is fed, and what `on_step`
    sees of a scheduler that says so, is good during the call only.
    """
    guided, latents = guidance_scale != 1.0, clips.start(scheduler) if latents is None else latents
    branches = (PROMPTED, UNPROMPTED) if guided else (PROMPTED,)
    feeders = [Feeder(clips, b, reuse=reuse) for b in ([branches] if passes == "batched" else [(b,) for b in branches])]
    # A walk that shows the model the latents themselves can leave them where they are fed from.
    moves = scheduler.moves if reuse and clips.known is None and isinstance(scheduler, BlockScheduler) and not scheduler.scales else None
    mixed: Array | None = None
    for index in range(begin, len(scheduler.timesteps) if end is None else end):
        seen, timestep = scheduler.shown(index, latents), float(scheduler.timesteps[index])
        if cache is not None:
            cache.look(index, seen)
        begun = [
            started(denoise, feeder.feeds(seen, timestep), index, keep=cache is not None or len(feeders) > 1)
            if cache is None or not cache.skips(index, feeder.branches, known=feeder.prediction is not None)
            else None
            for feeder in feeders
        ]
        said: list[Array] = []
        for feeder, result in zip(feeders, begun, strict=True):
            if result is not None:
                feeder.prediction = result()
            assert feeder.prediction is not None
            said += np.split(feeder.prediction, len(feeder.branches))
        if on_prediction:
            on_prediction(seen, said)
        if moves is not None:
            latents = _in_one_pass(moves, index, latents, latents if index > begin else None, said, guidance_scale, feeders)
            if on_step:
                on_step(index, latents)
            continue
        predicted = said[0]
        if guided:
            with_text, without = (np.ascontiguousarray(branch, np.float32) for branch in said)
            mixed = np.empty_like(with_text) if mixed is None or not reuse else mixed
            predicted = guide(mixed, with_text, without, guidance_scale)
        latents = clips.with_known(scheduler.step(predicted, index, latents))
        if on_step:
            on_step(index, latents)
    return np.array(latents, np.float32)


def _in_one_pass(
    moves: Moves, index: int, latents: Array, out: Array | None, said: Sequence[Array], scale: float, feeders: Sequence[Feeder]
) -> Array:
    """Guidance, the step, and all that is fed next, block by block: each array passes through a core's cache once.

    `out`: may be written, where no place from which latents are fed takes them.
    """
    places = [row for feeder in feeders for row in feeder.rows(latents)]
    if places:
        out = places[0].reshape(latents.shape)
    elif out is None:
        out = np.empty(latents.shape, np.float32)
    flat = out.reshape(-1)
    # A denoiser may answer with what it was fed, in the very array.
    branches = [np.array(b, np.float32) if np.may_share_memory(b, out) else np.ascontiguousarray(b, np.float32) for b in said]
    told = [branch.reshape(-1) for branch in branches]
    move = moves(index, latents, out)

    def block(at: slice, scratch: Array) -> None:
        predicted = told[0][at]
        if len(told) > 1:
            predicted = guide_block(scratch[: len(predicted)], predicted, told[1][at], scale)
        move(at, predicted, scratch)
        for place in places[1:]:
            place[at] = flat[at]

    in_blocks(flat.size, block)
    for feeder in feeders:
        feeder.written = bool(places)
    return out
