"""How many frames and pixels a step of a latent is, from the VAE's config as diffusers saves it.

diffusers' video VAEs store this in half a dozen ways; older files of one class lack the numbers that newer ones have, so each way
is tried and the class's layers are the last resort.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.checkpoint import read_json
from vditc.errors import InputError

# From block_out_channels: every block but the last halves the image. Pixels, and frames where the config does not say.
_HALVING = ("AutoencoderKL", "AutoencoderKLTemporalDecoder", "AutoencoderKLCogVideoX", "AutoencoderKLAllegro", "AutoencoderKLMagvit")
_SPATIAL = ("scale_factor_spatial", "spatial_compression_ratio")
_TEMPORAL = ("scale_factor_temporal", "temporal_compression_ratio")


def vae_stride(folder: Path) -> tuple[int | None, int | None]:
    """(frames, pixels) of a latent step, None for what the config does not tell; (None, None) without a config.json.

    InputError for a stored stride that is no positive whole number.
    """
    path = folder / "config.json"
    if not path.exists():
        return None, None
    config = read_json(path)
    temporal, spatial = (_stored(config, keys, path) for keys in (_TEMPORAL, _SPATIAL))
    from_layers = _from_layers(config)
    return temporal or from_layers[0], spatial or from_layers[1]


def _stored(config: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> int | None:
    for key in keys:
        if (value := config.get(key)) is None:
            continue
        if type(value) not in (int, float) or value < 1 or value != int(value):
            raise InputError(found=f"{key} = {value!r}", wanted="a whole number above 0", where=str(path), fix="restore the file")
        return int(value)
    return None


def _from_layers(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The same, counted from the layers that the config lists."""
    kind = config.get("_class_name")
    match config:
        case {"block": int(block)} if kind == "PixelShuffleCodec":
            return 1, block
        case {"temperal_downsample": [*halves]}:  # Wan, Qwen-Image: each entry halves the image, a true one the frames too
            return 2 ** sum(halves), 2 ** len(halves) * (config.get("patch_size") or 1)
        case {"temporal_expansions": [*frames], "spatial_expansions": [*pixels]}:  # Mochi
            return math.prod(frames), math.prod(pixels)
        case {"spatio_temporal_scaling": [*scaled]}:  # LTX-Video; downsample_type tells blocks that scale one of both
            types = (config.get("downsample_type") or ["conv"] * len(scaled))[: len(scaled)]
            frames, pixels = (sum(s and t != other for s, t in zip(scaled, types, strict=True)) for other in ("spatial", "temporal"))
            return 2**frames * int(config.get("patch_size_t", 1)), 2**pixels * int(config.get("patch_size", 4))
        case {"temporal_downsample_factors": [*frames], "spatial_downsample_factors": [*pixels]}:
            return math.prod(frames), math.prod(pixels)
        case {"block_out_channels": [*channels]} if kind in _HALVING:
            frames_of = {"AutoencoderKL": 1, "AutoencoderKLTemporalDecoder": 1, "AutoencoderKLMagvit": 2 ** (len(channels) - 2)}
            return frames_of.get(str(kind)), 2 ** (len(channels) - 1)
    return None, None
