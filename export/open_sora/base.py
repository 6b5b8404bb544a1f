"""What STDiT and STDiT3 share as models: the configuration, the ends of the network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from vditc.errors import InputError
from vditc.export.open_sora.layers import CaptionEmbedder, FinalLayer, PatchEmbed, ScalarEmbedder, text_bias

# Keys of published configurations that say how to train or which kernels to run, or (input_size) what is read off the latents here.
WITHOUT_EFFECT = frozenset(
    {
        "architectures",
        "auto_map",
        "class_dropout_prob",
        "drop_path",
        "dtype",
        "enable_flash_attn",
        "enable_flashattn",
        "enable_layernorm_kernel",
        "enable_sequence_parallelism",
        "freeze",
        "freeze_y_embedder",
        "input_size",
        "model_type",
        "no_temporal_pos_emb",
        "only_train_temporal",
        "torch_dtype",
        "transformers_version",
    }
)
ONLY = {"skip_y_embedder": False}  # keys of which one value is supported


class OpenSoraModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers module: `config`, `from_config`, `from_pretrained` and `save_pretrained` work as there."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **options: Any) -> Any:
        """The model of a configuration, diffusers' or the published one; InputError for a key that nobody knows."""
        known = set(inspect.signature(cls.__init__).parameters)
        for key, value in config.items():
            if key in ONLY and value != ONLY[key]:
                problem = f"{key} = {value!r}", f"{key} = {ONLY[key]!r}"
            elif key not in known | WITHOUT_EFFECT | set(ONLY) and not key.startswith("_"):
                problem = f"the key {key}", f"keys among {', '.join(sorted(known - {'self'}))}"
            else:
                continue
            raise InputError(
                found=problem[0], wanted=problem[1], where=f"the config.json of {cls.__name__}", fix="correct or remove the key"
            )
        return super().from_config({k: v for k, v in config.items() if k in known or k.startswith("_")}, **options)

    def build_ends(self) -> None:
        """Make the modules outside the blocks, from `self.config`."""
        config = self.config
        hidden, heads, patch = config.hidden_size, config.num_heads, tuple(config.patch_size)
        if hidden % heads or hidden // heads % 2 or hidden % 4:
            raise InputError(
                found=f"hidden_size {hidden}, num_heads {heads}",
                wanted="a hidden_size that 4 divides, in heads of an even size",
                where=f"the config.json of {type(self).__name__}",
                fix="use the config.json of the checkpoint",
            )
        self.patch_size = patch
        self.out_channels = config.in_channels * (2 if config.pred_sigma else 1)
        self.x_embedder = PatchEmbed(patch, config.in_channels, hidden)
        self.t_embedder = ScalarEmbedder(hidden)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.y_embedder = CaptionEmbedder(config.caption_channels, hidden, config.model_max_length)
        self.final_layer = FinalLayer(hidden, patch[0] * patch[1] * patch[2] * self.out_channels)

    def embed_text(self, text: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Text [B, text_tokens, channels] and its mask [B, text_tokens] -> [B, text_tokens, hidden], bias [B, 1, 1, text_tokens]."""
        embedded = self.y_embedder(text)
        return embedded, text_bias(mask, embedded.dtype)

    def unpatchify(self, patches: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
        """[B, f * h * w, patch * channels], channels last in a patch -> [B, channels, F, H, W]."""
        split = torch.unflatten(torch.unflatten(patches, 2, (*self.patch_size, self.out_channels)), 1, (frames, height, width))
        return split.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
