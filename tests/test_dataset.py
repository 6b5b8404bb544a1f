"""The folder of training clips: what goes in comes out, batches by seed, and refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from vditc.conditioning import TEXT, Conditioning
from vditc.dataset import INDEX, Dataset, shard_key, shard_name, write_index, write_shard
from vditc.errors import InputError

SHAPE = (2, 3, 4, 4)


def clips(first: int, count: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float16]], Conditioning]:
    """Clips whose every number tells which clip it is of; the empty prompt, `fps` and the given frame are there once for all."""
    numbers = np.arange(first, first + count, dtype=np.float16)
    latents = np.broadcast_to(numbers[:, None, None, None, None], (count, *SHAPE)).copy()
    conditioning = Conditioning(
        prompts=tuple(f"clip {i}" for i in range(first, first + count)),
        seeds=tuple(range(first, first + count)),
        latent_shape=SHAPE,
        inputs={TEXT: np.broadcast_to(numbers[:, None, None], (count, 5, 2)).copy(), "fps": np.array([24.0], np.float32)},
        empty={TEXT: np.full((1, 5, 2), -1, np.float16)},
        known=-latents,
        known_frames=(0,),
    )
    return latents, conditioning


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven clips in three shards, the last of one clip."""
    for number, (first, count) in enumerate([(0, 3), (3, 3), (6, 1)]):
        write_shard(tmp_path / shard_name(number), *clips(first, count), key=f"key {number}")
    write_index(tmp_path, [shard_name(i) for i in range(3)], shared=["fps"], about={"model_class": "M", "guidance_scale": 2.0})
    return tmp_path


def test_clips_of_any_shards_come_back_in_order(folder: Path) -> None:
    dataset = Dataset.open(folder)
    assert (len(dataset), dataset.latent_shape, dataset.model_class, dataset.guidance_scale) == (7, SHAPE, "M", 2.0)
    assert (dataset.schedule, dataset.model_digest) == (None, None) and len(dataset.digest) == 64
    batch = dataset.read([6, 0, 4])
    assert batch.latents.dtype == np.float32 and batch.latents.shape == (3, *SHAPE)
    np.testing.assert_array_equal(batch.latents[:, 0, 0, 0, 0], [6, 0, 4])
    c = batch.conditioning
    assert c.prompts == ("clip 6", "clip 0", "clip 4") and c.seeds == (6, 0, 4) and c.known_frames == (0,)
    np.testing.assert_array_equal(c.inputs[TEXT][:, 0, 0], [6, 0, 4])
    np.testing.assert_array_equal(c.empty[TEXT], np.full((3, 5, 2), -1))
    np.testing.assert_array_equal(c.inputs["fps"], [24])
    assert c.known is not None
    np.testing.assert_array_equal(c.known, -batch.latents)
    with pytest.raises(IndexError):
        dataset.read([7])


def test_batches_depend_on_the_seed_alone_and_visit_every_clip(folder: Path) -> None:
    dataset = Dataset.open(folder)
    wanted = [dataset.indices(i, 3, seed=1) for i in range(7)]  # three epochs
    stream_of = [i for batch in wanted for i in batch]
    epochs = [stream_of[7 * epoch : 7 * (epoch + 1)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3  # each has an order of its own
    assert wanted != [dataset.indices(i, 3, seed=2) for i in range(7)]
    stream = dataset.batches(3, seed=1, begin=2)
    for batch in wanted[2:5]:
        np.testing.assert_array_equal(next(stream).latents[:, 0, 0, 0, 0], batch)
    assert len(dataset.indices(0, 20, seed=1)) == 20  # a batch larger than the set goes round


def test_key_of_a_shard(folder: Path) -> None:
    assert shard_key(folder / shard_name(1)) == "key 1"
    assert shard_key(folder / "nothing") is None
    (folder / shard_name(1)).write_bytes(b"\x08\x00\x00")
    assert shard_key(folder / shard_name(1)) is None


def test_same_clips_same_bytes(folder: Path) -> None:
    before = [p.read_bytes() for p in sorted(folder.iterdir())]
    write_shard(folder / shard_name(0), *clips(0, 3), key="key 0")
    write_index(folder, [shard_name(i) for i in range(3)], shared=["fps"], about={"model_class": "M", "guidance_scale": 2.0})
    assert [p.read_bytes() for p in sorted(folder.iterdir())] == before


def test_a_changed_shard_is_refused(folder: Path) -> None:
    with (folder / shard_name(1)).open("r+b") as f:
        f.seek(-1, 2)
        f.write(b"\x55")
    with pytest.raises(InputError, match=rf"{shard_name(1)}: found sha256 .*wanted .*as index\.json says"):
        Dataset.open(folder)
    assert len(Dataset.open(folder, verify=False)) == 7


def test_numbers_that_are_not_finite_are_named(folder: Path) -> None:
    latents, conditioning = clips(3, 3)
    with pytest.raises(InputError, match="latents with numbers that are not finite"):
        write_shard(folder / "x", latents * np.float16(np.nan), conditioning)
    # A folder that somebody else wrote may have them.
    data = bytearray((folder / shard_name(1)).read_bytes())
    entry = Dataset.open(folder).shards[1].entries["latents"]
    data[entry.offset + entry.nbytes - 2 : entry.offset + entry.nbytes] = np.array([np.inf], np.float16).tobytes()
    (folder / shard_name(1)).write_bytes(data)
    write_index(folder, [shard_name(i) for i in range(3)], shared=["fps"])
    with pytest.raises(InputError, match=rf"{shard_name(1)}, latents, clip 2: found numbers that are not finite"):
        Dataset.open(folder)


def test_latents_must_be_those_of_the_clips(tmp_path: Path) -> None:
    latents, conditioning = clips(0, 3)
    for wrong in (latents[:2], latents.astype(np.float64), latents[:, :1]):
        with pytest.raises(InputError, match=r"found latents .*wanted float16 or float32 \[3, 2, 3, 4, 4\]"):
            write_shard(tmp_path / "x", wrong, conditioning)


def test_shards_of_two_sizes_are_refused(folder: Path) -> None:
    latents, c = clips(3, 3)
    other = dataclasses.replace(c, inputs={**c.inputs, TEXT: c.inputs[TEXT][:, :4]}, empty={TEXT: c.empty[TEXT][:, :4]})
    write_shard(folder / shard_name(1), latents, other)
    write_index(folder, [shard_name(i) for i in range(3)], shared=["fps"])
    with pytest.raises(InputError, match=rf"{shard_name(1)}: found empty/{TEXT} \[4, 2\], not as in {shard_name(0)}"):
        Dataset.open(folder)


def test_an_input_that_is_not_said_to_be_shared_needs_a_row_for_each_clip(folder: Path) -> None:
    write_index(folder, [shard_name(i) for i in range(3)])
    with pytest.raises(InputError, match=r"found inputs/fps \[1\]; wanted 3 clips"):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema 9"),
        ({"shards": []}, "no shard"),
        ({"shards": [{"file": "../other.safetensors", "clips": 1, "sha256": ""}]}, "a shard outside of the folder"),
        ({"shards": [{"file": shard_name(0), "clips": 4, "sha256": ""}]}, "not of 4 clips"),
        ({"shards": [{"file": "gone.safetensors", "clips": 4, "sha256": ""}]}, "no readable file"),
        ({"schedule": {"scheduler": "x"}}, "no index"),
    ],
    ids=str,
)
def test_a_bad_index(folder: Path, change: dict[str, object], message: str) -> None:
    data = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(data | change))
    with pytest.raises(InputError, match=message):
        Dataset.open(folder)


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no index\.json; wanted a folder that `vditc dataset` wrote"):
        Dataset.open(tmp_path)
