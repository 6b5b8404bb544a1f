"""The safetensors files of one model folder, found by the names that diffusers gives them and checked against their index."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from vditc.errors import InputError
from vditc.safetensors_file import TensorEntry, read_header

STEM = "diffusion_pytorch_model"
_SHARD = re.compile(r".*-\d{5}-of-\d{5}(\.[^.]+)?\.safetensors")  # also with a variant behind: -00001-of-00002.fp16
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; InputError when the file is missing or holds something else."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            found=f"no readable file ({error.strerror})", wanted="a diffusers model directory", where=str(path), fix="check MODEL_DIR"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(found=f"no JSON ({error})", wanted="JSON", where=str(path), fix="restore the file") from error
    if not isinstance(data, dict):
        raise InputError(found=type(data).__name__, wanted="a JSON object", where=str(path), fix="restore the file")
    return data


def read_checkpoint(folder: Path, model_class: str) -> tuple[list[Path], dict[str, TensorEntry]]:
    """The files that hold the weights, in name order, and every tensor.

    An index (`*.safetensors.index.json`, with a variant in any place that diffusers puts it) comes before a single file, and a
    plain name before a variant's. InputError when a file is missing or damaged, files and index disagree about any tensor,
    there are several variants to choose from, or the weights are pickled; `model_class` goes into the command that converts those.
    """
    if (index := _only(folder, [p for p in folder.glob("*.json") if _is_index(p.name)], f"{STEM}.safetensors.index.json")) is not None:
        return _sharded(folder, index)
    singles = list(folder.glob("*.safetensors"))
    if shards := sorted(p.name for p in singles if _SHARD.fullmatch(p.name)):
        raise InputError(
            found=f"{len(shards)} shards without an index, first {shards[0]}",
            wanted="a .safetensors.index.json beside them",
            where=str(folder),
            fix="copy or download the index too",
        )
    single = _only(folder, singles, f"{STEM}.safetensors")
    if single is None and (pickles := sorted(p for p in folder.glob("*") if p.suffix in _PICKLES)):
        raise _pickled(folder, pickles, model_class)
    single = single or folder / f"{STEM}.safetensors"
    return [single], read_header(single)[0]


def _is_index(name: str) -> bool:
    return re.fullmatch(r".+\.safetensors\.index(\.[^.]+)?\.json", name) is not None


def _only(folder: Path, found: list[Path], plain: str) -> Path | None:
    """The file with the plain name, or else the only one; None when there is none."""
    if folder / plain in found:
        return folder / plain
    if len(found) > 1:
        raise InputError(
            found=", ".join(sorted(p.name for p in found)[:4]),
            wanted=f"{plain}, or one variant",
            where=str(folder),
            fix="leave only the variant to compile",
        )
    return found[0] if found else None


def _sharded(folder: Path, index: Path) -> tuple[list[Path], dict[str, TensorEntry]]:
    owner = read_json(index).get("weight_map")
    if not isinstance(owner, dict) or not owner or not all(isinstance(n, str) and Path(n).name == n for n in owner.values()):
        raise InputError(
            found=f"weight_map = {str(owner)[:60]}", wanted="tensor name -> file name", where=str(index), fix="restore the file"
        )

    def disagree(shard: Path, found: str, wanted: str) -> InputError:
        return InputError(
            found=found, wanted=wanted, where=str(shard), fix=f"copy or download the shards and {index.name} of one checkpoint again"
        )

    shards = [folder / name for name in sorted(set(owner.values()))]
    if missing := [s.name for s in shards if not s.is_file()]:
        raise InputError(
            found=f"{len(missing)} of {len(shards)} shards missing: {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}",
            wanted=f"every shard that {index.name} names",
            where=str(folder),
            fix="copy or download the missing files",
        )
    weights: dict[str, TensorEntry] = {}
    for shard in shards:
        held = read_header(shard)[0]
        for name in held:
            if name in weights:
                raise disagree(shard, f"tensor {name}, held by {weights[name].path.name} too", "every tensor in one shard")
            if name not in owner:
                raise disagree(shard, f"tensor {name}, of which {index.name} does not know", "exactly the tensors that the index names")
        weights |= held
    for name, shard_name in owner.items():
        if name not in weights:
            raise disagree(folder / shard_name, f"no tensor {name}", f"the tensors that {index.name} says it holds")
        if weights[name].path.name != shard_name:
            raise disagree(weights[name].path, f"tensor {name}", f"it in {shard_name}, where {index.name} says it is")
    return shards, weights


def _pickled(folder: Path, pickles: list[Path], model_class: str) -> InputError:
    script = (
        f"import sys; from diffusers import {model_class} as M; "
        "M.from_pretrained(sys.argv[1], use_safetensors=False).save_pretrained(sys.argv[1], safe_serialization=True)"
    )
    return InputError(
        found=f"only pickled weights ({pickles[0].name}), which run code when they are loaded",
        wanted=f"{STEM}.safetensors",
        where=str(folder),
        fix=f"if you trust them, convert them yourself: python -c {shlex.quote(script)} {shlex.quote(str(folder))}",
    )
