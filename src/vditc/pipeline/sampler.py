"""Clips from a bundle in Python, without PyTorch: what `vditc.Sampler` is, and what `vditc run` calls."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.axis import Sizes
from vditc.build_options import byte_count
from vditc.bundle import Bundle
from vditc.conditioning import Conditioning
from vditc.errors import CancelledError, InputError, VditcError
from vditc.experts import experts_of
from vditc.pipeline.components import Components, check_conditioning
from vditc.pipeline.denoisers import backend_here, check_backend, open_denoiser
from vditc.pipeline.guidance_passes import PORTABLE
from vditc.pipeline.samples import Latents, OnStep, Pixels, Samples, Step
from vditc.pipeline.schedules import WalkOptions
from vditc.pipeline.served_sizes import ServedSizes, Size, clip_seeds
from vditc.pipeline.video_output import VideoOutput
from vditc.pipeline.walk_plan import RunOptions, WalkPlan, with_embedded_guidance
from vditc.progress import SILENT, Progress
from vditc.runtimes.graph_inputs import graph_sizes, model_inputs
from vditc.runtimes.parts.kept import Kept
from vditc.runtimes.parts.text_encoder import TextEncoder
from vditc.sampling import Denoiser, Passes, sample
from vditc.step_cache import Skips

Array = npt.NDArray[Any]


class Sampler:
    """A bundle that clips are sampled from; opened once, called often."""

    def __init__(
        self,
        bundle: str | PathLike[str] | Bundle,
        *,
        backend: str | None = None,
        weight_budget: int | str | None = None,
        keep_open: bool = True,
        sha256: bool = True,
    ) -> None:
        """Samples clips from a bundle with numpy and what its backend needs; neither PyTorch nor diffusers.

            with vditc.Sampler("wan.bundle") as sampler:
                sampler("a red ball rolls off a table", seed=3).save("ball.mp4")

        `backend`: onnxruntime, or a target of the bundle; by default the target whose engine is for this machine's GPU, and onnxruntime
        on a machine without one. `weight_budget`: bytes, or "4GiB", of the GPU for the weights of an engine that streams them.
        `keep_open`: the transformer is opened here, text encoder and decoder when they are first used, and all stay open until `close`;
        without it each is opened for its part of a call alone, so that one is in memory at a time. `sha256`: check all of the bundle's
        files by hash, at about a second a gigabyte; their sizes are checked anyhow. A context manager; one call at a time.
        InputError for a damaged bundle, an unknown backend, a GPU without an engine; VditcError for an engine that does not
        load, as without its plugin library.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle), hashes=sha256)
        self.backend = backend_here(self.bundle) if backend is None else backend
        check_backend(self.bundle, self.backend)
        experts_of(self.bundle)  # refuses the second of two
        budget = byte_count(weight_budget, "weight_budget") if isinstance(weight_budget, str) else weight_budget
        self._stack, self._lock, self._closed = contextlib.ExitStack(), threading.Lock(), False
        self._engine: Kept[None, Denoiser] = Kept(lambda _: open_denoiser(self.bundle, self.backend, budget))
        self._keep = keep_open
        manifest = self.bundle.manifest
        self._parts = Components.open(self.bundle.path / "components", self.backend, manifest.components)
        self.video = VideoOutput(self._parts, manifest.sampling.get("fps"))
        if keep_open:
            if isinstance(words := self._parts.words, TextEncoder):
                words.open_encoder, words.tokens = self._kept(words.open_encoder), functools.cache(words.tokens)
            if (decoder := self._parts.decoder) is not None:
                decoder.open_graph = self._kept(decoder.open_graph)
            with self._engine(None):
                pass  # whatever is wrong with it is said here

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str = "",
        seed: int | Sequence[int] | None = None,
        size: Size | None = None,
        conditioning: str | PathLike[str] | Conditioning | None = None,
        noise: Array | None = None,
        steps: int | None = None,
        solver: str | None = None,
        shift: float | None = None,
        guidance: float | None = None,
        guidance_2: float | None = None,
        embedded_guidance: float | None = None,
        passes: Passes | None = None,
        step_cache: float | str | None = None,
        on_step: OnStep | None = None,
        progress: Progress = SILENT,
    ) -> Samples:
        """Sample a clip for each prompt, one after the other. What is None is as the bundle was compiled.

        `seed`: of the noise, 0 by default: one number, counted up from prompt to prompt, or one a clip; one prompt with several seeds
        makes as many clips. `size`: a preset, "81x480x832", or (frames, height, width) of the video, None for what stays.
        `conditioning`: in place of prompts, a saved file or arrays (`vditc.conditioning`); its seeds and size hold unless given here.
        `noise`: standard normal, [clips, C, F, H, W], in place of the seeds'. `steps`, `solver`, `shift`, `guidance`, `guidance_2`,
        `embedded_guidance`, `passes` ("batched" or "two") and `step_cache` (a threshold, or "30%") are the options of `vditc run`.
        `on_step`: told a `Step` after each; when it returns something false but None, the call ends with `CancelledError`. The sampler
        can be called again after that, and after any other exception.

        InputError, before any work, for what the model, the bundle or its engine does not take.
        """
        if (prompt is None) == (conditioning is None):
            raise InputError(found="both or neither", wanted="prompt or conditioning", where="sampler", fix="give one of them")
        if conditioning is not None:
            given = conditioning if isinstance(conditioning, Conditioning) else self.load(conditioning)
        options = RunOptions(
            walk=WalkOptions(solver=solver, steps=steps, shift=shift),
            guidance=guidance,
            guidance_2=guidance_2,
            embedded_guidance=embedded_guidance,
            passes=passes,
            step_cache=None if step_cache is None else str(step_cache),
        )
        source = given if prompt is None else prompt
        return self.run(source, negative_prompt, seed, size, options, noise=noise, on_step=on_step, progress=progress)

    def run(
        self,
        given: str | Sequence[str] | Conditioning,
        negative_prompt: str,
        seed: int | Sequence[int] | None,
        size: Size | None,
        options: RunOptions,
        *,
        noise: Array | None = None,
        on_step: OnStep | None = None,
        progress: Progress = SILENT,
    ) -> Samples:
        """The same of prompts or a conditioning, with what may be asked of a walk as one object."""
        with self._at_work():
            if isinstance(given, Conditioning):
                shape = self.latent_shape(size) if size is not None else given.latent_shape
            else:
                shape = self.latent_shape(size)
            plan = WalkPlan.of(self.bundle, self.backend, shape[1:], options)
            clips = self._told(given, negative_prompt, seed, shape)
            clips = with_embedded_guidance(clips, self._specs, options.embedded_guidance)
            if noise is not None and (noise.shape != (len(clips), *shape) or not np.isfinite(noise).all()):
                raise InputError(
                    found=f"noise {list(noise.shape)}",
                    wanted=f"finite numbers, {[len(clips), *shape]}",
                    where="sampler",
                    fix="draw one noise a clip",
                )
            try:
                return self._walked(plan, clips, noise, on_step, progress)
            except CancelledError:
                raise
            except BaseException:
                self._engine.close()  # a run may be in flight; the next call opens it anew
                raise
            finally:
                if not self._keep:
                    self._engine.close()

    def encode(
        self, prompts: str | Sequence[str], *, negative_prompt: str = "", seed: int | Sequence[int] | None = None, size: Size | None = None
    ) -> Conditioning:
        """What the model is told of prompts, for many calls, or for `Conditioning.save`. InputError for a bundle without a text encoder."""
        with self._at_work():
            return self._told(prompts, negative_prompt, seed, self.latent_shape(size))

    def decode(self, latents: Array) -> Iterator[Pixels]:
        """Latents [C, F, H, W], or [1, C, F, H, W], as frames uint8 [frames, height, width, 3], chunk by chunk.

        InputError for a bundle without a decoder, or a length of clip that the decoder has no graph for.
        """
        self._check_open()
        return self.video.decode(latents)

    def load(self, path: str | PathLike[str]) -> Conditioning:
        """A saved conditioning; InputError for one that is not for this model."""
        given = Conditioning.load(Path(path))
        self._check_conditioning(given, str(path))
        return given

    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of latents for a clip of `size`, in frames and pixels; InputError for one not served."""
        return self._served.latent_shape(size)

    def close(self) -> None:
        """Free the engine and all that is open."""
        self._closed = True
        self._engine.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @functools.cached_property
    def _specs(self) -> tuple[InputSpec, ...]:
        return model_inputs(self.bundle.file("model.onnx"))

    @functools.cached_property
    def _sizes(self) -> Sizes:
        return graph_sizes(self.bundle.file("model.onnx"))

    def _kept(self, opener: Callable[[Any], Any]) -> Kept[Any, Any]:
        kept: Kept[Any, Any] = Kept(opener)
        self._stack.callback(kept.close)
        return kept

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        self._check_open()
        if not self._lock.acquire(blocking=False):
            raise VditcError(
                found="a sampler that is at work", wanted="one call at a time", where="sampler", fix="wait for it, or open another sampler"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise VditcError(
                found="a sampler that was closed", wanted="an open one", where=str(self.bundle.path), fix="make another vditc.Sampler"
            )

    @property
    def _served(self) -> ServedSizes:
        return ServedSizes(self.bundle, self._sizes, engine=self.backend != PORTABLE)

    def _check_conditioning(self, given: Conditioning, where: str) -> None:
        check_conditioning(given, self._specs, self._sizes, where)
        self._served.check(given.sizes(self._specs), where)

    def _told(
        self,
        given: str | Sequence[str] | Conditioning,
        negative_prompt: str,
        seed: int | Sequence[int] | None,
        shape: tuple[int, int, int, int],
    ) -> Conditioning:
        """What is sampled from; InputError for what does not go together, or does not fit the model."""
        if isinstance(given, Conditioning):
            if negative_prompt:
                raise InputError(
                    found="--negative-prompt with --conditioning", wanted="one of them", where="sampler", fix="save it in the conditioning"
                )
            seeds = given.seeds if seed is None else clip_seeds(seed, len(given))
            found = dataclasses.replace(given, seeds=seeds, latent_shape=shape)
            self._check_conditioning(found, "conditioning")
            return found
        prompts = (given,) if isinstance(given, str) else tuple(given)
        if not prompts:
            raise InputError(found="no prompt", wanted="at least one", where="sampler", fix="give a prompt")
        if len(prompts) == 1 and isinstance(seed, Sequence):
            prompts *= len(seed)
        info = self.bundle.manifest.sampling
        found = self._parts.encode(prompts, clip_seeds(seed or 0, len(prompts)), shape, info["extra_channels"], negative_prompt)
        self._served.check(found.sizes(self._specs), "prompt")
        return found

    def _walked(self, plan: WalkPlan, given: Conditioning, noise: Array | None, on_step: OnStep | None, progress: Progress) -> Samples:
        """All clips, one expert after the other: of several each has all clips in turn, for one is open at a time."""
        steps, count, latents = plan.steps, len(given), dict[int, Latents]()
        # A solver and a step cache remember the clip that they walk.
        walks = [plan.scheduler if len(plan.experts) == 1 else copy.deepcopy(plan.scheduler) for _ in range(count)]
        skips = [None if plan.cache is None else Skips(*plan.cache, steps) for _ in range(count)]
        with self._engine(None) as denoiser, progress.task("sample", count * steps) as advance:
            for expert in plan.experts:
                for i, walk in enumerate(walks):
                    clip = given.clips([i], self._specs)

                    def after(index: int, now: Array, i: int = i) -> None:
                        advance()
                        timestep = float(plan.scheduler.timesteps[index])
                        told = Step(clip=i, clips=count, index=index, steps=steps, timestep=timestep, latents=now)
                        if on_step is not None and (said := on_step(told)) is not None and not said:
                            raise CancelledError(
                                found=f"a call that on_step ended after step {index + 1} of {steps} of clip {i + 1}",
                                wanted="all steps",
                                where="sampler",
                                fix="call the sampler again",
                            )

                    latents[i] = sample(
                        denoiser,
                        walk,
                        clip if noise is None else dataclasses.replace(clip, noise=np.asarray(noise[i : i + 1], np.float32)),
                        expert.guidance_scale,
                        after,
                        begin=expert.steps.start,
                        end=steps if len(plan.experts) == 1 else expert.steps.stop,
                        latents=latents.get(i),
                        passes=plan.passes,
                        cache=skips[i],
                        reuse=True,
                    )
        watched = [one for one in skips if one is not None]
        counts = {"skipped": sum(one.skipped for one in watched), "asked": sum(one.asked for one in watched)} if watched else {}
        return Samples(
            sampler=self, latents=np.concatenate([latents[i] for i in range(count)]), prompts=given.prompts, seeds=given.seeds, **counts
        )
