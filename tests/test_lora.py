"""Fused weights against the formula, and names against diffusers' own converters."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from diffusers.loaders import lora_conversion_utils as oracle

from vditc.errors import InputError
from vditc.lora import FusedTensor, Lora, fuse
from vditc.lora_names import places
from vditc.model_dir import ModelDir
from vditc.safetensors_file import TensorEntry, write_tensors

RANK = 4
LAYER = "blocks.0.attn1.to_q"
Tensors = dict[str, npt.NDArray[Any]]
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a LoRA file."""

    def write(tensors: Tensors, name: str = "one.safetensors", metadata: Mapping[str, str] | None = None) -> Path:
        write_tensors(tmp_path / name, tensors, metadata)
        return tmp_path / name

    return write


def factors(source: ModelDir, layer: str, seed: int = 0, dtype: Any = np.float16) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Random A [rank, K, ...] and B [N, rank, 1, ...] of a layer."""
    rng, shape = np.random.default_rng(seed), source.weights[f"{layer}.weight"].shape
    ones = (1,) * (len(shape) - 2)
    return rng.standard_normal((RANK, *shape[1:])).astype(dtype), rng.standard_normal((shape[0], RANK, *ones)).astype(dtype)


def merged(source: ModelDir, layer: str, a: npt.NDArray[Any], b: npt.NDArray[Any], scaling: float) -> npt.NDArray[Any]:
    """What peft's merge_and_unload gives in float32, rounded to the checkpoint's type."""
    base = source.weights[f"{layer}.weight"].read()
    product = b.astype(np.float32).reshape(len(b), -1) @ a.astype(np.float32).reshape(len(a), -1)
    total: npt.NDArray[Any] = (base.astype(np.float32) + (product * np.float32(scaling)).reshape(base.shape)).astype(base.dtype)
    return total


STYLES = {  # style -> (names of A and B, name of alpha)
    "diffusers": ("transformer.{layer}.lora_A.weight", "transformer.{layer}.lora_B.weight", "transformer.{layer}.alpha"),
    "bare": ("{layer}.lora_A.weight", "{layer}.lora_B.weight", "{layer}.alpha"),
    "peft": ("base_model.model.{layer}.lora_A.default.weight", "base_model.model.{layer}.lora_B.default.weight", "{layer}.alpha"),
    "old diffusers": ("transformer.{layer}.lora.down.weight", "transformer.{layer}.lora.up.weight", "transformer.{layer}.alpha"),
    "original": ("diffusion_model.{there}.lora_A.weight", "diffusion_model.{there}.lora_B.weight", "diffusion_model.{there}.alpha"),
    "original, kohya": (
        "diffusion_model.{there}.lora_down.weight",
        "diffusion_model.{there}.lora_up.weight",
        "diffusion_model.{there}.alpha",
    ),
    "flat": ("lora_unet_{flat}.lora_down.weight", "lora_unet_{flat}.lora_up.weight", "lora_unet_{flat}.alpha"),
}


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_keys_gives_the_formula(tiny: ModelDir, save: Save, style: str) -> None:
    there = "blocks.0.self_attn.q"
    down, up, alpha = (k.format(layer=LAYER, there=there, flat=there.replace(".", "_")) for k in STYLES[style])
    a, b = factors(tiny, LAYER)
    found = fuse(tiny, [Lora.open(save({down: a, up: b, alpha: np.float32(2)}), 0.75)])
    np.testing.assert_array_equal(found.weights[f"{LAYER}.weight"].read(), merged(tiny, LAYER, a, b, 0.75 * 2 / RANK))
    for name, entry in tiny.weights.items():
        assert (found.weights[name] is entry) == (name != f"{LAYER}.weight"), name


def test_a_fused_weight_looks_like_the_checkpoints(tiny: ModelDir, save: Save) -> None:
    a, b = factors(tiny, LAYER)
    entry = fuse(tiny, [Lora.open(save({f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b}))]).weights[f"{LAYER}.weight"]
    base = tiny.weights[f"{LAYER}.weight"]
    assert (entry.path, entry.dtype, entry.shape, entry.nbytes) == (base.path, base.dtype, base.shape, base.nbytes)
    assert (entry.read().dtype, entry.read().shape) == (base.dtype, base.shape)


def test_convolutions(tiny: ModelDir, save: Save) -> None:
    layer = "patch_embedding"
    assert len(tiny.weights[f"{layer}.weight"].shape) == 5
    a, b = factors(tiny, layer, dtype=ml_dtypes.bfloat16)
    found = fuse(tiny, [Lora.open(save({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}))])
    np.testing.assert_array_equal(found.weights[f"{layer}.weight"].read(), merged(tiny, layer, a, b, 1))


def test_a_linear_layer_saved_as_a_1x1_convolution(tiny: ModelDir, save: Save) -> None:
    a, b = factors(tiny, LAYER)
    file = save({f"{LAYER}.lora_A.weight": a[..., None, None], f"{LAYER}.lora_B.weight": b[..., None, None]})
    np.testing.assert_array_equal(fuse(tiny, [Lora.open(file)]).weights[f"{LAYER}.weight"].read(), merged(tiny, LAYER, a, b, 1))


@pytest.mark.parametrize(
    ("key", "target", "factor"),
    [
        ("diffusion_model.blocks.1.self_attn.q.diff_b", "blocks.1.attn1.to_q.bias", 0.5),
        ("diffusion_model.head.head.diff", "proj_out.weight", 0.5),
        ("diffusion_model.blocks.1.norm3.diff", "blocks.1.norm2.weight", 0.5),
        ("diffusion_model.blocks.1.cross_attn.norm_k.diff", "blocks.1.attn2.norm_k.weight", 0.5),
        ("diffusion_model.blocks.1.diff_m", "blocks.1.scale_shift_table", 0.5),
        ("diffusion_model.head.diff_m", "scale_shift_table", 0.5),
    ],
)
def test_differences_are_added_as_they_are(tiny: ModelDir, save: Save, key: str, target: str, factor: float) -> None:
    base = tiny.weights[target].read()
    difference = np.random.default_rng(1).standard_normal(base.shape).astype(np.float32)
    found = fuse(tiny, [Lora.open(save({key: difference}), factor)]).weights[target].read()
    want = (base.astype(np.float32) + difference * np.float32(factor)).astype(base.dtype)
    np.testing.assert_array_equal(found, want)


def test_bias_of_lora_b_is_scaled_like_the_product(tiny: ModelDir, save: Save) -> None:
    a, b = factors(tiny, LAYER)
    bias = np.random.default_rng(1).standard_normal(len(b)).astype(np.float32)
    keys = {"lora_A.weight": a, "lora_B.weight": b, "lora_B.bias": bias, "alpha": np.float32(2)}
    found = fuse(tiny, [Lora.open(save({f"{LAYER}.{k}": t for k, t in keys.items()}), 3.0)]).weights[f"{LAYER}.bias"].read()
    base = tiny.weights[f"{LAYER}.bias"].read()
    np.testing.assert_array_equal(found, (base.astype(np.float32) + bias * np.float32(3 * 2 / RANK)).astype(base.dtype))


def peft(**config: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        (None, 1.0),
        ({"format": "pt"}, 1.0),
        (peft(r=RANK, lora_alpha=8), 2.0),
        (peft(r=RANK, lora_alpha=8, use_rslora=True), 4.0),
        (peft(lora_alpha=8, alpha_pattern={"attn1.to_q": 2}), 0.5),
        (peft(lora_alpha=8, alpha_pattern={"to_k": 2, "o_q": 3}), 2.0),
        ({"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "text_encoder.lora_alpha": 5})}, 2.0),
    ],
)
def test_alpha_of_the_metadata(tiny: ModelDir, save: Save, metadata: dict[str, str] | None, factor: float) -> None:
    a, b = factors(tiny, LAYER)
    file = save({f"transformer.{LAYER}.lora_A.weight": a, f"transformer.{LAYER}.lora_B.weight": b}, metadata=metadata)
    np.testing.assert_array_equal(fuse(tiny, [Lora.open(file)]).weights[f"{LAYER}.weight"].read(), merged(tiny, LAYER, a, b, factor))


def test_alpha_of_pefts_configuration_beside_the_file(tiny: ModelDir, save: Save) -> None:
    a, b = factors(tiny, LAYER)
    file = save({f"base_model.model.{LAYER}.lora_A.weight": a, f"base_model.model.{LAYER}.lora_B.weight": b}, "adapter_model.safetensors")
    file.with_name("adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": RANK}))
    before = Lora.open(file).digest
    file.with_name("adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": RANK, "edited": True}))
    assert Lora.open(file).digest != before  # alpha may have changed
    for path, factor in ((file, 0.5), (Path(shutil.copy(file, file.with_name("other.safetensors"))), 1.0)):
        found = fuse(tiny, [Lora.open(path)]).weights[f"{LAYER}.weight"].read()
        np.testing.assert_array_equal(found, merged(tiny, LAYER, a, b, factor))


def test_several_files_are_added_and_rounded_once(tiny: ModelDir, save: Save) -> None:
    name = f"{LAYER}.weight"
    base = np.zeros_like(tiny.weights[name].read())
    base[0, 0] = 1024  # where float16 has only whole numbers
    file = save({f"{LAYER}.diff": np.full(base.shape, 0.3, np.float32)})
    write_tensors(file.with_name("base.safetensors"), {name: base})
    entry = TensorEntry(file.with_name("base.safetensors"), base.dtype, base.shape, 0, base.nbytes)
    header = int.from_bytes(entry.path.read_bytes()[:8], "little") + 8
    source = dataclasses.replace(tiny, weights={**tiny.weights, name: dataclasses.replace(entry, offset=header)})
    two = fuse(source, [Lora.open(file), Lora.open(file)])
    assert two.weights[name].read()[0, 0] == 1025
    assert fuse(source, [Lora.open(file)]).weights[name].read()[0, 0] == 1024
    assert fuse(fuse(source, [Lora.open(file)]), [Lora.open(file, 2.0)]).weights[name].read()[1, 1] == np.float16(0.9)


def test_digest_follows_model_files_scales_and_order(tiny: ModelDir, save: Save) -> None:
    a, b = factors(tiny, LAYER)
    one = save({f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b})
    two = save({f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": -b}, "two.safetensors")
    copy = Path(shutil.copy(one, one.with_name("copy.safetensors")))

    def digest(*loras: tuple[Path, float]) -> str:
        return fuse(tiny, [Lora.open(*lora) for lora in loras]).digest

    assert digest((one, 1.0)) == digest((copy, 1.0))
    different = [digest(), digest((one, 1.0)), digest((one, 0.5)), digest((two, 1.0)), digest((one, 1.0), (two, 1.0))]
    different.append(digest((two, 1.0), (one, 1.0)))
    different.append(fuse(dataclasses.replace(tiny, hashed=lambda: "another model"), [Lora.open(one)]).digest)
    assert len(set(different)) == len(different)
    assert different[0] == tiny.digest and fuse(tiny, []) is tiny


def test_nothing_is_read_before_it_is_needed(tiny: ModelDir, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = factors(tiny, LAYER)
    lora = Lora.open(save({f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b}))
    read: list[TensorEntry] = []
    real = TensorEntry.read

    def noted(entry: TensorEntry) -> Any:
        read.append(entry)
        return real(entry)

    monkeypatch.setattr(TensorEntry, "read", noted)
    fused = fuse(tiny, [lora])
    assert not read
    fused.weights[f"{LAYER}.weight"].read()
    assert len(read) == 3


def test_what_the_manifest_says(save: Save) -> None:
    file = save({f"{LAYER}.diff": np.ones((128, 128), np.float32)})
    lora = Lora.parse(f"{file}:0.5")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert lora.to_json() == {"name": "one.safetensors", "sha256": sha256, "digest": sha256, "scale": 0.5}


def test_command_line_form(save: Save) -> None:
    file = save({f"{LAYER}.diff": np.ones((128, 128), np.float32)})
    assert Lora.parse(str(file)).scale == 1.0 and Lora.parse(f"{file}:-2").scale == -2.0
    colon = Path(shutil.copy(file, file.with_name("a:3")))
    assert (Lora.parse(str(colon)).path, Lora.parse(str(colon)).scale) == (colon, 1.0)
    for text, found in ((f"{file}:much", "scale 'much'"), (f"{file}:nan", "scale nan"), (f"{file}x", "no readable file")):
        with pytest.raises(InputError, match=f"found {found}"):
            Lora.parse(text)


def test_a_file_for_two_experts(tiny: ModelDir, save: Save) -> None:
    keys = {"transformer": "blocks.0.attn1.to_q", "transformer_2": "blocks.0.attn1.to_k"}
    tensors = {
        f"{part}.{layer}.lora_{s}.weight": t for part, layer in keys.items() for s, t in zip("AB", factors(tiny, layer), strict=True)
    }
    both, first = save(tensors), save({n: t for n, t in tensors.items() if n.startswith("transformer.")}, "first.safetensors")
    for part, layer in keys.items():
        fused = fuse(dataclasses.replace(tiny, part=part), [Lora.open(both)])
        assert [n for n, e in fused.weights.items() if e is not tiny.weights[n]] == [f"{layer}.weight"]
        fuse(dataclasses.replace(tiny, part=part), [Lora.open(first)])  # one file for whichever expert the user names
    second = save({n: t for n, t in tensors.items() if n.startswith("transformer_2.")}, "second.safetensors")
    with pytest.raises(InputError, match=r"second\.safetensors: found no module for it; wanted modules of transformer, a Wan"):
        fuse(tiny, [Lora.open(second)])


A, B = np.ones((RANK, 128), np.float16), np.ones((128, RANK), np.float16)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({}, "no tensor; wanted a LoRA file"),
        ({"lora_A.weight": A}, r"without its lora_B \(up\)"),
        ({"lora_B.weight": B}, r"without its lora_A \(down\)"),
        ({"alpha": np.float32(1)}, r"without its lora_A \(down\)"),
        ({"lora_A.weight": A, "lora_B.weight": B[:, 1:]}, r"\[128, 3\] x \[4, 128\] for blocks\.0\.attn1\.to_q; wanted .*one rank"),
        ({"lora_A.weight": A[:, 1:], "lora_B.weight": B}, r"\[128, 4\] x \[4, 127\]"),
        ({"lora_A.weight": A, "lora_B.weight": B[1:]}, r"\[127, 4\] x \[4, 128\] .*adds to blocks\.0\.attn1\.to_q\.weight \[128, 128\]"),
        ({"lora_A.weight": A[0], "lora_B.weight": B}, r"\.lora_A\.weight \[128\]; wanted a matrix"),
        ({"diff": np.ones((1, 128), np.float16)}, r"\[1, 128\] for"),
        ({"diff_m": np.ones((1, 6, 128), np.float16)}, r"1 of 1 modules that the model lacks, first .*\(scale_shift_table\)"),
        ({"lora_A.weight": A.astype(np.int8), "lora_B.weight": B}, "in int8; wanted floating point"),
        ({"lora_A.weight": A, "lora_B.weight": B, "alpha": np.ones(2, np.float32)}, r"alpha \[2\]; wanted one number"),
        ({"lora_A.weight": A, "lora_B.weight": B, "alpha": np.float32(np.inf)}, "alpha = inf"),
        ({"lora_A.a.weight": A, "lora_B.b.weight": B}, "adapters 'a', 'b'; wanted one adapter"),
        ({"lora_A.weight": A, "lora_B.weight": B, "lora_magnitude_vector": A[0]}, "a DoRA adapter"),
        ({"lora_down.weight": A, "lora_up.weight": B, "dora_scale": A[0]}, "a DoRA adapter"),
        ({"lokr_w1": A}, "a LoKr adapter"),
        ({"hada_w1_a": A}, "a LoHa adapter"),
        ({"weight": A}, r"1 keys that are not of a LoRA, first transformer\.blocks\.0\.attn1\.to_q\.weight"),
        ({"lora_A.weight": A, "lora_B.weight": B, "lora_A.bias": A[0]}, "wanted a bias of lora_B only"),
        ({"lora_A.weight": A, "lora_down.weight": A, "lora_B.weight": B}, r"lora_A\.weight and .*lora_down\.weight for the same factor"),
    ],
)
def test_bad_files(tiny: ModelDir, save: Save, tensors: Tensors, found: str) -> None:
    file = save({f"transformer.{LAYER}.{k}": t for k, t in tensors.items()})
    with pytest.raises(InputError, match=rf"one\.safetensors: found .*{found}"):
        fuse(tiny, [Lora.open(file)])


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ("{", "a configuration that is not JSON"),
        ("[]", "a configuration that is a list"),
        ('{"lora_alpha": "8"}', "alpha = '8' of"),
        ('{"alpha_pattern": {"(": 1}}', "alpha_pattern = "),
        ('{"alpha_pattern": [1]}', "alpha_pattern = "),
        ('{"init_lora_weights": "pissa_niter_4"}', "an adapter with init_lora_weights = pissa_niter_4"),
        ('{"transformer.init_lora_weights": "olora"}', "init_lora_weights = olora"),
        ('{"layer_replication": [[0, 2], [0, 2]]}', "an adapter with layer_replication"),
    ],
)
def test_bad_configurations(save: Save, metadata: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        Lora.open(save({f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B}, metadata={"lora_adapter_metadata": metadata}))


def test_one_layer_under_two_names(tiny: ModelDir, save: Save) -> None:
    names = (LAYER, "lora_unet_blocks_0_self_attn_q")
    file = save({f"{name}.lora_{s}.weight": t for name in names for s, t in (("A", A), ("B", B))})
    with pytest.raises(InputError, match=r"found modules .* and .* for blocks\.0\.attn1\.to_q\.weight; wanted each layer once"):
        fuse(tiny, [Lora.open(file)])


def test_layers_of_another_model_are_counted_and_the_first_named(tiny: ModelDir, save: Save) -> None:
    layers = (LAYER, "blocks.7.attn1.to_q", "blocks.8.attn1.to_q")
    tensors = {f"transformer.{layer}.lora_{s}.weight": t for layer in layers for s, t in (("A", A), ("B", B))}
    with pytest.raises(
        InputError, match=r"found 2 of 3 modules that the model lacks, first blocks\.7\.attn1\.to_q; wanted modules of transformer"
    ):
        fuse(tiny, [Lora.open(save(tensors))])


def test_overflow_is_an_error(tiny: ModelDir, save: Save) -> None:
    fused = fuse(tiny, [Lora.open(save({f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B}), 1e6)])
    with pytest.raises(InputError, match=r"with one\.safetensors: found a fused weight that is not finite in float16"):
        fused.weights[f"{LAYER}.weight"].read()


def stand_in(kind: Any, tmp_path: Path, **config: Any) -> ModelDir:
    """A checkpoint of a real family with its names and numbers of outputs, but two inputs everywhere; its weights are not there."""
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in kind(**config).named_parameters()}
    narrow = {n: (s[0], 2) if n.endswith(".weight") and len(s) > 1 else s for n, s in shapes.items()}
    weights = {n: TensorEntry(tmp_path, np.dtype(np.float32), s, 0, 4 * int(np.prod(s))) for n, s in narrow.items()}
    return ModelDir(tmp_path, {"_class_name": kind.__name__}, weights, None, lambda: "0")


HUNYUAN = {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 2}
WAN = {"num_layers": 2, "image_dim": 64, "added_kv_proj_dim": 64, "num_attention_heads": 1, "attention_head_dim": 64, "ffn_dim": 96}


def originals(source: ModelDir) -> dict[str, int]:
    """Every linear layer's name in the original release, and how many outputs it has there."""
    own = {n.rpartition(".")[0] for n in source.weights}
    found = {}
    for name, where in places(source.model_class, source.weights).items():
        if name not in own and "." in name and all(len(source.weights.get(f"{p.module}.weight", TABLE).shape) == 2 for p in where):
            found[name] = sum(source.weights[f"{p.module}.weight"].shape[0] for p in where)
    return found


TABLE = TensorEntry(Path(), np.dtype(np.float32), (), 0, 4)


def added(entry: TensorEntry) -> npt.NDArray[np.float32]:
    """What one LoRA adds to a weight."""
    assert isinstance(entry, FusedTensor)
    (delta,) = entry.deltas
    return delta.rows()


def compare(source: ModelDir, tensors: Tensors, convert: Callable[[Any], Any], save: Save) -> int:
    """Our products against those of the state dict that diffusers makes; returns how many layers there were."""
    fused = fuse(source, [Lora.open(save(tensors))]).weights
    given = {k: torch.from_numpy(np.asarray(t)) for k, t in tensors.items()}
    converted = {k.removeprefix("transformer."): t.numpy() for k, t in convert(given).items()}
    downs = {k.removesuffix(".lora_A.weight"): t for k, t in converted.items() if k.endswith(".lora_A.weight")}
    assert {n for n, e in fused.items() if e is not source.weights[n]} == {f"{layer}.weight" for layer in downs}
    for layer, down in downs.items():
        np.testing.assert_array_equal(added(fused[f"{layer}.weight"]), converted[f"{layer}.lora_B.weight"] @ down, err_msg=layer)
    return len(downs)


def small_integers(layers: Mapping[str, int], key: str) -> Tensors:
    """Factors of every layer whose products are exact; `key` makes names."""
    rng = np.random.default_rng(0)
    tensors: Tensors = {}
    for layer, rows in layers.items():
        tensors[key.format(layer, "A", "down")] = rng.integers(-9, 9, (RANK, 2)).astype(np.float32)
        tensors[key.format(layer, "B", "up")] = rng.integers(-9, 9, (rows, RANK)).astype(np.float32)
    return tensors


def test_names_of_wan(tmp_path: Path, save: Save) -> None:
    source = stand_in(WanTransformer3DModel, tmp_path, **WAN)
    tensors = small_integers(originals(source), "diffusion_model.{0}.lora_{1}.weight")
    linear = [n for n, e in source.weights.items() if n.endswith(".weight") and len(e.shape) == 2 and n != "patch_embedding.weight"]
    assert compare(source, tensors, oracle._convert_non_diffusers_wan_lora_to_diffusers, save) == len(linear) == 2 * 12 + 8


def test_flat_names_of_wan(tmp_path: Path, save: Save) -> None:
    source = stand_in(WanTransformer3DModel, tmp_path, **WAN)
    layers = {n.replace(".", "_"): rows for n, rows in originals(source).items() if n.startswith("blocks")}
    tensors = small_integers(layers, "lora_unet_{0}.lora_{2}.weight")
    tensors |= {f"lora_unet_{n}.alpha": np.asarray(2 * RANK, np.float32) for n in layers}  # diffusers multiplies it into the factors
    assert compare(source, tensors, oracle._convert_musubi_wan_lora_to_diffusers, save) == 24


def test_names_of_hunyuan_video_and_its_stacked_layers(tmp_path: Path, save: Save) -> None:
    source = stand_in(HunyuanVideoTransformer3DModel, tmp_path, **HUNYUAN)
    layers = originals(source)
    assert layers["double_blocks.1.img_attn_qkv"] == 3 * 3072 and layers["single_blocks.0.linear1"] == 7 * 3072
    # diffusers cuts and swaps both factors of the refiner's q, k, v and of the last modulation: those have a test of their own.
    tensors = small_integers({n: r for n, r in layers.items() if not re.search(r"txt_in.*qkv|adaLN_modulation", n)}, "{0}.lora_{1}.weight")
    assert compare(source, tensors, oracle._convert_hunyuan_video_lora_to_diffusers, save) > 40


def test_hunyuan_videos_refiner_and_last_layer(tmp_path: Path, save: Save) -> None:
    source = stand_in(HunyuanVideoTransformer3DModel, tmp_path, **HUNYUAN)
    block = "txt_in.individual_token_refiner.blocks.1"
    tensors = small_integers({f"{block}.self_attn_qkv": 3 * 3072, "final_layer.adaLN_modulation.1": 2 * 3072}, "{0}.lora_{1}.weight")
    fused = fuse(source, [Lora.open(save(tensors))]).weights
    products = {
        n: tensors[f"{n}.lora_B.weight"] @ tensors[f"{n}.lora_A.weight"]
        for n in (f"{block}.self_attn_qkv", "final_layer.adaLN_modulation.1")
    }
    for i, x in enumerate("qkv"):
        found = added(fused[f"context_embedder.token_refiner.refiner_blocks.1.attn.to_{x}.weight"])
        np.testing.assert_array_equal(found, products[f"{block}.self_attn_qkv"][i * 3072 : (i + 1) * 3072])
    # shift and scale there, scale and shift here
    np.testing.assert_array_equal(added(fused["norm_out.linear.weight"]), np.roll(products["final_layer.adaLN_modulation.1"], 3072, axis=0))


def test_stacked_rows_must_be_as_many_as_the_layers_have(tmp_path: Path, save: Save) -> None:
    source = stand_in(HunyuanVideoTransformer3DModel, tmp_path, **HUNYUAN)
    tensors = small_integers({"double_blocks.0.img_attn_qkv": 4 * 3072}, "{0}.lora_{1}.weight")
    with pytest.raises(InputError, match=r"\[12288, 4\] x \[4, 2\] for double_blocks\.0\.img_attn_qkv"):
        fuse(source, [Lora.open(save(tensors))])
