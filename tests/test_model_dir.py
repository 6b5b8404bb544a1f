from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vditc.errors import InputError
from vditc.model_dir import ModelDir, SamplingDefaults

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_dir, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_what_diffusers_wrote(tiny: ModelDir) -> None:
    tensors = load_file(tiny.transformer / WEIGHTS)
    assert tiny.model_class == "WanTransformer3DModel"
    assert tiny.weights.keys() == tensors.keys()
    assert tiny.weight_count == sum(t.numel() for t in tensors.values())
    assert tiny.sampling == SamplingDefaults(steps=3, guidance_scale=2.0, frames=2, height=8, width=8)


def test_digest_follows_content_not_place(tiny: ModelDir, folder: Path) -> None:
    assert ModelDir.open(folder).digest == tiny.digest
    edit(folder / "sampling.json", steps=4)
    assert ModelDir.open(folder).digest != tiny.digest


def test_shards_are_one_checkpoint(tiny: ModelDir, folder: Path) -> None:
    tensors = load_file(folder / "transformer" / WEIGHTS)
    names = sorted(tensors)
    (folder / "transformer" / WEIGHTS).unlink()
    parts = {f"part-{i}.safetensors": names[i::2] for i in range(2)}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / "transformer" / file)
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (folder / "transformer" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    found = ModelDir.open(folder)
    assert found.weights.keys() == tiny.weights.keys()
    for name in names:
        np.testing.assert_array_equal(found.weights[name].read(), tensors[name].numpy())
    (folder / "transformer" / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"part-1\.safetensors: found no readable file"):
        ModelDir.open(folder)


def test_sampling_defaults_are_optional(folder: Path) -> None:
    (folder / "sampling.json").unlink()
    assert ModelDir.open(folder).sampling is None


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"seps": 3}, "unexpected keyword argument 'seps'; wanted steps, guidance_scale, frames, height, width, semantics"),
        ({"steps": "3"}, "found steps = '3'; wanted a whole number above 0"),
        ({"frames": 0}, "found frames = 0; wanted a whole number above 0"),
        ({"guidance_scale": None}, "found guidance_scale = None; wanted a number"),
    ],
)
def test_wrong_sampling_defaults(folder: Path, changes: dict[str, Any], found: str) -> None:
    edit(folder / "sampling.json", **changes)
    with pytest.raises(InputError, match=rf"sampling\.json: .*{found}"):
        ModelDir.open(folder)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: found no readable file \(No such file.*wanted a diffusers model directory"):
        ModelDir.open(tmp_path / "nothing")


@pytest.mark.parametrize(("text", "found"), [("{", "no JSON"), ("[]", "list; wanted a JSON object"), ("{}", "no _class_name")])
def test_damaged_config(folder: Path, text: str, found: str) -> None:
    (folder / "transformer" / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"config\.json: found {found}"):
        ModelDir.open(folder)


def test_shard_index_without_a_map(folder: Path) -> None:
    (folder / "transformer" / f"{WEIGHTS}.index.json").write_text('{"weight_map": []}')
    with pytest.raises(InputError, match=r"index\.json: found weight_map = \[\]; wanted tensor name -> file name"):
        ModelDir.open(folder)


def test_shards_stay_in_the_folder(folder: Path) -> None:
    save_file({"a": torch.ones(1)}, folder / "outside.safetensors")
    (folder / "transformer" / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(InputError, match="wanted tensor name -> file name"):
        ModelDir.open(folder)
