"""Open-Sora's transformers: the published names, numbers against a plain numpy version, and graphs of any size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import open_sora_reference as reference
import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import relative_l2

from vditc.errors import InputError
from vditc.export.open_sora.layers import attend, text_bias
from vditc.export.open_sora.positions import frequencies
from vditc.export.open_sora.stdit import STDiT
from vditc.export.open_sora.stdit3 import STDiT3
from vditc.export.weightless import weightless
from vditc.model_dir import ModelDir

DOCS = Path(__file__).resolve().parents[2] / "docs" / "open_sora.md"
MODELS = pytest.mark.parametrize("kind", [STDiT, STDiT3], ids=["stdit", "stdit3"])
WIDTH, TEXT_WIDTH = 144, 20  # two heads of 72, as in the published models
TINY = {
    "hidden_size": WIDTH,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": TEXT_WIDTH,
    "model_max_length": 7,
}
SCALES = {"space_scale": 0.5, "time_scale": 2 / 3}
# float32 against float64: 2^-24 = 6e-8 for each rounding, some hundred of them in a row, partly averaged out.
FLOAT32 = 2e-6


# Tensors of the checkpoints and their shapes, by the modules and defaults of opensora/models at v1.0.0 and v1.2.0.
def block(attentions: tuple[str, ...], qk_norm: bool) -> dict[str, tuple[int, ...]]:
    names: dict[str, tuple[int, ...]] = {"scale_shift_table": (6, 1152)}
    for attention in attentions:
        names |= linear(f"{attention}.qkv", 1152, 3456) | linear(f"{attention}.proj", 1152, 1152)
        if qk_norm:
            names |= {f"{attention}.q_norm.weight": (72,), f"{attention}.k_norm.weight": (72,)}
    names |= linear("cross_attn.q_linear", 1152, 1152) | linear("cross_attn.kv_linear", 1152, 2304) | linear("cross_attn.proj", 1152, 1152)
    return names | linear("mlp.fc1", 1152, 4608) | linear("mlp.fc2", 4608, 1152)


def linear(name: str, wide_in: int, wide_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (wide_out, wide_in), f"{name}.bias": (wide_out,)}


def ends(tokens: int) -> dict[str, tuple[int, ...]]:
    return {
        "x_embedder.proj.weight": (1152, 4, 1, 2, 2),
        "x_embedder.proj.bias": (1152,),
        **linear("t_embedder.mlp.0", 256, 1152),
        **linear("t_embedder.mlp.2", 1152, 1152),
        **linear("t_block.1", 1152, 6912),
        "y_embedder.y_embedding": (tokens, 4096),
        **linear("y_embedder.y_proj.fc1", 4096, 1152),
        **linear("y_embedder.y_proj.fc2", 1152, 1152),
        "final_layer.scale_shift_table": (2, 1152),
        **linear("final_layer.linear", 1152, 32),
    }


PUBLISHED: dict[Any, dict[str, tuple[int, ...]]] = {
    STDiT: ends(120) | {f"blocks.{i}.{n}": s for i in range(28) for n, s in block(("attn", "attn_temp"), False).items()},
    STDiT3: ends(300)
    | linear("fps_embedder.mlp.0", 256, 1152)
    | linear("fps_embedder.mlp.2", 1152, 1152)
    | {"rope.freqs": (36,)}
    | {f"{kind}_blocks.{i}.{n}": s for kind in ("spatial", "temporal") for i in range(28) for n, s in block(("attn",), True).items()},
}
# config.json of OpenSora-STDiT-v3: every key of STDiT3Config, and what transformers adds.
CONFIG_1_2 = {
    "architectures": ["STDiT3"],
    "caption_channels": 4096,
    "class_dropout_prob": 0.1,
    "depth": 28,
    "drop_path": 0.0,
    "enable_flash_attn": True,
    "enable_layernorm_kernel": True,
    "enable_sequence_parallelism": False,
    "freeze_y_embedder": True,
    "hidden_size": 1152,
    "in_channels": 4,
    "input_size": [None, None, None],
    "input_sq_size": 512,
    "mlp_ratio": 4.0,
    "model_max_length": 300,
    "model_type": "STDiT3",
    "num_heads": 16,
    "only_train_temporal": False,
    "patch_size": [1, 2, 2],
    "pred_sigma": True,
    "qk_norm": True,
    "skip_y_embedder": False,
    "torch_dtype": "float32",
    "transformers_version": "4.41.2",
}


def on_meta(kind: Any, config: Mapping[str, Any]) -> Any:
    with weightless(lambda shape: torch.empty(shape, device="meta")):
        return kind.from_config(config)


@pytest.mark.parametrize(
    ("kind", "config", "millions"),
    # README of Open-Sora: "The number of parameters is 724M" (v1.0.0), "1.1B" (v1.2.0), in units of 2^20 and 2^30
    # (format_numel_str of opensora/utils/misc.py).
    [(STDiT, {"_class_name": "STDiT", "space_scale": 0.5}, (724, 725)), (STDiT3, {"_class_name": "STDiT3", **CONFIG_1_2}, (1075, 1178))],
    ids=["stdit", "stdit3"],
)
def test_tensors_are_the_published_ones(kind: Any, config: dict[str, Any], millions: tuple[int, int]) -> None:
    model = on_meta(kind, config)
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == PUBLISHED[kind]
    assert millions[0] <= sum(p.numel() for p in model.parameters()) / 2**20 < millions[1]


def tiny(kind: Any, **changes: Any) -> Any:
    """A random model in which no tensor is zero, one or small."""
    torch.manual_seed(0)
    model = kind.from_config({**TINY, **(SCALES if kind is STDiT else {}), **changes}).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if name != "rope.freqs":
            tensor.normal_(0.0, 0.08)
    return model


def inputs(kind: Any, batch: int, frames: int, height: int, width: int, text: int, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, text, dtype=torch.int64)
    mask[1:, text - text // 2 :] = 0
    feeds = {
        "hidden_states": torch.randn(batch, 4, frames, height, width, generator=random),
        "timestep": torch.linspace(12.5, 0.75, batch),  # small: see the test of the frequencies
        "encoder_hidden_states": torch.randn(batch, text, TEXT_WIDTH, generator=random),
        "encoder_attention_mask": mask,
    }
    if kind is STDiT3:
        side = torch.arange(batch) * 16.0
        feeds |= {"fps": torch.linspace(24.0, 8.0, batch), "height": 240.0 + side, "width": 426.0 - side}
    return feeds


def numpy_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[Any]]:
    return {n: t.double().numpy() for n, t in tensors.items()}


SHAPES = [(2, 3, 8, 12, 5), (1, 1, 2, 2, 1), (3, 5, 4, 10, 7)]


@MODELS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_are_those_of_plain_numpy(kind: Any, shape: tuple[int, ...]) -> None:
    model, feeds = tiny(kind), inputs(kind, *shape)
    weights, arrays = numpy_of(model.state_dict()), numpy_of(feeds)
    wanted = reference.stdit(weights, arrays, 2, **SCALES) if kind is STDiT else reference.stdit3(weights, arrays, 2, input_sq_size=512)
    found = model(**feeds).numpy()
    assert found.shape == (shape[0], 8, *shape[1:4])
    assert relative_l2(found, wanted) < FLOAT32


def test_frequencies_of_times_are_float32() -> None:
    """Exponents, up to 9.2, are rounded to 2^-21 twice; at timestep 999 an angle is off by up to 1e-4, as where they come from."""
    wanted = 10000.0 ** -(torch.arange(128, dtype=torch.float64) / 128)
    assert ((frequencies(128) - wanted) / wanted).abs().max() < 2**-20


@MODELS
def test_without_variances_there_are_as_many_channels_as_latents(kind: Any) -> None:
    assert tiny(kind, pred_sigma=False)(**inputs(kind, 1, 2, 4, 6, 3)).shape == (1, 4, 2, 4, 6)


@MODELS
def test_hidden_text_is_not_read(kind: Any) -> None:
    model, feeds = tiny(kind), inputs(kind, 2, 2, 4, 6, 6)
    before = model(**feeds)
    hidden, seen = feeds["encoder_hidden_states"].clone(), feeds["encoder_hidden_states"].clone()
    hidden[1, 3:] = 50.0
    seen[1, 2] += 0.1
    assert torch.equal(model(**{**feeds, "encoder_hidden_states": hidden}), before)
    after = model(**{**feeds, "encoder_hidden_states": seen})
    assert torch.equal(after[0], before[0]) and (after[1] - before[1]).abs().max() > 1e-3
    as_float = model(**{**feeds, "encoder_attention_mask": feeds["encoder_attention_mask"].float()})
    assert torch.equal(as_float, before)


def test_hidden_text_weighs_nothing_in_float16() -> None:
    """Scores of 27,200 beside the mask's: no hidden token shows, and no sum overflows, not even where all are hidden."""
    query, key = torch.full((1, 1, 1, 4), 170.0).half(), torch.full((1, 1, 2, 4), 80.0).half()
    value = torch.tensor([[1.0], [7.0]])[None, None].half()
    bias = text_bias(torch.tensor([[1, 0]]), torch.float16)
    assert attend(query, key, value, bias).item() == 1.0
    assert attend(-query, key, value, bias).item() == 1.0
    assert attend(-query, key, value, text_bias(torch.zeros(1, 2), torch.float16)).item() == 4.0


@MODELS
def test_every_axis_is_dynamic_in_an_exported_program(kind: Any) -> None:
    model, traced = tiny(kind), inputs(kind, *SHAPES[0])
    free = torch.export.Dim.DYNAMIC
    dynamic = {n: {i: free for i in range(t.dim()) if (n, i) not in FIXED} for n, t in traced.items()}
    program = torch.export.export(model, (), traced, dynamic_shapes=dynamic, strict=False).module()
    for shape in (SHAPES[0], (3, 5, 12, 4, 7), (4, 2, 6, 14, 3)):
        feeds = inputs(kind, *shape, seed=1)
        assert torch.equal(program(**feeds), model(**feeds))


FIXED = {("hidden_states", 1), ("encoder_hidden_states", 2)}


@MODELS
def test_latents_that_the_patch_does_not_divide_are_an_error(kind: Any) -> None:
    with pytest.raises(RuntimeError, match=r"multiples of \(1, 2, 2\)"):
        tiny(kind)(**inputs(kind, 1, 2, 4, 5, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 144}, "found the key hiden_size; wanted keys among .*hidden_size"),
        ({"skip_y_embedder": True}, "found skip_y_embedder = True; wanted skip_y_embedder = False"),
        ({"num_heads": 5}, "found hidden_size 144, num_heads 5"),
        ({"hidden_size": 26, "num_heads": 2}, "found hidden_size 26, num_heads 2"),
    ],
    ids=["unknown key", "text embedded outside", "heads do not divide", "odd heads"],
)
@MODELS
def test_a_configuration_that_is_not_understood_is_bad_input(kind: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind.from_config({**TINY, **change})


@MODELS
def test_the_documented_conversion_gives_a_model_directory(kind: Any, tmp_path: Path) -> None:
    model = tiny(kind)
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    published = tmp_path / "published"
    published.mkdir()
    if kind is STDiT:
        published = published / "OpenSora.pth"
        tables = {"pos_embed": torch.zeros(1, 256, WIDTH), "pos_embed_temporal": torch.zeros(1, 16, WIDTH)}
        torch.save(weights | tables | {"t_block.1.bias": torch.nn.Parameter(weights["t_block.1.bias"])}, published)
    else:
        save_file(weights, published / "model.safetensors")
        (published / "config.json").write_text(json.dumps(CONFIG_1_2 | TINY))
    name = kind.__name__.lower()
    (script,) = re.findall(rf"```python\n(# {name}:.*?)```", DOCS.read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", script, published, tmp_path / "model"], check=True)

    source = ModelDir.open(tmp_path / "model")
    assert source.model_class == kind.__name__
    assert set(weights) <= set(source.weights)
    loaded = kind.from_config(source.config | TINY)
    found = loaded.load_state_dict(load_file(source.transformer / "diffusion_pytorch_model.safetensors"), strict=False)
    assert not found.missing_keys and set(found.unexpected_keys) <= {"pos_embed", "pos_embed_temporal"}
    for tensor, wanted in zip(loaded.state_dict().values(), weights.values(), strict=True):
        assert torch.equal(tensor, wanted)


@MODELS
def test_diffusers_saves_and_loads_it(kind: Any, tmp_path: Path) -> None:
    model = tiny(kind)
    model.save_pretrained(tmp_path / "transformer")
    loaded = kind.from_pretrained(tmp_path / "transformer")
    assert ModelDir.open(tmp_path).config["_class_name"] == kind.__name__
    feeds = inputs(kind, *SHAPES[0])
    assert torch.equal(loaded(**feeds), model(**feeds))
