"""Clips to train on, in a folder: finished latents and what the model is told of each, in shards. docs/dataset.md has the format.

index.json               what the clips are of, and for each shard its file, clips and sha256
shard-00000.safetensors  a conditioning (vditc.conditioning) of n clips, and `latents` [n, C, F, H, W], float16 or float32
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.checkpoint import read_json
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.files import sha256, write_text
from vditc.safetensors_file import TensorEntry, is_float, read_header, write_tensors
from vditc.schedule import Schedule
from vditc.threads import for_each

Array = npt.NDArray[Any]
SCHEMA = 1
INDEX = "index.json"
LATENTS = "latents"
TYPES = ("float16", "float32")  # of latents


@dataclasses.dataclass(frozen=True)
class Batch:
    """B clips."""

    latents: npt.NDArray[np.float32]  # [B, C, F, H, W], without noise
    conditioning: Conditioning  # of the same clips, in their order


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """One file of a dataset; nothing of it is in memory."""

    path: Path
    entries: Mapping[str, TensorEntry]
    info: Mapping[str, Any]  # of the conditioning

    def __len__(self) -> int:
        return len(self.info["prompts"])

    def clip(self, index: int, shared: Sequence[str]) -> Batch:
        """One clip; inputs named in `shared` have one value for all."""

        def of(name: str) -> Array:
            array = self.entries[name].read()
            if name.partition("/")[2] in shared:
                return np.array(array)
            row = 0 if len(array) == 1 else index
            return np.array(array[row : row + 1])

        arrays = {name: of(name) for name in self.entries}
        info = {**self.info, "prompts": [self.info["prompts"][index]], "seeds": [self.info["seeds"][index]]}
        return Batch(arrays.pop(LATENTS).astype(np.float32), Conditioning.of(arrays, info))

    def check_values(self, wanted: str) -> None:
        """InputError when the file has not that sha256, or holds a number that is not finite. Reads all of it."""
        if (found := sha256(self.path)) != wanted:
            raise _bad(f"sha256 {found[:12]}", f"{wanted[:12]}, as {INDEX} says", self.path, "restore the file, or write the index again")
        for name, entry in self.entries.items():
            array = entry.read()
            for clip, row in enumerate(array) if is_float(array.dtype) else ():
                if not np.isfinite(row).all():
                    raise _bad("numbers that are not finite", "finite numbers", f"{self.path}, {name}, clip {clip}", "leave this clip out")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A folder of clips, checked. Clips are numbered through all shards."""

    path: Path
    shards: tuple[Shard, ...]
    shared: tuple[str, ...] = ()  # inputs that have one value for all clips
    model_class: str | None = None  # what sampled the clips; None, like the rest, where they come from elsewhere
    model_digest: str | None = None
    schedule: Schedule | None = None
    guidance_scale: float | None = None

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(channels, frames, height, width)."""
        c, f, h, w = self.shards[0].info["latent_shape"]
        return c, f, h, w

    @property
    def digest(self) -> str:
        """sha256 of the index, which has those of all shards."""
        return sha256(self.path / INDEX)

    def read(self, indices: Sequence[int]) -> Batch:
        """Some clips in the given order."""
        found = [self._clip(i) for i in indices]
        first, given = found[0].conditioning, [b.conditioning for b in found]

        def joined(name: str, arrays: list[Array]) -> Array:
            return arrays[0] if name in self.shared else np.concatenate(arrays)

        return Batch(
            np.concatenate([b.latents for b in found]),
            dataclasses.replace(
                first,
                prompts=tuple(p for c in given for p in c.prompts),
                seeds=tuple(s for c in given for s in c.seeds),
                inputs={n: joined(n, [c.inputs[n] for c in given]) for n in first.inputs},
                empty={n: joined(n, [c.empty[n] for c in given]) for n in first.empty},
                channels=None if first.channels is None else np.concatenate([c.channels for c in given if c.channels is not None]),
                known=None if first.known is None else np.concatenate([c.known for c in given if c.known is not None]),
            ),
        )

    def _clip(self, index: int) -> Batch:
        for shard in self.shards:
            if index < len(shard):
                return shard.clip(index, self.shared)
            index -= len(shard)
        raise IndexError(f"{index} more than the clips of {self.path}")

    def indices(self, number: int, size: int, seed: int) -> list[int]:
        """The clips of batch `number`: endless epochs, each a new order, cut into batches of `size`.

        A function of its arguments alone, so that a training goes on anywhere; a batch may reach over the end of an epoch.
        """
        positions, orders = range(number * size, (number + 1) * size), {}
        for epoch in {position // len(self) for position in positions}:
            orders[epoch] = np.random.default_rng((seed, epoch)).permutation(len(self))
        return [int(orders[p // len(self)][p % len(self)]) for p in positions]

    def batches(self, size: int, seed: int, begin: int = 0) -> Iterator[Batch]:
        """Batches number `begin`, `begin` + 1, … without end."""
        while True:
            yield self.read(self.indices(begin, size, seed))
            begin += 1

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Dataset:
        """Read a folder; InputError for one that is not whole, or whose shards do not fit each other.

        `verify` reads every shard once: a sha256 that is not the index's, or a number that is not finite, is an InputError too.
        """
        if not (path / INDEX).is_file():
            raise _bad(f"no {INDEX}", "a folder that `vditc dataset` wrote, or one like it", path, "see docs/dataset.md")
        index = read_json(path / INDEX)
        try:
            if index["schema"] != SCHEMA:
                raise ValueError(f"schema {index['schema']}")
            listed = [(path / str(s["file"]), int(s["clips"]), str(s["sha256"])) for s in index["shards"]]
            schedule = index.get("schedule")
            if not listed:
                raise ValueError("no shard")
            if any(file.parent != path for file, _, _ in listed):
                raise ValueError("a shard outside of the folder")
            found = cls(
                path=path,
                shards=tuple(_shard(file, clips) for file, clips, _ in listed),
                shared=tuple(map(str, index.get("shared", ()))),
                schedule=None if schedule is None else Schedule.from_json(schedule),
                **{name: index.get(name) for name in ("model_class", "model_digest", "guidance_scale")},
            )
        except (KeyError, ValueError, TypeError) as error:
            raise _bad(f"no index ({error})", f"schema {SCHEMA} and a list of shards", path / INDEX, "see docs/dataset.md") from error
        found._check()
        if verify:
            for_each(lambda both: both[0].check_values(both[1][2]), list(zip(found.shards, listed, strict=True)))
        return found

    def _check(self) -> None:
        """Every shard for itself, and beside the first."""
        kinds = []
        for shard in self.shards:
            n = len(shard)
            for name, entry in shard.entries.items():
                one = name.partition("/")[0] in ("empty", "channels", "known")
                if name.partition("/")[2] not in self.shared and (not entry.shape or entry.shape[0] not in ((1, n) if one else (n,))):
                    raise _bad(f"{name} {list(entry.shape)}", f"{n} clips", shard.path, "save a row for every clip")
            latents = shard.entries[LATENTS]
            if latents.dtype.name not in TYPES or list(latents.shape) != [n, *shard.info["latent_shape"]]:
                wanted = f"{' or '.join(TYPES)} {[n, *shard.info['latent_shape']]}"
                raise _bad(f"latents {latents.dtype}{list(latents.shape)}", wanted, shard.path, "save the latents of every clip")
            try:
                shard.clip(0, self.shared)
            except (InputError, KeyError, ValueError, TypeError) as error:
                raise _bad(f"no conditioning ({error})", "what docs/conditioning.md says", shard.path, "save the shard again") from error
            shapes = {name: e.shape if name.partition("/")[2] in self.shared else e.shape[1:] for name, e in shard.entries.items()}
            kinds.append((shapes, list(shard.info["latent_shape"]), list(shard.info["known_frames"])))
        for shard, kind in zip(self.shards, kinds, strict=True):
            if kind != kinds[0]:
                differ = [n for n in kind[0].keys() | kinds[0][0].keys() if kind[0].get(n) != kinds[0][0].get(n)]
                found = f"{min(differ)} {list(kind[0].get(min(differ), ()))}" if differ else f"known_frames {kind[2]}"
                raise _bad(f"{found}, not as in {self.shards[0].path.name}", "clips of one size", shard.path, "make a dataset of each size")


def shard_name(number: int) -> str:
    """File of a shard."""
    return f"shard-{number:05}.safetensors"


def write_shard(path: Path, latents: Array, conditioning: Conditioning, key: str = "") -> None:
    """Write a shard: latents [n, C, F, H, W] float16 or float32 of the clips of `conditioning`.

    `key` is kept in the file, for who wants to know what it was made of; see `shard_key`. InputError for numbers that are not finite.
    """
    shape = [len(conditioning), *conditioning.latent_shape]
    if latents.dtype.name not in TYPES or list(latents.shape) != shape:
        raise _bad(f"latents {latents.dtype}{list(latents.shape)}", f"{' or '.join(TYPES)} {shape}", path, "save those of the clips")
    arrays = {LATENTS: latents, **conditioning.tensors()}
    for name, array in arrays.items():
        if is_float(array.dtype) and not np.isfinite(array).all():
            raise _bad(f"{name} with numbers that are not finite", "finite numbers", path, "check the model; float16 ends at 65504")
    write_tensors(path, arrays, {"vditc": json.dumps({**conditioning.to_json(), "key": key})})


def shard_key(path: Path) -> str | None:
    """The key of a shard that is there; None without one."""
    try:
        return str(json.loads(read_header(path)[1]["vditc"])["key"])
    except (InputError, KeyError, ValueError, TypeError):
        return None


def write_index(folder: Path, shards: Sequence[str], *, shared: Sequence[str] = (), about: Mapping[str, Any] | None = None) -> None:
    """Write the index of shard files in `folder`. `about`: model_class, model_digest, schedule, guidance_scale, as far as known."""
    listed = []
    for name in shards:
        info = json.loads(read_header(folder / name)[1]["vditc"])
        listed.append({"file": name, "clips": len(info["prompts"]), "sha256": sha256(folder / name)})
    data = {"schema": SCHEMA, **(about or {}), "shared": list(shared), "clips": sum(s["clips"] for s in listed), "shards": listed}
    write_text(folder / INDEX, json.dumps(data, indent=1, sort_keys=True) + "\n")


def _shard(path: Path, clips: int) -> Shard:
    entries, metadata = read_header(path)
    info = json.loads(metadata["vditc"])
    if LATENTS not in entries or not len(info["prompts"]) == len(info["seeds"]) == clips > 0:
        raise ValueError(f"{path.name} without latents, or not of {clips} clips")
    return Shard(path, entries, info)


def _bad(found: str, wanted: str, where: Path | str, fix: str) -> InputError:
    return InputError(found=found, wanted=wanted, where=str(where), fix=fix)
