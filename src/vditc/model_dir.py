"""A model directory in diffusers format, read without PyTorch: configuration, weights by memory map, sampling defaults."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vditc.background import hash_later
from vditc.checkpoint import read_checkpoint, read_json
from vditc.errors import InputError
from vditc.safetensors_file import TensorEntry

PARTS = ("transformer", "transformer_2")  # in sampling order: the second takes over below the boundary


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How the model is meant to be sampled: `sampling.json` beside `model_index.json`."""

    steps: int
    guidance_scale: float  # 1 samples without the unconditional branch
    frames: int  # of the latent clip
    height: int  # of the latent clip
    width: int
    semantics: str | None = None  # "digits": clips can be read by vditc.metrics
    extra_channels: str | None = None  # "position": vditc.digits.position_channels are appended to the latents
    guidance_scale_2: float | None = None  # of the second of two experts; None: as the first


@dataclasses.dataclass(frozen=True)
class ModelDir:
    """A checked model directory, seen from one of its transformers."""

    path: Path
    config: dict[str, Any]  # <part>/config.json
    weights: Mapping[str, TensorEntry]  # of this transformer, over all shards
    sampling: SamplingDefaults | None  # `guidance_scale` is that of `part`
    hashed: Callable[[], str] = dataclasses.field(repr=False, compare=False)  # waits for `digest`
    part: str = PARTS[0]
    parts: tuple[str, ...] = (PARTS[0],)  # all transformers of the model
    # A model of two experts samples with the second from timestep / training timesteps < boundary_ratio on.
    boundary_ratio: float | None = None

    @property
    def digest(self) -> str:
        """sha256 over the digests of all files of the transformer, model_index.json, sampling.json and vae/config.json, in path order.

        Computed once, beside other work, from when the directory was opened: tens of seconds at 14 B weights. InputError when a
        file has gone since.
        """
        return self.hashed()

    def expert(self, timesteps: Sequence[float]) -> dict[str, Any]:
        """Which of two experts this is: part, boundary_ratio, and of a schedule boundary_step, the first step of `transformer_2`."""
        file = self.path / "scheduler" / "scheduler_config.json"
        trained = float(read_json(file).get("num_train_timesteps", 1000)) if file.exists() else 1000.0
        about: dict[str, Any] = {"part": self.part, "boundary_ratio": self.boundary_ratio}
        if timesteps and self.boundary_ratio is not None:
            # Diffusers compares in the timesteps' type.
            about["boundary_step"] = int((np.array(timesteps, np.float32) >= np.float32(self.boundary_ratio * trained)).sum())
        return about

    @property
    def model_class(self) -> str:
        """The diffusers class of the transformer."""
        return str(self.config["_class_name"])

    @property
    def transformer(self) -> Path:
        """The folder that holds the transformer."""
        return self.path / self.part

    @property
    def weight_count(self) -> int:
        """Number of weights of the transformer."""
        return sum(math.prod(e.shape) for e in self.weights.values())

    @classmethod
    def parts_in(cls, path: Path) -> tuple[str, ...]:
        """The transformers of a model directory; InputError when one that model_index.json names is not there."""
        return _parts(path, _index(path), PARTS[0])

    @classmethod
    def open(cls, path: Path, part: str | None = None, *, hash_now: bool = True) -> ModelDir:
        """Read and check one transformer, `part` if there are two; InputError for a missing or damaged file.

        `hash_now`: begin to compute the digest, for somebody who is going to ask for it.
        """
        index = _index(path)
        parts = _parts(path, index, part)
        part = part or PARTS[0]
        folder = path / part
        config = read_json(folder / "config.json")
        name = config.get("_class_name")
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(
                found="no _class_name" if name is None else f"_class_name = {name!r}",
                wanted="the diffusers class of the transformer",
                where=str(folder / "config.json"),
                fix="save the model with diffusers' save_pretrained",
            )
        if config.get("quantization_config"):
            raise InputError(
                found="quantization_config: a checkpoint that is quantized already",
                wanted="floating-point weights",
                where=str(folder / "config.json"),
                fix="use the checkpoint that it was made from: vditc quantizes it itself",
            )
        files, weights = read_checkpoint(folder, name)
        defaults = path / "sampling.json"
        sampling = _sampling(defaults) if defaults.exists() else None
        if sampling is not None and sampling.guidance_scale_2 is not None:
            if len(parts) == 1:
                raise InputError(
                    found=f"guidance_scale_2 = {sampling.guidance_scale_2:g} for a model of one transformer",
                    wanted="guidance_scale alone",
                    where=str(defaults),
                    fix="leave it out, or copy the missing folder transformer_2",
                )
            if part != PARTS[0]:
                sampling = dataclasses.replace(sampling, guidance_scale=sampling.guidance_scale_2)
        boundary = _boundary(index, path / "model_index.json")
        # The pipeline's class and settings change some models' inputs, the VAE's strides what sizes a graph says that it takes.
        about = [p for p in (path / "model_index.json", path / "vae" / "config.json") if p.exists()]
        hashed = sorted([folder / "config.json", *files, *([defaults] if sampling else []), *about])
        hashes = functools.cache(lambda: hash_later(hashed))
        if hash_now:
            hashes()
        return cls(path, config, weights, sampling, lambda: _digest(path, hashed, hashes()()), part, parts, boundary)


def _digest(path: Path, files: list[Path], hashes: list[str]) -> str:
    joined = "".join(f"{p.relative_to(path).as_posix()}:{h}\n" for p, h in zip(files, hashes, strict=True))
    return hashlib.sha256(joined.encode()).hexdigest()


def _index(path: Path) -> dict[str, Any]:
    file = path / "model_index.json"
    return read_json(file) if file.exists() else {}


def _parts(path: Path, index: Mapping[str, Any], part: str | None) -> tuple[str, ...]:
    """The transformers whose folders are there; InputError when `part` or one that model_index.json names is not, or none is chosen."""
    # diffusers writes [null, null] for a component that the pipeline knows but the model lacks.
    named = [p for p in PARTS if isinstance(index.get(p), list) and any(index[p])]
    there = tuple(p for p in PARTS if (path / p).is_dir())
    for name in dict.fromkeys([*named, part or PARTS[0]]):
        if name not in there and there:
            raise InputError(
                found=f"no folder {name}",
                wanted="every transformer that model_index.json names" if name in named else f"one of {', '.join(there)}",
                where=str(path),
                fix="copy or download the missing folder" if name in named else "choose a part of this model",
            )
    if part is None and len(there) > 1:
        raise InputError(
            found=f"{len(there)} transformers, experts for early and late steps",
            wanted=f"--part {' or --part '.join(there)}",
            where=str(path),
            fix="do each of them by itself, or both with `vditc compile`",
        )
    return there


def _boundary(index: Mapping[str, Any], where: Path) -> float | None:
    ratio = index.get("boundary_ratio")
    if ratio is not None and (type(ratio) not in (int, float) or not 0 <= ratio <= 1):
        raise InputError(
            found=f"boundary_ratio = {ratio!r}", wanted="a number from 0 to 1, or null", where=str(where), fix="correct the file"
        )
    return None if ratio is None else float(ratio)


def _sampling(path: Path) -> SamplingDefaults:
    data = read_json(path)
    try:
        defaults = SamplingDefaults(**data)
    except TypeError as error:
        names = ", ".join(f.name for f in dataclasses.fields(SamplingDefaults))
        raise InputError(found=str(error), wanted=names, where=str(path), fix="correct the file") from error
    for name in ("steps", "frames", "height", "width"):
        if type(value := getattr(defaults, name)) is not int or value < 1:
            raise InputError(found=f"{name} = {value!r}", wanted="a whole number above 0", where=str(path), fix="correct the file")
    for name in ("guidance_scale", "guidance_scale_2"):
        if type(value := getattr(defaults, name)) not in (int, float) and (name == "guidance_scale" or value is not None):
            raise InputError(found=f"{name} = {value!r}", wanted="a number", where=str(path), fix="correct the file")
    for name, known in (("semantics", "digits"), ("extra_channels", "position")):
        if (word := getattr(defaults, name)) not in (None, known):
            raise InputError(found=f"{name} = {word!r}", wanted=f"{known!r}, or leave it out", where=str(path), fix="correct the file")
    return defaults
