"""Names of a model's layers in LoRA files: the checkpoint's own, and those of the family's original release.

Facts of the original releases: Wan 2.1 and 2.2 (Wan-Video), HunyuanVideo (Tencent), LTX-Video (Lightricks), as diffusers'
conversion scripts map them. CogVideoX, Mochi and others are trained with diffusers' names and need no table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from vditc.safetensors_file import TensorEntry

TABLE = "scale_shift_table"  # what Wan's release calls `modulation`


@dataclasses.dataclass(frozen=True)
class _Name:
    """A module's name in the checkpoint (regular expression) and in the original release (what it expands to).

    `place`: its position among the modules that the release stacks, along the outputs, under one name. `swapped`: the release
    has the two halves of the outputs (shift and scale) the other way round.
    """

    here: str
    there: str
    place: int = 0
    swapped: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """The outputs `begin` to `end` of a module of a LoRA file belong to a module of the checkpoint; all of them if end is None."""

    module: str
    begin: int = 0
    end: int | None = None
    swapped: bool = False


_WAN = (
    _Name(r"(blocks\.\d+)\.attn1\.to_([qkv])", r"\1.self_attn.\2"),
    _Name(r"(blocks\.\d+)\.attn1\.to_out\.0", r"\1.self_attn.o"),
    _Name(r"(blocks\.\d+)\.attn1\.norm_([qk])", r"\1.self_attn.norm_\2"),
    _Name(r"(blocks\.\d+)\.attn2\.to_([qkv])", r"\1.cross_attn.\2"),
    _Name(r"(blocks\.\d+)\.attn2\.to_out\.0", r"\1.cross_attn.o"),
    _Name(r"(blocks\.\d+)\.attn2\.norm_([qk])", r"\1.cross_attn.norm_\2"),
    _Name(r"(blocks\.\d+)\.attn2\.add_([kv])_proj", r"\1.cross_attn.\2_img"),
    _Name(r"(blocks\.\d+)\.attn2\.norm_added_k", r"\1.cross_attn.norm_k_img"),
    _Name(r"(blocks\.\d+)\.norm2", r"\1.norm3"),
    _Name(r"(blocks\.\d+)\.ffn\.net\.0\.proj", r"\1.ffn.0"),
    _Name(r"(blocks\.\d+)\.ffn\.net\.2", r"\1.ffn.2"),
    *(
        _Name(rf"condition_embedder\.{kind}_embedder\.linear_{n}", f"{kind}_embedding.{at}")
        for kind in ("text", "time")
        for n, at in ((1, 0), (2, 2))
    ),
    _Name(r"condition_embedder\.time_proj", "time_projection.1"),
    _Name(r"condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    _Name(r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    _Name(r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    _Name(r"condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    _Name(r"proj_out", "head.head"),
    _Name(r"", "head"),  # holds the head's table
)
_REFINER = r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)"
_HUNYUAN = (
    _Name(r"x_embedder\.proj", "img_in.proj"),
    *(
        _Name(rf"time_text_embed\.{here}_embedder\.linear_{n}", f"{there}.{at}")
        for here, there, ends in (
            ("timestep", "time_in.mlp", "02"),
            ("guidance", "guidance_in.mlp", "02"),
            ("text", "vector_in", ("in_layer", "out_layer")),
        )
        for n, at in zip((1, 2), ends, strict=True)
    ),
    _Name(r"context_embedder\.time_text_embed\.timestep_embedder\.linear_1", "txt_in.t_embedder.mlp.0"),
    _Name(r"context_embedder\.time_text_embed\.timestep_embedder\.linear_2", "txt_in.t_embedder.mlp.2"),
    _Name(r"context_embedder\.time_text_embed\.text_embedder\.(linear_[12])", r"txt_in.c_embedder.\1"),
    _Name(r"context_embedder\.proj_in", "txt_in.input_embedder"),
    *(_Name(rf"{_REFINER}\.attn\.to_{x}", r"txt_in.individual_token_refiner.blocks.\1.self_attn_qkv", i) for i, x in enumerate("qkv")),
    _Name(rf"{_REFINER}\.attn\.to_out\.0", r"txt_in.individual_token_refiner.blocks.\1.self_attn_proj"),
    _Name(rf"{_REFINER}\.ff\.net\.0\.proj", r"txt_in.individual_token_refiner.blocks.\1.mlp.fc1"),
    _Name(rf"{_REFINER}\.ff\.net\.2", r"txt_in.individual_token_refiner.blocks.\1.mlp.fc2"),
    _Name(rf"{_REFINER}\.norm_out\.linear", r"txt_in.individual_token_refiner.blocks.\1.adaLN_modulation.1"),
    _Name(rf"{_REFINER}\.(norm[12])", r"txt_in.individual_token_refiner.blocks.\1.\2"),
    *(_Name(rf"transformer_blocks\.(\d+)\.attn\.to_{x}", r"double_blocks.\1.img_attn_qkv", i) for i, x in enumerate("qkv")),
    *(_Name(rf"transformer_blocks\.(\d+)\.attn\.add_{x}_proj", r"double_blocks.\1.txt_attn_qkv", i) for i, x in enumerate("qkv")),
    _Name(r"transformer_blocks\.(\d+)\.attn\.norm_([qk])", r"double_blocks.\1.img_attn_\2_norm"),
    _Name(r"transformer_blocks\.(\d+)\.attn\.norm_added_([qk])", r"double_blocks.\1.txt_attn_\2_norm"),
    _Name(r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn_proj"),
    _Name(r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks.\1.txt_attn_proj"),
    _Name(r"transformer_blocks\.(\d+)\.norm1\.linear", r"double_blocks.\1.img_mod.linear"),
    _Name(r"transformer_blocks\.(\d+)\.norm1_context\.linear", r"double_blocks.\1.txt_mod.linear"),
    _Name(r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.fc1"),
    _Name(r"transformer_blocks\.(\d+)\.ff\.net\.2", r"double_blocks.\1.img_mlp.fc2"),
    _Name(r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.fc1"),
    _Name(r"transformer_blocks\.(\d+)\.ff_context\.net\.2", r"double_blocks.\1.txt_mlp.fc2"),
    *(_Name(rf"single_transformer_blocks\.(\d+)\.attn\.to_{x}", r"single_blocks.\1.linear1", i) for i, x in enumerate("qkv")),
    _Name(r"single_transformer_blocks\.(\d+)\.proj_mlp", r"single_blocks.\1.linear1", 3),
    _Name(r"single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
    _Name(r"single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.linear"),
    _Name(r"single_transformer_blocks\.(\d+)\.attn\.norm_([qk])", r"single_blocks.\1.\2_norm"),
    _Name(r"norm_out\.linear", "final_layer.adaLN_modulation.1", swapped=True),
    _Name(r"proj_out", "final_layer.linear"),
)
_LTX = (
    _Name(r"proj_in", "patchify_proj"),
    _Name(r"time_embed\.(.+)", r"adaln_single.\1"),
    _Name(r"(transformer_blocks\.\d+\.attn[12])\.norm_([qk])", r"\1.\2_norm"),
)
FAMILIES: Mapping[str, tuple[_Name, ...]] = {
    "WanTransformer3DModel": _WAN,
    "HunyuanVideoTransformer3DModel": _HUNYUAN,
    "LTXVideoTransformer3DModel": _LTX,
}


def places(model_class: str, weights: Mapping[str, TensorEntry]) -> dict[str, tuple[Place, ...]]:
    """Module name in a LoRA file -> where its outputs belong, for every name that the checkpoint's modules may go by."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in weights)
    stacked: dict[str, list[tuple[int, str, bool]]] = {}
    for module in modules:
        for name in FAMILIES.get(model_class, ()):
            if match := re.fullmatch(name.here, module):
                stacked.setdefault(match.expand(name.there), []).append((name.place, module, name.swapped))
    found: dict[str, tuple[Place, ...]] = {}
    for there, members in stacked.items():
        if len(members) == 1:
            found[there] = (Place(members[0][1], swapped=members[0][2]),)
            continue
        rows, begin = [], 0
        for _, module, swapped in sorted(members):
            end = begin + weights[f"{module}.weight"].shape[0]
            rows.append(Place(module, begin, end, swapped))
            begin = end
        found[there] = tuple(rows)
    found |= {module: (Place(module),) for module in modules if module}
    # Trainers that write `lora_unet_blocks_0_ffn_0` have no dots; every name is listed flat too.
    return {name.replace(".", "_"): where for name, where in found.items()} | found
