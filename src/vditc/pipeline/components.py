"""The small parts of a model directory that sampling needs, and that travel in a bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from vditc import digits
from vditc.adapter import InputSpec
from vditc.axis import Sizes
from vditc.codec import PixelShuffleCodec
from vditc.conditioning import TEXT, Conditioning
from vditc.errors import InputError
from vditc.model_dir import ModelDir, SamplingDefaults
from vditc.pipeline.schedules import load_schedule
from vditc.progress import Progress
from vditc.schedule import Schedule
from vditc.text_encoder import WordEmbedding


@dataclasses.dataclass(frozen=True)
class Components:
    """Scheduler folder, and what turns prompts into vectors and latents into pixels when vditc can run it."""

    path: Path
    words: WordEmbedding | None
    codec: PixelShuffleCodec | None

    @classmethod
    def open(cls, path: Path) -> Components:
        """Of a model directory, or of a bundle's `components/`."""
        words = WordEmbedding.load(path / "text_encoder") if _is(path / "text_encoder", "WordEmbedding") else None
        codec = PixelShuffleCodec.load(path / "vae") if _is(path / "vae", "PixelShuffleCodec") else None
        return cls(path, words, codec)

    def schedule(self, steps: int) -> Schedule:
        """The schedule for a number of steps."""
        return load_schedule(self.path, steps)

    def copy_to(self, folder: Path) -> tuple[str, ...]:
        """Copy the parts that vditc can run; returns the names of the files, relative to the parent of `folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        kept = ["scheduler", *(["text_encoder"] if self.words else []), *(["vae"] if self.codec else [])]
        for name in kept:
            shutil.copytree(self.path / name, folder / name)
        return tuple(sorted(p.relative_to(folder.parent).as_posix() for p in folder.rglob("*") if p.is_file()))

    def encode(
        self, prompts: tuple[str, ...], seeds: tuple[int, ...], latent_shape: tuple[int, int, int, int], extra_channels: str | None
    ) -> Conditioning:
        """Encode prompts; InputError for a model whose text encoder vditc does not run."""
        if self.words is None:
            raise InputError(
                found="a text encoder that vditc does not run",
                wanted="saved conditionings",
                where=str(self.path / "text_encoder"),
                fix="encode the prompts with the model's pipeline, save them with vditc.conditioning, and give --conditioning FILE",
            )
        return Conditioning(
            prompts=prompts,
            seeds=seeds,
            latent_shape=latent_shape,
            inputs={TEXT: self.words.encode(list(prompts))},
            empty={TEXT: self.words.encode([""])},
            channels=digits.position_channels(*latent_shape[1:])[None] if extra_channels == "position" else None,
        )


def _is(folder: Path, name: str) -> bool:
    config = folder / "config.json"
    return config.exists() and json.loads(config.read_text()).get("_class_name") == name


def sampling_of(source: ModelDir, steps: int | None, guidance_scale: float | None) -> SamplingDefaults:
    """The model's sampling defaults with the user's changes; InputError when there are none."""
    if source.sampling is None:
        raise InputError(
            found="no sampling.json",
            wanted="steps, guidance_scale, frames, height, width of the latent clip",
            where=str(source.path),
            fix='write sampling.json, for example {"steps": 50, "guidance_scale": 5.0, "frames": 21, "height": 60, "width": 104}',
        )
    own = source.sampling
    return dataclasses.replace(
        own,
        steps=own.steps if steps is None else steps,
        guidance_scale=own.guidance_scale if guidance_scale is None else guidance_scale,
    )


def model_schedule(source: ModelDir, steps: int | None, progress: Progress) -> Schedule | None:
    """The schedule of the model's own scheduler, for `steps` or those of sampling.json; None, with a note, where one is missing.

    InputError if `steps` are given and the scheduler cannot walk them.
    """
    count = steps if steps is not None or source.sampling is None else source.sampling.steps
    try:
        if count is None:
            raise InputError(found="no sampling.json", wanted="the number of steps", where=str(source.path), fix="give --steps")
        return load_schedule(source.path, count)
    except InputError as error:
        if steps is not None:
            raise
        progress.note(f"the graph is for no schedule in particular, so that lowering leaves its time path as it is: {error}")
        return None


def load_conditioning(path: Path, specs: Sequence[InputSpec], sizes: Sizes) -> Conditioning:
    """Saved conditionings; InputError for a clip, a text or another input that the model does not take, or one that it lacks."""
    given = Conditioning.load(path)
    given.check(specs)
    sizes.check(given.sizes(specs), str(path))
    return given


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
