"""The small parts of a model directory that sampling needs, and that travel in a bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc import digits
from vditc.adapter import InputSpec
from vditc.axis import CLIP, Sizes
from vditc.codec import PixelShuffleCodec
from vditc.conditioner import conditioner_for
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.model_dir import ModelDir, SamplingDefaults
from vditc.pipeline.schedules import Solver
from vditc.progress import Progress
from vditc.runtimes.parts.opened import open_text_encoder, open_video_decoder
from vditc.runtimes.parts.text_encoder import TextEncoder
from vditc.runtimes.parts.video_decoder import VideoDecoder
from vditc.schedule import Schedule
from vditc.text_encoder import WordEmbedding


@dataclasses.dataclass(frozen=True)
class Components:
    """Scheduler folder, and what turns prompts into the transformer's inputs and latents into pixels when vditc can run it.

    `decoder`: makes videos in colour; `codec`: of the bundled models, grey ones that metrics read.
    """

    path: Path
    words: WordEmbedding | TextEncoder | None
    codec: PixelShuffleCodec | None
    decoder: VideoDecoder | None = None

    @classmethod
    def open(cls, path: Path, target: str | None = None, about: Mapping[str, Any] = MappingProxyType({})) -> Components:
        """Of a model directory, or of a bundle's `components/`.

        `about`: the manifest's components. `target`: whose engines run exported parts; ONNX Runtime runs those that have none.
        """
        words = WordEmbedding.load(path / "text_encoder") if _is(path / "text_encoder", "WordEmbedding") else None
        codec = PixelShuffleCodec.load(path / "vae") if _is(path / "vae", "PixelShuffleCodec") else None
        return cls(path, words or open_text_encoder(path, target, about), codec, open_video_decoder(path, target, about))

    def copy_to(self, folder: Path) -> tuple[str, ...]:
        """Copy the parts that vditc can run; returns the names of the files, relative to the parent of `folder`."""
        own = isinstance(self.words, WordEmbedding)
        kept = ["scheduler", *(["text_encoder"] if own else []), *(["vae"] if self.codec else [])]
        for name in kept:
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(self.path / name, folder / name)
        return tuple(sorted(p.relative_to(folder.parent).as_posix() for p in folder.rglob("*") if p.is_file()))

    def encode(
        self,
        prompts: tuple[str, ...],
        seeds: tuple[int, ...],
        latent_shape: tuple[int, int, int, int],
        extra_channels: str | None,
        negative: str = "",
    ) -> Conditioning:
        """Encode prompts, and the one that clips are to lead away from; InputError for a model whose text encoder vditc does not run."""
        if self.words is None:
            raise InputError(
                found="a text encoder that vditc does not run",
                wanted="saved conditionings",
                where=str(self.path / "text_encoder"),
                fix="encode the prompts with the model's pipeline, save them with vditc.conditioning, and give --conditioning FILE",
            )
        every = self.words.inputs([*dict.fromkeys(prompts), negative])  # together: an encoder of gigabytes is loaded once
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        chosen = [place[prompt] for prompt in prompts]
        return Conditioning(
            prompts=prompts,
            seeds=seeds,
            latent_shape=latent_shape,
            inputs={name: array[chosen] for name, array in every.items()},
            empty={name: array[-1:] for name, array in every.items()},
            channels=own_channels(extra_channels, latent_shape),
        )


def own_channels(extra: str | None, latent_shape: tuple[int, int, int, int]) -> npt.NDArray[np.float32] | None:
    """[1, E, F, H, W], constant channels that a model of `extra` has beside its latents whatever it is told; None for one without."""
    return digits.position_channels(*latent_shape[1:])[None] if extra == "position" else None


def _is(folder: Path, name: str) -> bool:
    config = folder / "config.json"
    return config.exists() and json.loads(config.read_text()).get("_class_name") == name


def sampling_of(source: ModelDir, sizes: Sizes, steps: int | None, guidance_scale: float | None, size: str = "") -> SamplingDefaults:
    """The model's sampling defaults with the user's changes; without sampling.json those of its pipeline, InputError for an unknown one.

    `size`: a preset, or FRAMESxHEIGHTxWIDTH in frames and pixels.
    """
    own = source.sampling or _pipeline_sampling(source, sizes)
    changed = {} if not size else clip_size(size, sizes)
    return dataclasses.replace(
        own,
        steps=own.steps if steps is None else steps,
        guidance_scale=own.guidance_scale if guidance_scale is None else guidance_scale,
        frames=changed.get("frames", own.frames),
        height=changed.get("height", own.height),
        width=changed.get("width", own.width),
    )


def _pipeline_sampling(source: ModelDir, sizes: Sizes) -> SamplingDefaults:
    """Steps and guidance of the pipeline class, the size that the published model was made for."""
    found = conditioner_for(source.path, source.config)
    if found is None or any(axis not in sizes.axes for axis in CLIP):
        raise InputError(
            found="no sampling.json",
            wanted="steps, guidance_scale, frames, height, width of the latent clip",
            where=str(source.path),
            fix='write sampling.json, for example {"steps": 50, "guidance_scale": 5.0, "frames": 21, "height": 60, "width": 104}',
        )
    frames, height, width = (sizes.axes[axis].default for axis in CLIP)
    return SamplingDefaults(steps=found.steps, guidance_scale=found.guidance_scale, frames=frames, height=height, width=width)


def clip_size(asked: str | Sequence[int | None], sizes: Sizes) -> dict[str, int]:
    """Latent steps of the axes of a clip: a preset, FRAMESxHEIGHTxWIDTH in frames and pixels, or these as numbers, None for what is left.

    InputError for anything else, and for what the model does not take. Axes that it has not are left out.
    """
    if isinstance(asked, str) and asked in sizes.presets:
        return sizes.preset(asked, "--size")
    words = asked.split("x") if isinstance(asked, str) else ["" if n is None else str(n) for n in asked]
    if len(words) != len(CLIP) or not all(w.isdigit() or (not w and not isinstance(asked, str)) for w in words):
        raise InputError(
            found=f"--size {asked}",
            wanted=f"FRAMESxHEIGHTxWIDTH in frames and pixels{', or one of ' + ', '.join(sizes.presets) if sizes.presets else ''}",
            where="--size",
            fix="for example 49x480x720",
        )
    found = {}
    for axis, word in zip(CLIP, words, strict=True):
        if axis in sizes.axes and word:
            steps = sizes.read(axis, f"{word}{sizes.axes[axis].suffix}", "--size")
            assert steps is not None  # a number with the axis's own ending
            found[axis] = steps
    return found


def model_schedule(source: ModelDir, steps: int | None, progress: Progress) -> Schedule | None:
    """The schedule of the model's own scheduler, for `steps` or those of sampling.json; None, with a note, where one is missing.

    InputError if `steps` are given and the scheduler cannot walk them.
    """
    count = steps if steps is not None or source.sampling is None else source.sampling.steps
    try:
        if count is None:
            raise InputError(found="no sampling.json", wanted="the number of steps", where=str(source.path), fix="give --steps")
        size = None if source.sampling is None else (source.sampling.frames, source.sampling.height, source.sampling.width)
        return Solver.of_model(source).walk(count, size).schedule
    except InputError as error:
        if steps is not None:
            raise
        progress.note(f"the graph is for no schedule in particular, so that lowering leaves its time path as it is: {error}")
        return None


def load_conditioning(path: Path, specs: Sequence[InputSpec], sizes: Sizes) -> Conditioning:
    """Saved conditionings; InputError for a clip, a text or another input that the model does not take, or one that it lacks."""
    given = Conditioning.load(path)
    check_conditioning(given, specs, sizes, str(path))
    return given


def check_conditioning(given: Conditioning, specs: Sequence[InputSpec], sizes: Sizes, where: str) -> None:
    """InputError as above."""
    given.check(specs)
    sizes.check(given.sizes(specs), where)


def conditioning_for(
    parts: Components, sampling: SamplingDefaults, channels: int, count: int, seed: int, prompts: tuple[str, ...]
) -> Conditioning:
    """`count` clips: the given prompts in turn, or the captions that the model was made for. Noise seeds follow `seed`."""
    if not prompts:
        if sampling.semantics != "digits":
            raise InputError(
                found="no prompts",
                wanted="--prompts FILE (one a line) or --conditioning FILE",
                where=str(parts.path),
                fix="give prompts like those that the model will see",
            )
        prompts = tuple(str(c) for c in digits.sample_captions(count, seed))
    chosen = tuple(prompts[i % len(prompts)] for i in range(count))
    seeds = tuple(seed * 100_000 + i for i in range(count))
    return parts.encode(chosen, seeds, (channels, sampling.frames, sampling.height, sampling.width), sampling.extra_channels)
