"""PixArt-alpha and PixArt-Sigma (diffusers PixArtTransformer2DModel); Latte and others are made of the same blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch

from vditc.adapter import InputSpec
from vditc.checkpoint import read_json
from vditc.errors import InputError
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.export.patches import TimeFrequencies, plain_attention, replaced
from vditc.model_dir import ModelDir
from vditc.profile import Axis


class PixArt(DiffusersAdapter):
    """Blocks of self-attention, cross-attention and feed-forward, one modulation for all of them; sinusoidal positions.

    An image is a clip of one frame. The prediction has learned variances behind the noise: twice the channels of the latents.
    """

    name: ClassVar[str] = "pixart"
    description: ClassVar[str] = "PixArt-alpha, PixArt-Sigma text-to-image"
    model_class: ClassVar[str] = "PixArtTransformer2DModel"
    lists: ClassVar[Mapping[str, str]] = {"transformer_blocks": "num_layers"}
    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "256": (1, 256, 256),
        "512": (1, 512, 512),
        "1024": (1, 1024, 1024),
        "2048": (1, 2048, 2048),
    }
    roles: ClassVar[Mapping[str, str]] = {
        r"pos_embed\.proj": "patch_embed",
        r"caption_projection\.linear_1": "text_embed.in",
        r"caption_projection\.linear_2": "text_embed.out",
        r"adaln_single\.emb\.timestep_embedder\.linear_1": "time_embed.in",
        r"adaln_single\.emb\.timestep_embedder\.linear_2": "time_embed.out",
        r"adaln_single\.emb\.(resolution|aspect_ratio)_embedder\.linear_1": "other_embed.in",
        r"adaln_single\.emb\.(resolution|aspect_ratio)_embedder\.linear_2": "other_embed.out",
        r"adaln_single\.linear": "modulation",
        r"transformer_blocks\.\d+\.attn1\.to_q": "self_attn.q",
        r"transformer_blocks\.\d+\.attn1\.to_k": "self_attn.k",
        r"transformer_blocks\.\d+\.attn1\.to_v": "self_attn.v",
        r"transformer_blocks\.\d+\.attn1\.to_out\.0": "self_attn.out",
        r"transformer_blocks\.\d+\.attn2\.to_q": "cross_attn.q",
        r"transformer_blocks\.\d+\.attn2\.to_k": "cross_attn.k",
        r"transformer_blocks\.\d+\.attn2\.to_v": "cross_attn.v",
        r"transformer_blocks\.\d+\.attn2\.to_out\.0": "cross_attn.out",
        r"transformer_blocks\.\d+\.ff\.net\.0\.proj": "ffn.in",
        r"transformer_blocks\.\d+\.ff\.net\.2": "ffn.out",
        r"proj_out": "head",
    }

    def inputs(self, source: ModelDir) -> tuple[InputSpec, ...]:
        """hidden_states [B, C, 1, H, W], timestep [B], encoder_hidden_states and its mask [B, text_tokens, ...].

        Models with size conditions also take resolution [B, 2] (height and width in pixels) and aspect_ratio [B, 1].
        """
        specs = [
            InputSpec("hidden_states", "float32", ("batch", self.latent_channels(source), 1, "height", "width")),
            InputSpec("timestep", "float32", ("batch",), "timestep"),
            InputSpec("encoder_hidden_states", "float32", ("batch", "text_tokens", text_dim(source.config))),
            InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
        ]
        if self.sized(source.config):
            pixels = float(8 * int(source.config.get("sample_size", 128)))
            specs += [
                InputSpec("resolution", "float32", ("batch", 2), pixels),
                InputSpec("aspect_ratio", "float32", ("batch", 1), 1.0),
            ]
        return tuple(specs)

    def sized(self, config: Mapping[str, Any]) -> bool:
        """Whether the model is told the size of the image; when the config leaves it open, those of 1024 pixels are."""
        told = config.get("use_additional_conditions")
        return bool(config.get("sample_size", 128) == 128 if told is None else told)

    def axes(self, source: ModelDir) -> Mapping[str, Axis]:
        """Sizes around those of the checkpoint; Sigma reads longer texts than alpha."""
        index = source.path / "model_index.json"
        sigma = index.exists() and read_json(index).get("_class_name") == "PixArtSigmaPipeline"
        size, patch = int(source.config.get("sample_size", 128)), int(source.config.get("patch_size", 2))
        side = Axis(default=size, low=patch, multiple=patch, unit="pixels", stride=8)
        return {
            "batch": Axis(default=2, unit="clips"),
            "height": side,
            "width": side,
            "text_tokens": Axis(default=300 if sigma else 120),
        }

    def latent_channels(self, source: ModelDir) -> int:
        """Without the learned variances."""
        return int(source.config.get("in_channels", 4))

    def build(self, config: Mapping[str, Any]) -> Any:
        """See the base class; InputError for blocks that are not modulated the way all published ones are."""
        model = super().build(config)
        if (norm := model.config.norm_type) != "ada_norm_single":
            raise InputError(found=f"norm_type {norm}", wanted="ada_norm_single", where="config.json", fix="use a published checkpoint")
        return model

    @contextmanager
    def patched(self, model: Any) -> Iterator[None]:
        """Plain attention; modulation that broadcasts; positions from the sizes; constant time frequencies.

        Positions are float32 where they were float64 (1e-6 of the embedding), attention see `plain_attention`; the rest is exact.
        """
        with replaced((model, "forward", partial(_forward, model)), *block_patches(model)):
            yield

    def forward(self, model: Any, feeds: Mapping[str, Any]) -> Any:
        """Predicted noise and variances [B, 2 C, 1, H, W]."""
        predicted = model(
            hidden_states=feeds["hidden_states"].squeeze(2),
            encoder_hidden_states=feeds["encoder_hidden_states"],
            timestep=feeds["timestep"],
            added_cond_kwargs={"resolution": feeds.get("resolution"), "aspect_ratio": feeds.get("aspect_ratio")},
            encoder_attention_mask=feeds["encoder_attention_mask"],
            return_dict=False,
        )[0]
        return predicted.unsqueeze(2)

    def fed_by(self, call: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """The class takes images, and their sizes in a dictionary."""
        feeds = dict(call)
        sizes = {name: size for name, size in (feeds.pop("added_cond_kwargs", None) or {}).items() if size is not None}
        return {**feeds, **sizes, "hidden_states": feeds["hidden_states"].unsqueeze(2)}

    def handed_back(self, prediction: Any, call: Mapping[str, Any]) -> Any:
        """[B, 2 C, H, W]."""
        return prediction.squeeze(2)


def text_dim(config: Mapping[str, Any]) -> int:
    """Width of the text embeddings that go in."""
    return int(config.get("caption_channels") or config.get("cross_attention_dim", 1152))


def block_patches(model: Any) -> list[tuple[Any, str, Any]]:
    """Patches of what all models of these blocks share: blocks, patches with their positions, time frequencies."""
    embedder = model.adaln_single.emb
    patches: list[tuple[Any, str, Any]] = [
        (model, "pos_embed", PatchPositions(model.pos_embed)),
        (embedder, "time_proj", TimeFrequencies(embedder.time_proj)),
    ]
    if embedder.use_additional_conditions:
        patches.append((embedder, "additional_condition_proj", TimeFrequencies(embedder.additional_condition_proj)))
    for blocks in (model.transformer_blocks, getattr(model, "temporal_transformer_blocks", ())):
        for block in blocks:
            patches.append((block, "forward", partial(_block, block)))
            patches += [(a, "processor", attend) for a in (block.attn1, block.attn2) if a is not None]
    return patches


class PatchPositions(torch.nn.Module):
    """Latents [B, C, H, W] -> tokens [B, H W / patch^2, dim] with 2-D sinusoidal positions of that grid."""

    omega: torch.Tensor

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.proj = real.proj
        self.span = real.base_size / real.interpolation_scale  # positions run from 0 to this, whatever the size
        quarter = real.proj.out_channels // 4
        omega = 1 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
        self.register_buffer("omega", omega.to(torch.float32)[None], persistent=False)

    def side(self, steps: int) -> torch.Tensor:
        """Sines and cosines [steps, dim / 2] of one side of the grid."""
        angles = torch.arange(steps, dtype=torch.float32).unsqueeze(1) * self.span / steps * self.omega
        return torch.cat([torch.sin(angles), torch.cos(angles)], -1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.proj(latents)
        height, width = x.shape[-2:]
        across = self.side(width).unsqueeze(0).expand(height, -1, -1)
        down = self.side(height).unsqueeze(1).expand(-1, width, -1)
        return torch.flatten(x, 2).transpose(1, 2) + torch.cat([across, down], -1).flatten(0, 1)


def head(model: Any, x: torch.Tensor, embedded: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Tokens x [B, F, height * width, dim] and the embedded time [B, dim] -> prediction [B, C, F, H, W]."""
    shift, scale = (model.scale_shift_table[None] + embedded.unsqueeze(1)).unsqueeze(2).chunk(2, 1)
    x = model.proj_out(model.norm_out(x) * (1 + scale) + shift)
    patch = model.config.patch_size
    x = torch.unflatten(torch.unflatten(x, 3, (patch, patch, model.out_channels)), 2, (height, width))
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def _forward(
    model: Any,
    *,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    added_cond_kwargs: Mapping[str, torch.Tensor | None],
    encoder_attention_mask: torch.Tensor,
    return_dict: bool,
) -> tuple[torch.Tensor]:
    """One image each: hidden_states [B, C, H, W] -> [B, 2 C, H, W]."""
    patch = model.config.patch_size
    height, width = hidden_states.shape[2] // patch, hidden_states.shape[3] // patch
    time, embedded = model.adaln_single(timestep, added_cond_kwargs, batch_size=timestep.shape[0], hidden_dtype=hidden_states.dtype)
    text = encoder_hidden_states
    if model.caption_projection is not None:
        text = model.caption_projection(text)
    mask = ((1 - encoder_attention_mask.to(torch.float32)) * -10000.0)[:, None, None]
    x = model.pos_embed(hidden_states).unsqueeze(1)
    for block in model.transformer_blocks:
        x = block(x, time, text, mask)
    return (head(model, x, embedded, height, width).squeeze(2),)


def _block(
    block: Any, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor | None = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """x [B, groups, tokens, dim]: tokens attend within their group, and all of them to text [B, text_tokens, dim].

    time is [B, 6 dim], mask [B, 1, 1, text_tokens] is added to the scores of the text.
    """
    table = (block.scale_shift_table[None] + torch.unflatten(time, 1, (6, -1))).unsqueeze(2)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = torch.split(table, 1, 1)
    tokens = (block.norm1(x) * (1 + scale) + shift).flatten(0, 1)
    x = gate * torch.unflatten(block.attn1(tokens), 0, x.shape[:2]) + x
    if block.attn2 is not None:
        x = torch.unflatten(block.attn2(x.flatten(1, 2), encoder_hidden_states=text, attention_mask=mask), 1, x.shape[1:3]) + x
    out: torch.Tensor = ffn_gate * block.ff(block.norm2(x) * (1 + ffn_scale) + ffn_shift) + x
    return out


def attend(
    attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """An attention layer without norms: hidden_states [B, tokens, dim] attends to itself or to encoder_hidden_states."""
    memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states

    def heads(x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (attn.heads, -1)).transpose(1, 2)

    attended = plain_attention(heads(attn.to_q(hidden_states)), heads(attn.to_k(memory)), heads(attn.to_v(memory)), attention_mask)
    out: torch.Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return out
