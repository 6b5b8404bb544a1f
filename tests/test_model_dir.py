from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vditc import background
from vditc.errors import InputError
from vditc.files import sha256
from vditc.model_dir import PARTS, ModelDir, SamplingDefaults

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_dir, tmp_path / "model"))


def split(folder: Path, index: str = f"{WEIGHTS}.index.json") -> dict[str, Path]:
    """Divide the weights of a model over two shards; returns tensor -> shard."""
    tensors = load_file(folder / "transformer" / WEIGHTS)
    (folder / "transformer" / WEIGHTS).unlink()
    names = sorted(tensors)
    owner: dict[str, Path] = {}
    for i in range(2):
        shard = folder / "transformer" / f"part-{i}.safetensors"
        save_file({n: tensors[n] for n in names[i::2]}, shard)
        owner |= dict.fromkeys(names[i::2], shard)
    write_index(folder / "transformer" / index, owner)
    return owner


def write_index(path: Path, owner: dict[str, Path]) -> None:
    path.write_text(json.dumps({"weight_map": {n: shard.name for n, shard in owner.items()}}))


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


def test_digest_is_over_names_and_contents_in_path_order(tiny: ModelDir) -> None:
    files = ["model_index.json", "sampling.json", "transformer/config.json", f"transformer/{WEIGHTS}", "vae/config.json"]
    joined = "".join(f"{f}:{hashlib.sha256((tiny.path / f).read_bytes()).hexdigest()}\n" for f in files)
    assert tiny.digest == hashlib.sha256(joined.encode()).hexdigest()


def test_files_are_hashed_once_and_beside_other_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go, hashed = threading.Event(), threading.Event(), []

    def slow(path: Path) -> str:
        began.set()
        assert go.wait(10)
        hashed.append(path.name)
        return "0"

    monkeypatch.setattr(background, "sha256", slow)
    model = ModelDir.open(folder)
    assert began.wait(10) and not hashed, "opening waits for no hash, but starts one"
    go.set()
    assert model.digest == model.digest
    assert hashed == ["model_index.json", "sampling.json", "config.json", WEIGHTS, "config.json"]


def test_nothing_is_hashed_for_who_does_not_ask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def note(path: Path) -> str:
        hashed.append(path.name)
        return "0"

    monkeypatch.setattr(background, "sha256", note)
    model = ModelDir.open(folder, hash_now=False)
    assert not hashed and model.digest and len(hashed) == 5


def test_a_file_that_vanishes_while_it_is_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, real = threading.Event(), sha256

    def late(path: Path) -> str:
        assert go.wait(10)
        return real(path)

    monkeypatch.setattr(background, "sha256", late)
    model = ModelDir.open(folder)
    (folder / "transformer" / WEIGHTS).unlink()
    go.set()
    for _ in range(2):
        with pytest.raises(InputError, match=rf"{WEIGHTS}: found no readable file any more \(No such file"):
            _ = model.digest


@pytest.mark.parametrize(
    "index",
    [f"{WEIGHTS}.index.json", "diffusion_pytorch_model.safetensors.index.fp16.json", "diffusion_pytorch_model.fp16.safetensors.index.json"],
)
def test_shards_are_one_checkpoint(tiny: ModelDir, folder: Path, index: str) -> None:
    owner = split(folder, index)
    found = ModelDir.open(folder)
    assert found.weights.keys() == tiny.weights.keys()
    for name, entry in tiny.weights.items():
        assert found.weights[name].path == owner[name]
        np.testing.assert_array_equal(found.weights[name].read(), entry.read())


def test_missing_shard(folder: Path) -> None:
    split(folder)
    (folder / "transformer" / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"found 1 of 2 shards missing: part-1\.safetensors; wanted every shard"):
        ModelDir.open(folder)


def test_damaged_shard(folder: Path) -> None:
    split(folder)
    shard = folder / "transformer" / "part-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"part-1\.safetensors: found .*where its header promises"):
        ModelDir.open(folder)


def test_index_names_a_tensor_that_no_shard_holds(folder: Path) -> None:
    owner = split(folder)
    write_index(folder / "transformer" / f"{WEIGHTS}.index.json", owner | {"ghost": folder / "part-1.safetensors"})
    with pytest.raises(InputError, match=r"part-1\.safetensors: found no tensor ghost; wanted the tensors that .* says it holds"):
        ModelDir.open(folder)


def test_shard_holds_a_tensor_that_the_index_does_not_name(folder: Path) -> None:
    owner = split(folder)
    name = next(n for n, shard in owner.items() if shard.name == "part-1.safetensors")
    del owner[name]
    write_index(folder / "transformer" / f"{WEIGHTS}.index.json", owner)
    with pytest.raises(InputError, match=rf"part-1\.safetensors: found tensor {name}, of which .* does not know"):
        ModelDir.open(folder)


def test_shards_swapped_in_the_index(folder: Path) -> None:
    owner = split(folder)
    first, second = sorted(set(owner.values()))
    write_index(folder / "transformer" / f"{WEIGHTS}.index.json", {n: second if s == first else first for n, s in owner.items()})
    with pytest.raises(InputError, match=r"part-\d\.safetensors: found tensor .*; wanted it in part-\d\.safetensors, where"):
        ModelDir.open(folder)


def test_tensor_in_two_shards(folder: Path) -> None:
    owner = split(folder)
    first, second = sorted(set(owner.values()))
    one = next(n for n, s in owner.items() if s == first)
    save_file(load_file(second) | {one: torch.ones(1)}, second)
    with pytest.raises(InputError, match=rf"part-1\.safetensors: found tensor {one}, held by part-0\.safetensors too"):
        ModelDir.open(folder)


def test_shards_without_their_index(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).rename(folder / "transformer" / "diffusion_pytorch_model-00002-of-00003.safetensors")
    with pytest.raises(InputError, match=r"found 1 shards without an index, first diffusion_pytorch_model-00002-of-00003"):
        ModelDir.open(folder)


def test_one_variant_is_the_checkpoint_and_two_are_a_question(tiny: ModelDir, folder: Path) -> None:
    weights = folder / "transformer" / WEIGHTS
    variant = weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert ModelDir.open(folder).weights.keys() == tiny.weights.keys()
    other = shutil.copy(variant, weights.with_name("diffusion_pytorch_model.bf16.safetensors"))
    with pytest.raises(InputError, match=r"found diffusion_pytorch_model.bf16.safetensors, .*fp16.*; wanted .*or one variant"):
        ModelDir.open(folder)
    Path(other).rename(weights)
    assert {e.path for e in ModelDir.open(folder).weights.values()} == {weights}, "the plain name comes first"


def test_pickled_weights_are_refused_with_the_command_that_converts_them(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"only pickled weights \(diffusion_pytorch_model\.bin\)") as caught:
        ModelDir.open(folder)
    _, _, command = caught.value.fix.partition("yourself: ")
    words = shlex.split(command)
    assert words[:2] == ["python", "-c"] and words[3] == str(folder / "transformer")
    assert "from diffusers import WanTransformer3DModel as M" in words[2]
    compile(words[2], "command", "exec")


def test_class_names_are_identifiers(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", _class_name="x; import os")
    with pytest.raises(InputError, match="wanted the diffusers class"):
        ModelDir.open(folder)


@pytest.fixture
def experts(folder: Path) -> Path:
    """A model of two transformers."""
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    edit(folder / "transformer_2" / "config.json", eps=1e-5)
    both = ["diffusers", "WanTransformer3DModel"]
    edit(folder / "model_index.json", transformer=both, transformer_2=both, boundary_ratio=0.875)
    return folder


def test_two_experts(experts: Path, tiny: ModelDir) -> None:
    first, second = ModelDir.open(experts, "transformer"), ModelDir.open(experts, "transformer_2")
    assert (first.part, second.part) == ("transformer", "transformer_2")
    assert first.parts == second.parts == ("transformer", "transformer_2")
    assert first.boundary_ratio == second.boundary_ratio == 0.875
    assert len({first.digest, second.digest, tiny.digest}) == 3
    about = {"boundary_ratio": 0.875, "boundary_step": 2}  # of 1000 training timesteps
    assert first.expert([1000, 875, 874]) == {"part": "transformer", **about}
    assert second.expert([1000, 875, 874]) == {"part": "transformer_2", **about}
    assert "boundary_step" not in first.expert([])
    assert second.transformer == experts / "transformer_2" and second.config["eps"] == 1e-5
    assert {e.path.parent for e in second.weights.values()} == {second.transformer}
    assert (tiny.part, tiny.parts, tiny.boundary_ratio) == ("transformer", ("transformer",), None)
    with pytest.raises(InputError, match=r"found 2 transformers, .*; wanted --part transformer or --part transformer_2;"):
        ModelDir.open(experts)


def test_scales_of_guidance_of_two_experts(experts: Path, folder: Path) -> None:
    def scales() -> list[float]:
        return [s.guidance_scale for part in PARTS if (s := ModelDir.open(experts, part).sampling)]

    assert scales() == [2.0, 2.0]
    edit(experts / "sampling.json", guidance_scale_2=3.5)
    assert scales() == [2.0, 3.5] and ModelDir.parts_in(experts) == PARTS
    shutil.rmtree(experts / "transformer_2")
    edit(experts / "model_index.json", transformer_2=[None, None])
    assert ModelDir.parts_in(experts) == PARTS[:1]
    with pytest.raises(InputError, match=r"sampling\.json: found guidance_scale_2 = 3\.5 for a model of one transformer;"):
        ModelDir.open(experts)
    edit(experts / "sampling.json", guidance_scale_2="3")
    with pytest.raises(InputError, match="found guidance_scale_2 = '3'; wanted a number"):
        ModelDir.open(experts)


def test_second_expert_that_is_not_there(experts: Path, tiny_dir: Path) -> None:
    with pytest.raises(InputError, match=r"found no folder transformer_2; wanted one of transformer;"):
        ModelDir.open(tiny_dir, "transformer_2")
    shutil.rmtree(experts / "transformer_2")
    with pytest.raises(InputError, match=r"found no folder transformer_2; wanted every transformer that model_index\.json names"):
        ModelDir.open(experts)
    edit(experts / "model_index.json", transformer_2=[None, None])
    assert ModelDir.open(experts).parts == ("transformer",)


@pytest.mark.parametrize("ratio", ["0.9", 1.5, True])
def test_wrong_boundary(experts: Path, ratio: Any) -> None:
    edit(experts / "model_index.json", boundary_ratio=ratio)
    with pytest.raises(InputError, match=r"model_index\.json: found boundary_ratio = .*; wanted a number from 0 to 1"):
        ModelDir.open(experts, "transformer")


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


@pytest.mark.parametrize(
    ("text", "found"),
    [("{", "no JSON"), ("[" * 200_000, "no JSON"), ("[]", "list; wanted a JSON object"), ("{}", "no _class_name")],
    ids=len,
)
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
