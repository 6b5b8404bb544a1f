"""What clips are sampled from: noise seeds, the latent size and everything that the model is told. Saved as one safetensors file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.errors import InputError
from vditc.safetensors_file import is_float, read_header, write_tensors
from vditc.sampling import Clips, noise

Array = npt.NDArray[Any]
TEXT = "encoder_hidden_states"  # every family's name of the encoded prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
    """A set of clips to sample. Clip i starts from `noise(latent_shape, seeds[i])`.

    `inputs` and `empty` are named like the model's inputs (`vditc inspect MODEL_DIR` lists them). Those that say the time, or have a
    number as default, may be left out. An input without a batch axis has one value for all clips.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latent_shape: tuple[int, int, int, int]  # channels, frames, height, width
    inputs: Mapping[str, Array]  # [clips, ...]: encoded prompts, masks, image embeddings
    empty: Mapping[str, Array]  # [1, ...], for all clips, or [clips, ...]: what is different in the unconditional branch
    channels: Array | None = None  # [1, E, F, H, W] or [clips, ...], constant, appended to the latents at every step
    known: Array | None = None  # [clips, C, F, H, W], latents of given frames; of the others it does not matter
    known_frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        clips = len(self.prompts)
        if len(self.seeds) != clips:
            raise _bad(f"{clips} prompts and {len(self.seeds)} seeds", "one seed a prompt", "give every clip a prompt and a seed")
        if strangers := sorted(set(self.empty) - set(self.inputs)):
            raise _bad(f"{', '.join(strangers)} of the empty prompt alone", "the same of the prompts", "save it for both, or for neither")
        for name, array in self.empty.items():
            if array.shape[1:] != self.inputs[name].shape[1:] or len(array) not in (1, clips):
                raise _bad(
                    f"{name} {list(array.shape)} of the empty prompt, {list(self.inputs[name].shape)} of the prompts",
                    "one encoding like theirs, or one a clip",
                    "encode the empty prompt like the others",
                )
        c, f, h, w = self.latent_shape
        for what, found, wanted in (("channels", self.channels, ("E", f, h, w)), ("known", self.known, (c, f, h, w))):
            if found is None:
                continue
            fits = found.ndim == 5 and all(n in (size, "E") for n, size in zip(wanted, found.shape[1:], strict=True))
            if not fits or len(found) not in (1, clips):
                raise _bad(
                    f"{what} {list(found.shape)}", f"[1 or {clips}, {', '.join(map(str, wanted))}]", "make them as large as the latents"
                )
        if (self.known is None) != (not self.known_frames) or not set(self.known_frames) <= set(range(f)):
            raise _bad(
                f"known_frames {list(self.known_frames)}{' without known' if self.known is None else ''}",
                f"frames 0 to {f - 1} of the latents, together with known",
                "say which frames are given",
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def noise(self, index: int) -> npt.NDArray[np.float32]:
        """Starting latents of clip `index`, [1, C, F, H, W]."""
        return noise(self.latent_shape, self.seeds[index])[None]

    def sizes(self, specs: Iterable[InputSpec]) -> dict[str, int]:
        """Size of every axis of the model's inputs but the batch; InputError for two sizes of one axis, or a wrong number of axes."""
        c, f, h, w = self.latent_shape
        extra = 0 if self.channels is None else self.channels.shape[1]
        shapes = {name: array.shape for name, array in self.inputs.items()}
        found: dict[str, int] = {}
        for number, spec in enumerate(specs):
            shape = (len(self), c + extra, f, h, w) if number == 0 else shapes.get(spec.name)
            if shape is None:
                continue
            fits = len(shape) == len(spec.dims)
            for dim, size in zip(spec.dims, shape, strict=False):
                wanted = len(self) if dim == "batch" else dim if isinstance(dim, int) else found.setdefault(dim, size)
                fits = fits and size == wanted
            if not fits:
                known = f" ({', '.join(f'{axis} = {size}' for axis, size in found.items())})" if found else ""
                raise _bad(
                    f"{spec.name} {list(shape)}",
                    f"[{', '.join(map(str, spec.dims))}]{known}",
                    "encode the prompts and choose the latent size for this model",
                )
        return found

    def check(self, specs: Sequence[InputSpec]) -> None:
        """InputError when there is no clip, something that the model takes is missing or does not fit, or something is not the model's."""
        if not len(self):
            raise _bad("no prompt", "at least one", "give a prompt")
        self.sizes(specs)
        names = {spec.name for spec in specs[1:]}
        needed = {s.name: s for s in specs[1:] if isinstance(s.fill, str) and s.fill != "timestep"}
        if missing := [n for n in needed if n not in self.inputs]:
            what = ", ".join(f"{n} [{', '.join(map(str, needed[n].dims))}]" for n in missing)
            raise _bad(f"no {', '.join(missing)}", what, "save everything that the model takes (docs/conditioning.md)")
        for name, array in self.tensors().items():
            if name != "known" and is_float(array.dtype) and not np.isfinite(array).all():
                clip = f", clip {int((~np.isfinite(array)).argmax() // array[0].size)}" if array.ndim > 1 else ""
                raise _bad(f"{name}{clip} with numbers that are not finite", "finite numbers", "encode the prompts again")
        if strangers := sorted(set(self.inputs) - names):
            raise _bad(f"inputs {', '.join(strangers)}", f"only {', '.join(sorted(names))}", "leave out what the model does not take")

    def clips(self, indices: Sequence[int], specs: tuple[InputSpec, ...]) -> Clips:
        """Some clips, to be sampled together by a model that takes `specs`; see `check`."""
        chosen = list(indices)
        sizes = {**self.sizes(specs), "batch": len(chosen)}

        def of(array: Array) -> Array:
            return np.repeat(array, len(chosen), 0) if len(array) == 1 else array[chosen]

        prompted, unprompted = {}, {}
        for spec in specs[1:]:
            if spec.fill == "timestep":
                continue
            if spec.name not in self.inputs:
                prompted[spec.name] = unprompted[spec.name] = np.full(spec.shape(sizes), float(spec.fill), spec.dtype)
                continue
            array, without = self.inputs[spec.name], self.empty.get(spec.name, self.inputs[spec.name])
            both = (of(array), of(without)) if spec.dims[0] == "batch" else (array, without)
            prompted[spec.name], unprompted[spec.name] = (np.asarray(a, spec.dtype) for a in both)
        return Clips(
            specs=specs,
            noise=np.concatenate([self.noise(i) for i in chosen]),
            prompted=prompted,
            unprompted=unprompted,
            channels=None if self.channels is None else of(self.channels),
            known=None if self.known is None else of(self.known),
            known_frames=self.known_frames,
        )

    def digest(self, index: int | None = None) -> str:
        """Of all that a clip's trajectory depends on, the prompt's words included; of all clips without `index`."""
        hashed = hashlib.sha256()
        for name, array in sorted(self.tensors().items()):
            own = array if index is None or len(array) != len(self) else array[index : index + 1]
            hashed.update(f"{name} {own.dtype} {own.shape}\n".encode() + np.ascontiguousarray(own).tobytes())
        chosen = slice(None) if index is None else slice(index, index + 1)
        hashed.update(json.dumps([self.prompts[chosen], self.seeds[chosen], self.latent_shape, self.known_frames]).encode())
        return hashed.hexdigest()

    def subset(self, indices: Sequence[int], specs: Iterable[InputSpec]) -> Conditioning:
        """Some of the clips; `specs` tell which inputs have one value for all."""
        chosen = list(indices)
        batched = {spec.name for spec in specs if spec.dims[0] == "batch"}

        def of(array: Array) -> Array:
            return array if len(array) == 1 and len(self) != 1 else array[chosen]

        return dataclasses.replace(
            self,
            prompts=tuple(self.prompts[i] for i in chosen),
            seeds=tuple(self.seeds[i] for i in chosen),
            inputs={n: a[chosen] if n in batched else a for n, a in self.inputs.items()},
            empty={n: of(a) if n in batched else a for n, a in self.empty.items()},
            channels=None if self.channels is None else of(self.channels),
            known=None if self.known is None else of(self.known),
        )

    def tensors(self) -> dict[str, Array]:
        """What a file holds: inputs/NAME, empty/NAME, channels, known."""
        tensors = {f"inputs/{n}": a for n, a in self.inputs.items()} | {f"empty/{n}": a for n, a in self.empty.items()}
        return tensors | {n: a for n, a in (("channels", self.channels), ("known", self.known)) if a is not None}

    def to_json(self) -> dict[str, Any]:
        """The rest of it, plain data."""
        return {"prompts": self.prompts, "seeds": self.seeds, "latent_shape": self.latent_shape, "known_frames": self.known_frames}

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file."""
        write_tensors(Path(path), self.tensors(), {"vditc": json.dumps(self.to_json())})

    @classmethod
    def of(cls, arrays: Mapping[str, Array], info: Mapping[str, Any]) -> Conditioning:
        """The inverse of `tensors` and `to_json`; KeyError, ValueError or TypeError for something else."""
        c, f, h, w = info["latent_shape"]
        if strangers := [n for n in arrays if n not in ("channels", "known") and not n.startswith(("inputs/", "empty/"))]:
            raise ValueError(f"a tensor {strangers[0]}")
        return cls(
            prompts=tuple(info["prompts"]),
            seeds=tuple(info["seeds"]),
            latent_shape=(c, f, h, w),
            known_frames=tuple(info["known_frames"]),
            inputs={n.removeprefix("inputs/"): a for n, a in arrays.items() if n.startswith("inputs/")},
            empty={n.removeprefix("empty/"): a for n, a in arrays.items() if n.startswith("empty/")},
            channels=arrays.get("channels"),
            known=arrays.get("known"),
        )

    @classmethod
    def load(cls, path: Path) -> Conditioning:
        """Read what `save` wrote."""
        entries, metadata = read_header(path)
        try:
            return cls.of({name: np.array(entry.read()) for name, entry in entries.items()}, json.loads(metadata["vditc"]))
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                found=f"no conditioning ({error})",
                wanted="tensors inputs/NAME, empty/NAME, channels, known; metadata vditc",
                where=str(path),
                fix="save it with vditc.conditioning (docs/conditioning.md)",
            ) from error


def _bad(found: str, wanted: str, fix: str) -> InputError:
    return InputError(found=found, wanted=wanted, where="conditioning", fix=fix)
