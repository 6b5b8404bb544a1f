"""Samples clips to train on from the full-precision model, into a folder that vditc.dataset reads.

Every clip is sampled by itself, so that its bytes depend neither on the shards nor on the ranks. Shards are written whole beside the
folder; a killed run goes on at the first that is missing.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.adapter import InputSpec
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.ranks import Ranks
from vditc.conditioning import Conditioning
from vditc.dataset import Dataset, shard_key, shard_name, write_index, write_shard
from vditc.errors import InputError, VditcError
from vditc.files import data_digest
from vditc.progress import Progress
from vditc.sampled_model import SampledModel
from vditc.torch_device import torch_device

Array = npt.NDArray[Any]
ALONE = Ranks()


def sample_dataset(
    sampled: SampledModel,
    *,
    out: Path,
    progress: Progress,
    shard_size: int = 16,
    dtype: str = "float16",
    device: str = "cpu",
    memory: int | None = None,
    ranks: Ranks = ALONE,
) -> Dataset | None:
    """Sample every clip and write the folder `out`, whole or not at all; returns it, on rank 0.

    `dtype`: of latents and floating-point inputs in the files, float16 or float32. Work lies in `out.partial`, from which a killed
    run goes on shard by shard; the same inputs give the same bytes, however many ranks share the work. `memory`: bytes for weights.

    Raises InputError when the clips do not fit the model, VditcError for latents that are not finite in `dtype`.
    """
    source, conditioning, specs = sampled.source, sampled.conditioning, sampled.specs
    sampled.adapter.check(source)
    sampled.check()
    chosen, work = torch_device(ranks.device(device)), out.with_name(out.name + ".partial")
    about = {
        "model_class": source.model_class,
        "model_digest": source.digest,
        "schedule": sampled.scheduler.to_json(),
        "guidance_scale": sampled.guidance_scale,
    }
    # A GPU adds in another order than a processor: shards of both would not be those of one run.
    run = data_digest([about, dtype, chosen.type])
    shards = [range(start, min(start + shard_size, len(conditioning))) for start in range(0, len(conditioning), shard_size)]
    own = [(work / shard_name(i), conditioning.subset(shards[i], specs)) for i in ranks.share(len(shards))]
    missing = [(path, clips, key) for path, clips in own if shard_key(path) != (key := f"{run} {clips.digest()}")]
    if len(missing) < len(own):
        progress.note(f"{work} holds {len(own) - len(missing)} of {len(own)} shards: sampling goes on from there")

    total, left = (sum(len(part[1]) for part in parts) * sampled.steps for parts in (own, missing))
    with ranks.together(), progress.task("sample clips", total, total - left) as advance:
        model = FullPrecision(sampled.adapter, source, chosen, memory) if missing else None

        def after(_step: int, _latents: Array) -> None:
            ranks.look()
            advance()

        for path, clips, key in missing:
            assert model is not None
            some = dataclasses.replace(sampled, conditioning=clips)
            latents = [some.sample(model, i, after) for i in range(len(clips))]
            _write(path, np.concatenate(latents), clips, key, dtype)
    if not ranks.first:
        return None
    return _finish(work, out, [shard_name(i) for i in range(len(shards))], about, specs)


def _write(path: Path, latents: Array, clips: Conditioning, key: str, dtype: str) -> None:
    with np.errstate(over="ignore"):  # what does not fit is found when it is written
        arrays = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in clips.tensors().items()}
        latents = latents.astype(dtype)
    try:
        write_shard(path, latents, Conditioning.of(arrays, clips.to_json()), key)
    except InputError as error:
        raise VditcError(found=error.found, wanted=error.wanted, where=error.where, fix=error.fix) from error


def _finish(work: Path, out: Path, names: Sequence[str], about: dict[str, Any], specs: Sequence[InputSpec]) -> Dataset:
    """The index, and the folder in its place."""
    if absent := [name for name in names if not (work / name).exists()]:
        raise VditcError(
            found=f"{len(absent)} shards that another rank wrote elsewhere, first {absent[0]}",
            wanted="one folder that all ranks write to",
            where=str(work),
            fix="choose -o on a file system that all machines share",
        )
    for stray in set(work.iterdir()) - {work / name for name in names}:  # of a run with shards of another size
        stray.unlink()
    write_index(work, names, shared=[s.name for s in specs if s.dims[0] != "batch"], about=about)
    if out.exists():
        shutil.rmtree(out)
    work.rename(out)
    return Dataset.open(out, verify=False)
