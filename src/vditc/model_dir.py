"""A model directory in diffusers format, read without PyTorch: configuration, weights by memory map, sampling defaults."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from vditc.errors import InputError
from vditc.files import sha256
from vditc.safetensors_file import TensorEntry, read_header


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


@dataclasses.dataclass(frozen=True)
class ModelDir:
    """A checked model directory."""

    path: Path
    config: dict[str, Any]  # transformer/config.json
    weights: dict[str, TensorEntry]  # of the transformer, over all shards
    sampling: SamplingDefaults | None
    digest: str  # sha256 over the digests of all files of the transformer and sampling.json, in name order

    @property
    def model_class(self) -> str:
        """The diffusers class of the transformer."""
        return str(self.config["_class_name"])

    @property
    def transformer(self) -> Path:
        """The folder that holds the transformer."""
        return self.path / "transformer"

    @property
    def weight_count(self) -> int:
        """Number of weights of the transformer."""
        return sum(_count(e.shape) for e in self.weights.values())

    @classmethod
    def open(cls, path: Path) -> ModelDir:
        """Read and check; InputError for a missing or damaged file."""
        folder = path / "transformer"
        config = _json(folder / "config.json")
        if not isinstance(config.get("_class_name"), str):
            raise InputError(
                found="no _class_name",
                wanted="the diffusers class of the transformer",
                where=str(folder / "config.json"),
                fix="save the model with diffusers' save_pretrained",
            )
        shards = _shards(folder)
        weights: dict[str, TensorEntry] = {}
        for shard in shards:
            weights |= read_header(shard)[0]
        defaults = path / "sampling.json"
        sampling = _sampling(defaults) if defaults.exists() else None
        parts = [folder / "config.json", *shards, *([defaults] if sampling else [])]
        joined = "".join(f"{p.name}:{sha256(p)}\n" for p in sorted(parts))
        return cls(path, config, weights, sampling, hashlib.sha256(joined.encode()).hexdigest())


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            found=f"no readable file ({error.strerror})", wanted="a diffusers model directory", where=str(path), fix="check MODEL_DIR"
        ) from error
    except ValueError as error:
        raise InputError(found=f"no JSON ({error})", wanted="JSON", where=str(path), fix="restore the file") from error
    if not isinstance(data, dict):
        raise InputError(found=type(data).__name__, wanted="a JSON object", where=str(path), fix="restore the file")
    return data


def _shards(folder: Path) -> list[Path]:
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if index.exists():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(n, str) and Path(n).name == n for n in shards.values()):
            raise InputError(
                found=f"weight_map = {str(shards)[:60]}", wanted="tensor name -> file name", where=str(index), fix="restore the file"
            )
        return [folder / name for name in sorted(set(shards.values()))]
    return [folder / "diffusion_pytorch_model.safetensors"]


def _sampling(path: Path) -> SamplingDefaults:
    data = _json(path)
    try:
        defaults = SamplingDefaults(**data)
    except TypeError as error:
        names = ", ".join(f.name for f in dataclasses.fields(SamplingDefaults))
        raise InputError(found=str(error), wanted=names, where=str(path), fix="correct the file") from error
    for name in ("steps", "frames", "height", "width"):
        if type(value := getattr(defaults, name)) is not int or value < 1:
            raise InputError(found=f"{name} = {value!r}", wanted="a whole number above 0", where=str(path), fix="correct the file")
    if type(defaults.guidance_scale) not in (int, float):
        raise InputError(found=f"guidance_scale = {defaults.guidance_scale!r}", wanted="a number", where=str(path), fix="correct the file")
    for name, known in (("semantics", "digits"), ("extra_channels", "position")):
        if (word := getattr(defaults, name)) not in (None, known):
            raise InputError(found=f"{name} = {word!r}", wanted=f"{known!r}, or leave it out", where=str(path), fix="correct the file")
    return defaults
