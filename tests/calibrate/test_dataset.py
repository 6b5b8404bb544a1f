"""Training clips of the tiny model: its own samples, resumed shard by shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import sampled_and_rest
from watcher import Watcher

from vditc.calibrate.dataset import sample_dataset
from vditc.calibrate.denoiser import FullPrecision
from vditc.conditioning import TEXT, Conditioning
from vditc.dataset import Dataset, shard_name
from vditc.errors import InputError, VditcError
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.pipeline.schedules import load_schedule
from vditc.sampling import sample
from vditc.torch_device import torch_device

STEPS = 3


@pytest.fixture
def three(tiny_conditioning: Conditioning) -> Conditioning:
    """Three clips."""
    c = tiny_conditioning
    text = np.concatenate([c.inputs[TEXT], c.inputs[TEXT][:1]])
    return dataclasses.replace(c, prompts=(*c.prompts, c.prompts[0]), seeds=(5, 6, 7), inputs={TEXT: text})


@pytest.fixture
def make(tiny: ModelDir, three: Conditioning, tmp_path: Path) -> Callable[..., Dataset | None]:
    """Sample into tmp_path / out; keywords replace the defaults."""

    def call(out: str = "out", **changes: Any) -> Dataset | None:
        arguments: dict[str, Any] = {
            "source": tiny,
            "adapter": adapter_for(tiny),
            "conditioning": three,
            "scheduler": load_schedule(tiny.path, STEPS),
            "guidance_scale": 2.0,
            "out": tmp_path / out,
            "progress": Watcher(),
            "shard_size": 2,
        }
        sampled, rest = sampled_and_rest(arguments | changes)
        return sample_dataset(sampled, **rest)

    return call


def same(one: Path, two: Path) -> bool:
    names = sorted(p.name for p in one.iterdir())
    return names == sorted(p.name for p in two.iterdir()) and all((one / n).read_bytes() == (two / n).read_bytes() for n in names)


def test_latents_are_those_of_the_sampler(make: Callable[..., Dataset | None], tiny: ModelDir, three: Conditioning) -> None:
    dataset = make(dtype="float32")
    assert dataset is not None and [len(s) for s in dataset.shards] == [2, 1]
    adapter, schedule = adapter_for(tiny), load_schedule(tiny.path, STEPS)
    model = FullPrecision(adapter, tiny, torch_device("cpu"))
    for index in range(3):
        wanted = sample(model, schedule, three.clips([index], adapter.inputs(tiny)), 2.0)
        np.testing.assert_array_equal(dataset.read([index]).latents, wanted)
    batch = dataset.read([2, 1])
    np.testing.assert_array_equal(batch.conditioning.inputs[TEXT], three.inputs[TEXT][[2, 1]])
    assert (dataset.model_digest, dataset.guidance_scale, dataset.schedule) == (tiny.digest, 2.0, schedule)
    assert batch.conditioning.clips([0, 1], adapter.inputs(tiny)).prompted[TEXT].shape == (2, 8, 16)  # ready for the model


def test_float16_is_the_rounded_float32(make: Callable[..., Dataset | None]) -> None:
    whole, half = make("whole", dtype="float32"), make("half")
    assert whole is not None and half is not None
    assert half.shards[0].entries["latents"].dtype == half.shards[0].entries[f"inputs/{TEXT}"].dtype == np.float16
    np.testing.assert_array_equal(half.read([0, 2]).latents, whole.read([0, 2]).latents.astype(np.float16))


@pytest.mark.parametrize("kill_at", [1, 2 * STEPS, 2 * STEPS + 1])
def test_killed_run_goes_on_at_the_next_shard(make: Callable[..., Dataset | None], tmp_path: Path, kill_at: int) -> None:
    make("whole")
    with pytest.raises(KeyboardInterrupt):
        make(progress=Watcher(kill_at))
    assert not (tmp_path / "out").exists()
    finished = kill_at > 2 * STEPS
    assert (tmp_path / "out.partial" / shard_name(0)).exists() == finished
    again = Watcher()
    make(progress=again)
    assert len(again.notes) == finished and all("holds 1 of 2 shards" in n for n in again.notes)
    assert same(tmp_path / "out", tmp_path / "whole") and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("what", ["guidance", "seed"])
def test_shards_of_another_run_are_replaced(make: Callable[..., Dataset | None], three: Conditioning, tmp_path: Path, what: str) -> None:
    changes: dict[str, Any] = (
        {"guidance_scale": 3.0} if what == "guidance" else {"conditioning": dataclasses.replace(three, seeds=(8, 9, 7))}
    )
    with pytest.raises(KeyboardInterrupt):
        make(progress=Watcher(2 * STEPS + 1))
    with pytest.raises(KeyboardInterrupt):
        make(progress=Watcher(2 * STEPS + 1), shard_size=1)
    again = Watcher()
    make(progress=again, **changes)
    make("whole", **changes)
    assert again.notes == [] and same(tmp_path / "out", tmp_path / "whole")


def test_clips_do_not_depend_on_the_shards(make: Callable[..., Dataset | None]) -> None:
    one, two = make("one", shard_size=1), make("two", shard_size=3)
    assert one is not None and two is not None
    np.testing.assert_array_equal(one.read([0, 1, 2]).latents, two.read([0, 1, 2]).latents)


def test_latents_that_do_not_fit_float16_are_an_error(make: Callable[..., Dataset | None], three: Conditioning, tmp_path: Path) -> None:
    large = dataclasses.replace(three, inputs={TEXT: three.inputs[TEXT] * np.float32(1e6)})
    with pytest.raises(VditcError, match="not finite") as caught:
        make(conditioning=large)
    assert not isinstance(caught.value, InputError) and not (tmp_path / "out").exists()
