"""LoRA files, and model directories whose weights have them fused in.

W' = W + scale * alpha / rank * B A (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3), computed in float32
when a weight is read and rounded once, to the checkpoint's type. Only one weight is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.background import hash_later
from vditc.errors import InputError
from vditc.files import data_digest
from vditc.lora_file import LoraModule, lora_files, read_lora
from vditc.lora_names import Place, places
from vditc.model_dir import PARTS, ModelDir
from vditc.safetensors_file import TensorEntry

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly it is applied."""

    path: Path
    scale: float
    modules: Mapping[str, Mapping[str, LoraModule]]  # transformer -> module's name in the file -> its tensors
    hashed: Callable[[], list[str]] = dataclasses.field(repr=False, compare=False)

    @property
    def digest(self) -> str:
        """Of the file, and of peft's configuration beside it; computed beside other work. InputError when it has gone since."""
        hashes = self.hashed()
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    @classmethod
    def open(cls, path: Path, scale: float = 1.0) -> Lora:
        """Read and check; InputError for a file that is missing, damaged or of a kind that cannot be fused."""
        if not math.isfinite(scale):
            raise InputError(found=f"scale {scale}", wanted="a finite number", where=str(path), fix="correct --lora FILE:SCALE")
        return cls(path, scale, read_lora(path), hash_later(lora_files(path)))

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Of FILE or FILE:SCALE; the scale is 1 unless given."""
        name, colon, word = text.rpartition(":")
        if not colon or Path(text).is_file():
            return cls.open(Path(text))
        try:
            scale = float(word)
        except ValueError as error:
            raise InputError(found=f"scale {word!r}", wanted="a number", where=f"--lora {text}", fix="write FILE:SCALE") from error
        return cls.open(Path(name), scale)

    def to_json(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"name": self.path.name, "sha256": self.hashed()[0], "digest": self.digest, "scale": self.scale}

    def of(self, part: str) -> Mapping[str, LoraModule]:
        """Modules for one transformer. A file that does not tell two transformers apart is for any."""
        return self.modules.get(part, {}) if PARTS[1] in self.modules else self.modules[PARTS[0]]


@dataclasses.dataclass(frozen=True)
class Delta:
    """What is added to a weight: `factor * up @ down`, or `factor * up` without `down`; `place` chooses rows of it."""

    up: TensorEntry
    down: TensorEntry | None
    factor: float
    place: Place

    def rows(self) -> Array:
        """float32, the outputs first."""
        up = np.asarray(self.up.read(), np.float32)[self.place.begin : self.place.end]
        if self.place.swapped:
            up = np.concatenate([up[len(up) // 2 :], up[: len(up) // 2]])
        if self.down is None:
            return up * np.float32(self.factor)
        rank = self.down.shape[0]
        product: Array = up.reshape(-1, rank) @ np.asarray(self.down.read(), np.float32).reshape(rank, -1)
        return product * np.float32(self.factor)


@dataclasses.dataclass(frozen=True)
class FusedTensor(TensorEntry):
    """A weight of the checkpoint plus what LoRA files add to it; `offset` is that of the checkpoint's own bytes."""

    base: TensorEntry
    deltas: tuple[Delta, ...]

    @classmethod
    def of(cls, base: TensorEntry, deltas: Iterable[Delta]) -> FusedTensor:
        """In the order in which the deltas are added."""
        return cls(base.path, base.dtype, base.shape, base.offset, base.nbytes, base, tuple(deltas))

    def read(self) -> npt.NDArray[Any]:
        """The fused weight in the checkpoint's type, computed anew; InputError when it is no longer finite there."""
        total = self.base.read().astype(np.float32)
        for delta in self.deltas:
            total += delta.rows().reshape(self.shape)
        with np.errstate(over="ignore"):
            rounded = total.astype(self.dtype)
        if not np.isfinite(rounded).all():
            raise InputError(
                found=f"a fused weight that is not finite in {self.dtype}",
                wanted="finite weights",
                where=f"{self.path} with {', '.join(dict.fromkeys(d.up.path.name for d in self.deltas))}",
                fix="lower the LoRA's scale, or check that it is for this model",
            )
        return rounded


def fuse(source: ModelDir, loras: Sequence[Lora]) -> ModelDir:
    """The model with LoRAs added, in order; its digest follows the model's and every LoRA's digest and scale.

    Nothing is computed until a weight is read. InputError when a LoRA matches nothing, some of it has no place in the model, or
    shapes do not fit.
    """
    if not loras:
        return source
    known = places(source.model_class, source.weights)
    deltas: dict[str, list[Delta]] = {}
    for lora in loras:
        for name, delta in _deltas(source, lora, known):
            deltas.setdefault(name, []).append(delta)

    def digest() -> str:
        parts = {"model": source.digest, "loras": [[lora.digest, lora.scale] for lora in loras]}
        return data_digest(parts)

    fused = {n: FusedTensor.of(e, deltas[n]) if n in deltas else e for n, e in source.weights.items()}
    return dataclasses.replace(source, weights=fused, hashed=digest)


def _deltas(source: ModelDir, lora: Lora, known: Mapping[str, tuple[Place, ...]]) -> list[tuple[str, Delta]]:
    """Checkpoint tensor and what is added to it, for everything that the file holds for this transformer."""
    modules, found = lora.of(source.part), []
    lost: list[str] = []
    taken: dict[tuple[str, Place], str] = {}
    for name, module in modules.items():
        where = known.get(name, ())
        for parameter, up, down, factor in module.products():
            targets = [(f"{place.module}.{parameter}".removeprefix("."), place) for place in where]
            if not targets or any(t not in source.weights for t, _ in targets):
                lost.append(name if parameter == "weight" else f"{name} ({parameter})")
                continue
            for target, place in targets:
                if not _fits(source.weights[target].shape, up, down, place, where[-1].end):
                    sides = f"{list(up.shape)}" if down is None else f"{list(up.shape)} x {list(down.shape)}"
                    raise InputError(
                        found=f"{sides} for {name}",
                        wanted=f"what adds to {target} {list(source.weights[target].shape)}, with one rank",
                        where=str(lora.path),
                        fix="use a LoRA that was made for this model",
                    )
                if (other := taken.setdefault((target, place), name)) != name:
                    raise InputError(
                        found=f"modules {other} and {name} for {target}",
                        wanted="each layer once",
                        where=str(lora.path),
                        fix="save it again",
                    )
                found.append((target, Delta(up, down, lora.scale * factor, place)))
    if lost or not found:
        raise InputError(
            found=f"{len(lost)} of {len(modules)} modules that the model lacks, first {lost[0]}" if lost else "no module for it",
            wanted=f"modules of {source.part}, a {source.model_class}",
            where=str(lora.path),
            fix="use a LoRA that was made for this model",
        )
    return found


def _fits(weight: tuple[int, ...], up: TensorEntry, down: TensorEntry | None, place: Place, stacked: int | None) -> bool:
    """Whether the product's rows of `place` have the weight's shape. `stacked`: all rows of layers that the file holds as one."""
    rows = up.shape[0] if place.end is None else place.end - place.begin
    shape = (rows, *(up if down is None else down).shape[1:])
    return (
        _plain(shape) == _plain(weight)
        and stacked in (None, up.shape[0])
        and not (place.swapped and rows % 2)
        and (down is None or math.prod(up.shape[1:]) == down.shape[0])
    )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without ones at the end: a 1 x 1 convolution is a linear layer."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
