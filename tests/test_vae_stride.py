from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from vditc.adapter import ModelAdapter
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.vae_stride import vae_stride

SCALED = {"spatio_temporal_scaling": [True, True, True, False], "patch_size": 4, "patch_size_t": 1}


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "stride"),
    [
        ({"_class_name": "AutoencoderKLWan", "scale_factor_temporal": 4, "scale_factor_spatial": 16, "patch_size": 2}, (4, 16)),
        ({"_class_name": "AutoencoderKLWan", "temperal_downsample": [False, True, True]}, (4, 8)),  # as Wan 2.1 was published
        ({"_class_name": "AutoencoderKLWan", "temperal_downsample": [False, False, True, True, True], "patch_size": 2}, (8, 64)),
        ({"_class_name": "AutoencoderKLHunyuanVideo", "temporal_compression_ratio": 4, "spatial_compression_ratio": 8}, (4, 8)),
        ({"_class_name": "AutoencoderKLCosmos", "temporal_compression_ratio": 8.0, "spatial_compression_ratio": 8}, (8, 8)),
        ({"_class_name": "AutoencoderKLCogVideoX", "block_out_channels": [128, 256, 256, 512], "temporal_compression_ratio": 4}, (4, 8)),
        ({"_class_name": "AutoencoderKLMochi", "temporal_expansions": [1, 2, 3], "spatial_expansions": [2, 2, 2]}, (6, 8)),
        ({"_class_name": "AutoencoderKLLTXVideo", **SCALED}, (8, 32)),
        ({"_class_name": "AutoencoderKLLTXVideo", "spatial_compression_ratio": None, **SCALED}, (8, 32)),
        (
            {
                "_class_name": "AutoencoderKLLTXVideo",
                "spatio_temporal_scaling": [True] * 4,
                "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
                "patch_size": 4,
                "patch_size_t": 1,
            },
            (8, 32),
        ),
        ({"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}, (1, 8)),
        ({"_class_name": "AutoencoderKLMagvit", "block_out_channels": [128, 256, 512, 512]}, (4, 8)),
        ({"_class_name": "PixelShuffleCodec", "block": 2}, (1, 2)),
        ({"_class_name": "SomethingNew", "block_out_channels": [1, 2, 3]}, (None, None)),
    ],
    ids=lambda v: v.get("_class_name") if isinstance(v, dict) else None,
)
def test_ways_to_store_it(config: dict[str, Any], stride: tuple[int | None, int | None], tmp_path: Path) -> None:
    assert vae_stride(write(tmp_path / "vae", config)) == stride


@pytest.mark.parametrize(
    "name", ["AutoencoderKLWan", "AutoencoderKLHunyuanVideo", "AutoencoderKLLTXVideo", "AutoencoderKLMagvit", "AutoencoderKLMochi"]
)
def test_agrees_with_the_class(name: str, tmp_path: Path) -> None:
    """What diffusers writes of a class's own defaults, against what its module says that it does."""
    with torch.device("meta"):
        vae = getattr(diffusers, name)()
    vae.save_config(tmp_path)
    if name == "AutoencoderKLWan":  # says it in its config only
        assert vae_stride(tmp_path) == (vae.config.scale_factor_temporal, vae.config.scale_factor_spatial)
    else:
        assert vae_stride(tmp_path) == (vae.temporal_compression_ratio, vae.spatial_compression_ratio)


def test_no_vae(tmp_path: Path) -> None:
    assert vae_stride(tmp_path) == (None, None)


@pytest.mark.parametrize("value", [0, -4, 2.5, "8", True])
def test_a_stride_that_is_none(value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wanted a whole number above 0"):
        vae_stride(write(tmp_path, {"scale_factor_spatial": value}))


def test_the_models_own_vae_wins_over_the_familys(tiny: ModelDir, tiny_dir: Path, tmp_path: Path) -> None:
    adapter: ModelAdapter = adapter_for(tiny)
    assert adapter.axes(tiny)["height"].stride == 8
    sizes = adapter.sizes(tiny).axes
    assert (sizes["frames"].stride, sizes["height"].stride, sizes["width"].stride) == (1, 2, 2)  # a pixel shuffle by 2
    assert sizes["height"].default == 240  # still 480 pixels
    assert sizes["text_tokens"] == adapter.axes(tiny)["text_tokens"]
