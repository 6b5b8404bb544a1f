"""Clips of a bundle whose engines a Triton server runs: what `vditc.Sampler` does, with a request in place of arguments.

FOLDER/pipeline.json     this file's `Description`
FOLDER/manifest.json     of the bundle, and of further experts in folders of their own; lists no files
FOLDER/components/...    tokenizers, and how prompts become inputs and latents videos
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.axis import Sizes
from vditc.bundle import Bundle, read_manifest
from vditc.codec import PixelShuffleCodec, to_pixels
from vditc.conditioning import TEXT, Conditioning
from vditc.errors import InputError
from vditc.pipeline.components import Components, check_conditioning, own_channels
from vditc.pipeline.schedules import WalkOptions
from vditc.pipeline.served_sizes import ServedSizes, clip_seeds
from vditc.pipeline.triton.engines import EngineChain, ServedEngine, served
from vditc.pipeline.triton.request import Request
from vditc.pipeline.triton.server import Utils
from vditc.pipeline.walk_plan import RunOptions, WalkPlan, with_embedded_guidance
from vditc.runtimes.parts.text_encoder import TextEncoder
from vditc.runtimes.parts.video_decoder import Pixels
from vditc.sampling import Array, sample
from vditc.step_cache import Skips

FILE, SCHEMA = "pipeline.json", 1
MAX_CLIPS = "max_clips"  # parameter of the driver's configuration: of one request
EMPTY = "empty_"  # of the input that has the unconditional branch's value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a pipeline must know of its engines. `sizes`: that the graph takes; `experts`: segments of each; `parts`: folder -> graph."""

    target: str
    prediction: str
    sizes: Sizes
    experts: tuple[tuple[ServedEngine, ...], ...]
    parts: Mapping[str, Mapping[str, ServedEngine]]

    def to_text(self) -> str:
        """Sorted, indented JSON."""
        data = {
            "schema": SCHEMA,
            "target": self.target,
            "prediction": self.prediction,
            "sizes": self.sizes.to_json(),
            "experts": [[engine.to_json() for engine in chain] for chain in self.experts],
            "parts": {part: {name: engine.to_json() for name, engine in own.items()} for part, own in self.parts.items()},
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `to_text` wrote; InputError for a file of another schema."""
        data = json.loads((folder / FILE).read_text())
        if data["schema"] != SCHEMA:
            raise InputError(
                found=f"schema {data['schema']}", wanted=f"schema {SCHEMA}", where=str(folder / FILE), fix="make the repository again"
            )
        engine = ServedEngine.from_json
        return cls(
            target=str(data["target"]),
            prediction=str(data["prediction"]),
            sizes=Sizes.from_json(data["sizes"]),
            experts=tuple(tuple(map(engine, chain)) for chain in data["experts"]),
            parts={part: {name: engine(one) for name, one in own.items()} for part, own in data["parts"].items()},
        )


@dataclasses.dataclass(frozen=True)
class Work:
    """A request that was looked through: all that can be wrong with it has been said."""

    plan: WalkPlan
    clips: Conditioning
    noise: Array | None


def told_specs(manifest_inputs: list[Mapping[str, Any]]) -> tuple[InputSpec, ...]:
    """What the model takes, the latents first, without the step of per-step tables."""
    specs = (InputSpec(i["name"], i["dtype"], tuple(i["dims"]), i["fill"]) for i in manifest_inputs)
    return tuple(spec for spec in specs if spec.name != "step")


def needed_specs(specs: tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
    """Those that somebody must give: neither the latents nor the time, nor what has a number as default."""
    return tuple(spec for spec in specs[1:] if isinstance(spec.fill, str) and spec.fill != "timestep")


class Pipeline:
    """Opened once, asked often. `text_inputs`: of the model, what prompts become."""

    def __init__(self, folder: Path, utils: Utils, max_clips: int) -> None:
        self.utils, self.max_clips = utils, max_clips
        self.description = Description.load(folder)
        self.bundle = Bundle(folder, read_manifest(folder))
        about, target = self.bundle.manifest, self.description.target
        self.specs = told_specs(about.inputs)
        self.sizes = ServedSizes(self.bundle, self.description.sizes, engine=True)
        self.parts = Components.open(folder / "components", target, about.components)
        if isinstance(words := self.parts.words, TextEncoder):
            words.tokens = functools.cache(words.tokens)
            self.text_inputs = {text.input for text in words.conditioner.text} | {
                text.mask_input for text in words.conditioner.text if text.mask_input is not None
            }
        else:
            self.text_inputs = set() if words is None else {TEXT}

    @property
    def decodes(self) -> bool:
        """Whether latents become frames."""
        return self.parts.decoder is not None or self.parts.codec is not None

    def read(self, request: Request) -> Work:
        """InputError, before any engine runs, for what the model, the bundle or an engine does not take; then prompts are encoded."""
        size = request.numbers("size")
        if size is not None and (len(size) != 3 or min(size) < 1):
            raise InputError(found=f"size {size}", wanted="frames, height and width above 0", where="request", fix="for example 81 480 832")
        shape = self.sizes.latent_shape(size)
        text = {name: request.text(name) for name in ("solver", "guidance_passes", "step_cache")}
        numbers = {name: request.number(name) for name in ("guidance", "guidance_2", "embedded_guidance")}
        passes: Any = text["guidance_passes"]
        if passes not in (None, "batched", "two"):
            raise InputError(
                found=f"guidance_passes {passes!r}", wanted="batched or two", where="request", fix="choose one, or leave it out"
            )
        options = RunOptions(
            walk=WalkOptions(solver=text["solver"], steps=request.number("steps"), shift=request.number("shift")),
            guidance=numbers["guidance"],
            guidance_2=numbers["guidance_2"],
            embedded_guidance=numbers["embedded_guidance"],
            passes=passes,
            step_cache=text["step_cache"],
        )
        plan = WalkPlan.of(self.bundle, self.description.target, shape[1:], options)
        clips, prompted = self._told(request, shape)
        clips = with_embedded_guidance(clips, self.specs, options.embedded_guidance)
        self._check(clips, [spec for spec in self.specs if not prompted or spec.name not in self.text_inputs])
        noise = request.array("noise")
        if noise is not None and (noise.shape != (len(clips), *shape) or not np.isfinite(noise).all()):
            raise InputError(
                found=f"noise {list(noise.shape)}", wanted=f"finite numbers, {[len(clips), *shape]}", where="request", fix="draw one a clip"
            )
        if "frames" in request.outputs and self.parts.decoder is not None:
            self.parts.decoder.plan.check(shape[1])
        if prompted:
            clips = self._encoded(clips, request)
            self._check(clips, self.specs)
        return Work(plan, clips, noise)

    def _check(self, clips: Conditioning, specs: Sequence[InputSpec]) -> None:
        check_conditioning(clips, specs, self.sizes.sizes, "request")
        self.sizes.check(clips.sizes(specs), "request")

    def latents(self, work: Work, clip: int, request: Request) -> npt.NDArray[np.float32]:
        """A finished clip [1, C, F, H, W]. CancelledError after a step at which the request was cancelled."""
        plan, told = work.plan, work.clips.clips([clip], self.specs)
        if work.noise is not None:
            told = dataclasses.replace(told, noise=np.asarray(work.noise[clip : clip + 1], np.float32))
        skips = None if plan.cache is None else Skips(*plan.cache, plan.steps)
        latents: npt.NDArray[np.float32] | None = None
        for expert, chain in zip(plan.experts, self.description.experts, strict=True):
            latents = sample(
                EngineChain(self.utils, chain, self.description.prediction, request.check_wanted, expert.steps.start),
                plan.scheduler,  # its first step begins another clip
                told,
                expert.guidance_scale,
                lambda index, _: request.check_wanted(f"step {index + 1} of {plan.steps} of clip {clip + 1}"),
                begin=expert.steps.start,
                end=plan.steps if len(plan.experts) == 1 else expert.steps.stop,
                latents=latents,
                passes=plan.passes,
                cache=skips,
                reuse=True,
            )
        assert latents is not None
        return latents

    def frames(self, latents: Array, request: Request) -> Iterator[Pixels]:
        """uint8 [frames, height, width, 3], chunk by chunk. CancelledError after a chunk at which the request was cancelled."""
        for chunk in _grey(self.parts.codec, latents) if self.parts.codec is not None else self._coloured(latents, request):
            request.check_wanted("decoder")
            yield chunk

    def _coloured(self, latents: Array, request: Request) -> Iterator[Pixels]:
        assert self.parts.decoder is not None
        decoder, graphs = copy.copy(self.parts.decoder), self.description.parts["vae"]
        decoder.open_graph = lambda graph: served(self.utils, graphs[graph.name], request.check_wanted)
        return decoder.stream(latents)

    def _encoded(self, told: Conditioning, request: Request) -> Conditioning:
        """With what its prompts become."""
        words, parts = copy.copy(self.parts.words), self.description.parts
        if isinstance(words, TextEncoder):
            words.open_encoder = lambda part: served(self.utils, parts[part]["model"], request.check_wanted)
        negative = request.text("negative_prompt") or ""
        found = dataclasses.replace(self.parts, words=words).encode(told.prompts, told.seeds, told.latent_shape, None, negative)
        return dataclasses.replace(told, inputs={**found.inputs, **told.inputs}, empty={**found.empty, **told.empty})

    def _told(self, request: Request, shape: tuple[int, int, int, int]) -> tuple[Conditioning, bool]:
        """What clips are sampled from as far as a request says it, and whether prompts are still to be encoded."""
        needed = {spec.name for spec in needed_specs(self.specs)}
        given = {name: array for name in sorted(needed) if (array := request.array(name)) is not None}
        empty = {name: array for name in sorted(needed) if (array := request.array(f"{EMPTY}{name}")) is not None}
        prompts = request.texts("prompt") if self.parts.words is not None else None
        negative = request.text("negative_prompt") if self.parts.words is not None else None
        seed = request.numbers("seed")
        if prompts is not None and (both := sorted(self.text_inputs & {*given, *empty})):
            raise _unclear(f"prompt and {', '.join(both)}", "one of them")
        if prompts is None and (negative is not None or not given):
            raise _unclear("negative_prompt alone" if negative is not None else "nothing to sample from", self._wanted(needed))
        if prompts is not None:
            if not prompts:
                raise _unclear("no prompt", "at least one")
            count = len(seed) if len(prompts) == 1 and seed is not None else len(prompts)
        else:
            specs = {spec.name: spec for spec in self.specs}
            count = max(len(a) if a.ndim and specs[n].dims[0] == "batch" else 1 for n, a in given.items())
        if count > self.max_clips:
            raise InputError(
                found=f"{count} clips",
                wanted=f"at most {self.max_clips} ({MAX_CLIPS} in the model's configuration)",
                where="request",
                fix="ask for them in several requests",
            )
        seeds = clip_seeds(0 if seed is None else seed[0] if len(seed) == 1 else seed, count)
        words = ("",) if prompts is None else tuple(prompts)
        channels, known, frames = request.array("channels"), request.array("known"), request.numbers("known_frames")
        found = Conditioning(
            prompts=words * count if len(words) == 1 else words,
            seeds=seeds,
            latent_shape=shape,
            inputs=given,
            empty=empty,
            channels=own_channels(self.bundle.manifest.sampling["extra_channels"], shape) if channels is None else channels,
            known=known,
            known_frames=tuple(frames or ()),
        )
        return found, prompts is not None

    def _wanted(self, needed: set[str]) -> str:
        return " or ".join([*(["prompt"] if self.parts.words is not None else []), ", ".join(sorted(needed))])


def _grey(codec: PixelShuffleCodec, latents: Array) -> Iterator[Pixels]:
    """Of bundled models, three times the same."""
    yield to_pixels(codec.decode(latents)[0])[..., None].repeat(3, -1)


def _unclear(found: str, wanted: str) -> InputError:
    return InputError(found=found, wanted=wanted, where="request", fix="give what the clips are to be made of")
